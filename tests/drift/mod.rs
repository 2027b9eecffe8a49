//! What the tests of drift, use and features share: objects, what volumectl says of them, and the loop devices of a host.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "every test binary uses a part of it"
)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

pub use crate::support::seen::{CALLS, methods, volumes};

use crate::support::{DRIVER, TestHost, loop_devices, objects, seen, until};

/// Returns how often a method was called.
pub fn count(host: &TestHost, method: &str) -> usize {
    host.calls(&[method]).len()
}

/// Runs a tool that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the tool can be run");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn umount(path: &Path) {
    run("umount", &[text(path)]);
}

/// Mounts a file system that is nobody's volume.
pub fn stranger(at: &Path) {
    run("mount", &["-t", "tmpfs", "stranger", text(at)]);
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a test's path is text")
}

/// A `CSIDriver` of the example driver.
pub fn csi_driver(spec: &str) -> String {
    objects::csi_driver(DRIVER, spec)
}

/// Where a block volume lies.
pub struct BlockPaths {
    /// Where its driver publishes it.
    pub published: PathBuf,
    /// Where volumed binds it.
    pub map: PathBuf,
    /// Where the pod finds it.
    pub link: PathBuf,
}

pub fn block_paths(host: &TestHost, uid: &str, volume: &str) -> BlockPaths {
    let devices = host.root.join("plugins/kubernetes.io/csi/volumeDevices");
    BlockPaths {
        published: devices.join("publish").join(volume).join(uid),
        map: devices.join(volume).join("dev").join(uid),
        link: host.root.join(format!("pods/{uid}/volumeDevices/kubernetes.io~csi/{volume}")),
    }
}

/// Returns where a mounted volume is staged.
pub fn staging(host: &TestHost) -> PathBuf {
    let staged = host.mounts().into_iter().find(|point| point.ends_with("globalmount"));
    staged.expect("a volume is staged")
}

/// Returns what a pod's first volume is blocked by, as (step, code, detail).
pub fn blocked(host: &TestHost, pod: &str) -> Vec<(String, String, String)> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_pod = volumes(host).into_iter().filter(|volume| volume["pod"] == pod);
    of_pod
        .flat_map(|volume| volume["blocked"].as_array().cloned().unwrap_or_default())
        .map(|blocked| (word(&blocked["step"]), word(&blocked["code"]), word(&blocked["detail"])))
        .collect()
}

/// Waits until a pod's volume is blocked by a cause, and returns the cause's words.
pub fn until_blocked(host: &TestHost, pod: &str, code: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = blocked(host, pod);
        if let Some((_, _, detail)) = found.iter().find(|(_, found, _)| found == code) {
            return detail.clone();
        }
        assert!(
            Instant::now() < deadline,
            "{pod} is not blocked by {code}: {found:?}\n{}\n{}",
            host.explain(),
            host.logs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until nothing is recorded any more, then checks that nothing lies about.
pub fn assert_released(host: &TestHost) {
    seen::assert_released(host);
    assert_eq!(loop_devices(&host.path("")), Vec::<PathBuf>::new(), "loop devices are left\n{}", host.logs());
}

/// Waits for a state and returns how long that took.
pub fn within(what: &str, limit: Duration, mut state: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !state() {
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    begun.elapsed()
}

/// The nodes of a block volume's device, by which its locks are known also when their paths are gone.
pub struct Nodes(Vec<(u64, u64)>);

impl Nodes {
    pub fn of(paths: &[&Path]) -> Self {
        Self(paths.iter().filter_map(|path| fs::metadata(path).ok()).map(|at| (at.dev(), at.ino())).collect())
    }

    /// Returns the loop devices that hold the device.
    pub fn locks(&self) -> Vec<String> {
        let columns = "NAME,BACK-MAJ:MIN,BACK-INO";
        let list = run("losetup", &["--list", "--raw", "--noheadings", "-O", columns]).replace("\\x20", "");
        let on = |line: &str| {
            let mut fields = line.split(' ').skip(1);
            let (major, minor) = fields.next()?.split_once(':')?;
            let number = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
            Some((number, fields.next()?.parse().ok()?))
        };
        let held = list.lines().filter(|line| on(line).is_some_and(|node| self.0.contains(&node)));
        held.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    }
}

/// Gives time to do what must not be done: two complete readings and what they make due.
pub fn two_readings(host: &TestHost) {
    let begun = Instant::now();
    until("readings a grace apart", || {
        let asked = host.volumectl(&["wait", "--timeout", "2s", "pod/none"]);
        asked.status.code() == Some(3) && begun.elapsed() > Duration::from_millis(1500)
    });
}
