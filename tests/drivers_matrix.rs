//! csi-driver-host-path with {file systems, block devices} × {one pod, two pods} × {volumed, the driver, both killed} between
//! each two calls: the daemon stops itself there, so that nothing depends on who is faster.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/hostpath.rs"]
mod hostpath;
mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;

use foreign::{
    assert_same_arguments, block, claim_of, create_block_volume, create_volume, device_user, for_each,
    methods,
};
use hostpath::{Hostpath, NAME, Programs, drivers};
use support::{Process, loop_devices, pod_using, until};

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Daemon,
    Driver,
    Both,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    block: bool,
    pods: &'static [&'static str],
    victim: Victim,
    /// After this call, the how manieth of its kind.
    after: (&'static str, usize),
}

/// One volume, and the pods that use it.
struct World {
    real: Hostpath,
    case: Case,
    handle: String,
}

impl World {
    fn new(programs: &Programs, case: Case) -> (Self, Process, Process) {
        let real = Hostpath::with(programs.clone());
        let (driver, registrar) = (real.driver(&[]), real.registrar());
        let socket = real.socket("");
        let handle =
            if case.block { create_block_volume(&socket, "data") } else { create_volume(&socket, "data") };
        let claim = claim_of(NAME, "data", &handle);
        real.host.manifest("data.yaml", &if case.block { block(&claim) } else { claim });
        for pod in case.pods {
            let text = pod_using(pod, &format!("uid-{pod}"), "data");
            let text = if case.block { device_user(&text) } else { text };
            real.host.manifest(&format!("{pod}.yaml"), &text);
        }
        (Self { real, case, handle }, driver, registrar)
    }

    fn wait(&self, arguments: &[&str]) {
        let pods: Vec<String> = self.case.pods.iter().map(|pod| format!("pod/{pod}")).collect();
        let mut all = arguments.to_vec();
        all.extend(pods.iter().map(String::as_str));
        self.real.host.wait(&all);
    }

    /// Where a pod finds the volume: the file that it writes to.
    fn shown(&self, pod: &str) -> PathBuf {
        let uid = format!("uid-{pod}");
        if self.case.block {
            let link = format!("pods/{uid}/volumeDevices/kubernetes.io~csi/data");
            self.real.host.root.join(link)
        } else {
            self.real.host.target(&uid, "data").join("file")
        }
    }

    /// Every pod has the same volume, and it is the driver's.
    fn assert_up(&self) {
        let [first, rest @ ..] = self.case.pods else { return };
        let mut file = if self.case.block {
            let device = self.shown(first);
            assert!(fs::metadata(&device).expect("a device").file_type().is_block_device(), "{device:?}");
            OpenOptions::new().write(true).open(device).expect("the device")
        } else {
            File::create(self.shown(first)).expect("a file in the volume")
        };
        file.write_all(b"precious").expect("the volume");
        file.sync_all().expect("the volume");
        for pod in rest {
            assert_eq!(read(self.shown(pod)), *b"precious", "{pod} has another volume");
        }
        self.assert_kept();
        let [(_, staged, published)] = self.real.believes().try_into().expect("one volume");
        assert_eq!((staged.len(), published.len()), (1, self.case.pods.len()), "{staged:?} {published:?}");
        let mut mounts = self.real.host.mounts();
        let all = mounts.len();
        mounts.sort();
        mounts.dedup();
        assert_eq!(mounts.len(), all, "a mount on a mount");
    }

    /// What a pod wrote is in the driver's hands.
    fn assert_kept(&self) {
        let data = self.real.data(&self.handle);
        assert_eq!(read(if self.case.block { data } else { data.join("file") }), *b"precious");
    }
}

fn read(path: PathBuf) -> [u8; 8] {
    let mut bytes = [0; 8];
    File::open(path).expect("the volume").read_exact(&mut bytes).expect("the volume");
    bytes
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

fn outlives(programs: &Programs, case: &Case) {
    let (world, driver, _registrar) = World::new(programs, *case);
    let host = &world.real.host;
    let (kind, number) = case.after;
    let down = kind.starts_with("un");
    let point = format!("stop:{kind}:call@{number}");
    let mut daemon = host.volumed(&[("VOLUMED_TEST_FAULT", &point)]);
    let remove = || case.pods.iter().for_each(|pod| host.remove_manifest(&format!("{pod}.yaml")));
    if down {
        world.wait(&[]);
        world.assert_up();
        remove();
    }
    until_stopped(&mut daemon);
    let calls = world.real.calls().len();
    let (_driver, _daemon) = match case.victim {
        Victim::Daemon => {
            daemon.kill();
            (driver, host.volumed(&[]))
        }
        Victim::Driver => {
            driver.kill();
            daemon.signal("-CONT");
            until("its end is seen", || drivers(host).contains("disconnected"));
            (world.real.driver(&[]), daemon)
        }
        Victim::Both => {
            driver.kill();
            daemon.kill();
            let daemon = host.volumed(&[]);
            (world.real.driver(&[]), daemon)
        }
    };
    if !down {
        world.wait(&[]);
        world.assert_up();
        remove();
    }
    world.wait(&["--for=released"]);
    world.real.assert_released();
    world.assert_kept();
    // The driver keeps one for a block volume until the volume is deleted (csi.md 9.3).
    assert_eq!(
        loop_devices(&host.path("driver")).len(),
        usize::from(case.block),
        "loop devices over the volume"
    );
    assert_eq!(loop_devices(&host.root), Vec::<PathBuf>::new(), "a loop device is left");
    let all = world.real.calls();
    assert_same_arguments(&all, &format!("{case:?}"));
    // A living daemon knows what it has done; one that died may ask for its last call again, and for no other.
    let repeated = all.len() - 2 - 2 * case.pods.len();
    assert!(repeated <= usize::from(case.victim != Victim::Driver), "{case:?}: {:?}", methods(&all[calls..]));
    let unstaged = all.iter().position(|call| call.method == "NodeUnstageVolume").expect("it is unstaged");
    let unpublished = all.iter().rposition(|call| call.method == "NodeUnpublishVolume").expect("it is");
    assert!(unpublished < unstaged, "{:?}", methods(&all));
    assert!(all.iter().all(|call| call.error.is_empty()), "{all:#?}");
}

fn matrix(test: &str, block: bool) {
    let Some(programs) = Programs::find(test) else { return };
    const ONE: [(&str, usize); 4] = [("stage", 1), ("publish", 1), ("unpublish", 1), ("unstage", 1)];
    const TWO: [(&str, usize); 2] = [("publish", 2), ("unpublish", 2)];
    let mut cases = Vec::new();
    for victim in [Victim::Daemon, Victim::Driver, Victim::Both] {
        cases.extend(ONE.map(|after| Case { block, pods: &["a"], victim, after }));
        let two = ONE.into_iter().chain(TWO);
        cases.extend(two.map(|after| Case { block, pods: &["a", "b"], victim, after }));
    }
    for_each(&cases, |case| outlives(&programs, case));
}

#[test]
fn whoever_is_killed_between_two_calls_a_file_system_comes_and_goes() {
    matrix("whoever_is_killed_between_two_calls_a_file_system_comes_and_goes", false);
}

#[test]
fn whoever_is_killed_between_two_calls_a_block_device_comes_and_goes() {
    matrix("whoever_is_killed_between_two_calls_a_block_device_comes_and_goes", true);
}
