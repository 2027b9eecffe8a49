//! Whoever is killed between two calls of a volume's life: {volumed, the driver, both} after each call, with one pod and with two.
//! The daemon stops itself at the point, so that nothing depends on who is faster.
//!
//! What a driver is, and what only it can tell, is its test's (`Subject`).

#![allow(unreachable_pub, clippy::allow_attributes, reason = "two test binaries use it")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use crate::support::objects::device_user;
use crate::support::{Process, TestHost, pod_using, until};

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Daemon,
    Driver,
    Both,
}

/// One death.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub block: bool,
    pub pods: &'static [&'static str],
    pub victim: Victim,
    /// After this call, the how manieth of its kind.
    pub after: (&'static str, usize),
}

/// A driver with one volume, `data`, whose claim is among the manifests.
pub trait Subject {
    fn host(&self) -> &TestHost;

    /// Starts the driver again.
    fn driver(&self) -> Process;

    /// What a pod wrote is in the driver's hands, for so many pods.
    fn assert_shown(&self, pods: usize);

    /// Has the volume grow while pods use it; `None`: it does not grow in its life.
    fn grow(&self) -> Option<Growth<'_>> {
        None
    }
}

/// Answers whether what a pod has at a path has grown.
pub type Growth<'a> = Box<dyn Fn(&Path) -> bool + 'a>;

/// The part of the life in which a call comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Up,
    Growth,
    Down,
}

impl Case {
    fn part(&self) -> Part {
        match self.after.0 {
            "expand" => Part::Growth,
            kind if kind.starts_with("un") => Part::Down,
            _ => Part::Up,
        }
    }

    /// Writes the manifests of the pods.
    pub fn write_pods(&self, host: &TestHost) {
        for pod in self.pods {
            let text = pod_using(pod, &format!("uid-{pod}"), "data");
            let text = if self.block { device_user(&text) } else { text };
            host.manifest(&format!("{pod}.yaml"), &text);
        }
    }

    fn remove_pods(&self, host: &TestHost) {
        self.pods.iter().for_each(|pod| host.remove_manifest(&format!("{pod}.yaml")));
    }

    fn wait(&self, host: &TestHost, arguments: &[&str]) {
        let pods: Vec<String> = self.pods.iter().map(|pod| format!("pod/{pod}")).collect();
        let mut all = arguments.to_vec();
        all.extend(pods.iter().map(String::as_str));
        host.wait(&all);
    }

    /// Where a pod finds the volume: the directory or the device.
    pub fn place(&self, host: &TestHost, pod: &str) -> PathBuf {
        let uid = format!("uid-{pod}");
        if self.block {
            host.root.join(format!("pods/{uid}/volumeDevices/kubernetes.io~csi/data"))
        } else {
            host.target(&uid, "data")
        }
    }

    /// Where the precious bytes are.
    pub fn precious(&self, host: &TestHost, pod: &str) -> PathBuf {
        let place = self.place(host, pod);
        if self.block { place } else { place.join("file") }
    }

    fn write(&self, host: &TestHost) {
        let Some(first) = self.pods.first() else { return };
        let path = self.precious(host, first);
        let mut file = if self.block {
            assert!(fs::metadata(&path).expect("a device").file_type().is_block_device(), "{path:?}");
            OpenOptions::new().write(true).open(path).expect("the device")
        } else {
            File::create(path).expect("a file in the volume")
        };
        file.write_all(b"precious").expect("the volume");
        file.sync_all().expect("the volume");
    }

    /// Every pod has the same volume, once.
    fn assert_up(&self, subject: &impl Subject) {
        let host = subject.host();
        for pod in self.pods {
            assert_precious(&self.precious(host, pod));
        }
        subject.assert_shown(self.pods.len());
        let mut mounts = host.mounts();
        let all = mounts.len();
        mounts.sort();
        mounts.dedup();
        assert_eq!(mounts.len(), all, "a mount on a mount");
    }
}

/// What was written is at the beginning of a file or device.
pub fn assert_precious(path: &Path) {
    let mut bytes = [0; 8];
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.read_exact(&mut bytes).expect("the volume");
    assert_eq!(bytes, *b"precious", "{}", path.display());
}

pub fn drivers(host: &TestHost) -> String {
    String::from_utf8_lossy(&host.volumectl(&["drivers"]).stdout).into_owned()
}

/// Waits until the daemon has stopped itself.
fn until_stopped(daemon: &mut Process) {
    let stat = format!("/proc/{}/stat", daemon.pid());
    until("the daemon stops itself", || {
        assert!(daemon.is_running(), "it died");
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    });
}

/// Leads a volume through its life, with one death in it, until its pods have released it. Returns the driver and the daemon.
pub fn outlives(case: &Case, subject: &impl Subject, driver: Process) -> (Process, Process) {
    let host = subject.host();
    let (kind, number) = case.after;
    let part = case.part();
    let mut daemon = host.volumed(&[("VOLUMED_TEST_FAULT", &format!("stop:{kind}:call@{number}"))]);
    let up = || {
        case.wait(host, &[]);
        case.write(host);
        case.assert_up(subject);
    };
    let grow = || {
        until("the driver is there", || drivers(host).contains("ready"));
        subject.grow()
    };
    let until_grown = |growth: &Option<Growth<'_>>| {
        let Some(has_grown) = growth else { return };
        for pod in case.pods {
            until("it has grown", || has_grown(&case.place(host, pod)));
        }
        case.assert_up(subject);
    };
    let mut growth = None;
    if part > Part::Up {
        up();
        growth = grow();
    }
    if part > Part::Growth {
        until_grown(&growth);
        case.remove_pods(host);
    }
    until_stopped(&mut daemon);
    let (driver, daemon) = match case.victim {
        Victim::Daemon => {
            daemon.kill();
            (driver, host.volumed(&[]))
        }
        Victim::Driver => {
            driver.kill();
            daemon.signal("-CONT");
            until("its end is seen", || drivers(host).contains("disconnected"));
            (subject.driver(), daemon)
        }
        Victim::Both => {
            driver.kill();
            daemon.kill();
            let daemon = host.volumed(&[]);
            (subject.driver(), daemon)
        }
    };
    if part < Part::Growth {
        up();
        growth = grow();
    }
    if part < Part::Down {
        until_grown(&growth);
        case.remove_pods(host);
    }
    case.wait(host, &["--for=released"]);
    (driver, daemon)
}

/// Returns a case for each call of a life, each victim, and one pod and two.
pub fn cases(block: bool, grows: bool) -> Vec<Case> {
    const ONE: [(&str, usize); 4] = [("stage", 1), ("publish", 1), ("unpublish", 1), ("unstage", 1)];
    const TWO: [(&str, usize); 2] = [("publish", 2), ("unpublish", 2)];
    let growth: &[_] = if grows { &[("expand", 1)] } else { &[] };
    let mut cases = Vec::new();
    for victim in [Victim::Daemon, Victim::Driver, Victim::Both] {
        let one = ONE.iter().chain(growth);
        cases.extend(one.clone().map(|after| Case { block, pods: &["a"], victim, after: *after }));
        let two = one.chain(&TWO);
        cases.extend(two.map(|after| Case { block, pods: &["a", "b"], victim, after: *after }));
    }
    cases
}
