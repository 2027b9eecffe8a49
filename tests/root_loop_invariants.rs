//! csi.md 10 with the bundled driver, as `drivers_invariants` has it with csi-driver-host-path: what real mounts, loop devices and
//! file systems show of 2, 4, 9, 10, 12, 23, 24, 26, 28, 29, 32 and 34. Its node takes any number of volumes (25), and it has no
//! memory to lose (31).

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

#[path = "support/foreign.rs"]
mod foreign;
mod support;

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use foreign::{
    assert_released, block, claim_of, create_block_volume, create_volume, device_user, explanation,
};
use support::seen::mount_ids;
use support::{Process, TestHost, loop_devices, pod_using, until};
use volumed::model::{DriverName, Layout};

const LOOP: &str = "loop.csi.volumed.io";

struct Bundled {
    host: TestHost,
}

impl Bundled {
    fn new() -> Self {
        Self { host: TestHost::new() }
    }

    fn socket(&self) -> PathBuf {
        self.host.root.join("plugins").join(LOOP).join("csi.sock")
    }

    fn start(&self) -> Process {
        fs::create_dir_all(self.socket().parent().expect("it has one")).expect("the plugin's directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_volumed-csi-loop"));
        command.args(["--node-id", "n1"]).arg("--dir").arg(self.host.path("images"));
        command.arg("--endpoint").arg(self.socket());
        command.arg("--plugins-registry").arg(self.host.root.join("plugins_registry"));
        self.host.spawn(command, "loop.log")
    }

    /// Has the driver make a volume and writes its PV and claim.
    fn volume(&self, name: &str) -> String {
        let handle = create_volume(&self.socket(), name);
        self.host.manifest(&format!("{name}.yaml"), &claim_of(LOOP, name, &handle));
        handle
    }

    fn administer(&self, arguments: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volumed-csi-loop"));
        command.arg("volume").args(arguments).arg("--driver-socket").arg(self.socket());
        let output = command.output().expect("it can be run");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    fn pod(&self, name: &str, volume: &str) {
        self.host.manifest(&format!("{name}.yaml"), &pod_using(name, &format!("uid-{name}"), volume));
    }

    fn release(&self, pod: &str) {
        self.host.remove_manifest(&format!("{pod}.yaml"));
        self.host.wait(&["--for=released", &format!("pod/{pod}")]);
    }

    fn target(&self, pod: &str) -> PathBuf {
        self.host.target(&format!("uid-{pod}"), "data")
    }

    fn staging(&self, handle: &str) -> PathBuf {
        let layout = Layout::new(&self.host.root);
        layout.absolute(&layout.csi_staging(&DriverName::new(LOOP).expect("a name"), handle))
    }

    fn status(&self) -> String {
        String::from_utf8_lossy(&self.host.volumectl(&["status"]).stdout).into_owned()
    }

    fn drivers(&self) -> String {
        String::from_utf8_lossy(&self.host.volumectl(&["drivers"]).stdout).into_owned()
    }

    /// Nothing is left on the node, and every persistent volume is still there.
    fn assert_released(&self, handles: &[&str]) {
        assert_released(&self.host);
        until("no loop device is left", || loop_devices(&self.host.path("images")).is_empty());
        for handle in handles {
            assert!(self.host.path("images/volumes").join(handle).join("image").is_file(), "{handle}");
        }
    }
}

fn sorted(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths.sort();
    paths
}

fn mount(arguments: &[&str], at: &Path) {
    assert!(Command::new("mount").args(arguments).arg(at).status().expect("mount").success());
}

fn unmount(at: &Path) {
    assert!(Command::new("umount").arg(at).status().expect("umount").success());
}

fn write(at: &Path, text: &str) {
    fs::write(at, text).expect("it can be written");
}

fn read(at: &Path) -> String {
    fs::read_to_string(at).expect("it is there")
}

#[test]
fn invariants_02_and_04_one_staging_for_all_pods_until_the_last_goes() {
    let real = Bundled::new();
    let host = &real.host;
    let _driver = real.start();
    let _daemon = host.volumed(&[]);
    let handle = real.volume("data");
    let staging = real.staging(&handle);
    for round in ["first", "second"] {
        real.pod("one", "data");
        real.pod("two", "data");
        host.wait(&["pod/one", "pod/two"]);
        let (one, two) = (real.target("one"), real.target("two"));
        assert_eq!(sorted(host.mounts()), sorted(vec![staging.clone(), one.clone(), two.clone()]), "{round}");
        assert_eq!(loop_devices(&host.path("images")).len(), 1, "one device for one volume");
        write(&one.join(round), round);
        assert_eq!(read(&two.join(round)), round);
        real.release("one");
        assert_eq!(sorted(host.mounts()), sorted(vec![staging.clone(), two.clone()]), "two still has it");
        assert_eq!(read(&two.join("first")), "first");
        real.release("two");
        real.assert_released(&[&handle]);
    }
}

#[test]
fn invariant_09_no_directory_goes_with_a_mount_or_a_file_in_it() {
    let real = Bundled::new();
    let host = &real.host;
    let _driver = real.start();
    let _daemon = host.volumed(&[]);
    let handle = real.volume("data");
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    let (target, beside) = (real.target("web"), host.root.join("pods/uid-web/beside"));
    fs::create_dir(&beside).expect("a directory");
    mount(&["-t", "tmpfs", "stranger"], &beside);
    write(&beside.join("file"), "a stranger's");
    mount(&["-t", "tmpfs", "above"], &target);
    write(&target.join("file"), "above");
    host.remove_manifest("web.yaml");
    until("the obstacle is named", || explanation(host, "web").contains("above"));
    assert_eq!(read(&target.join("file")), "above");
    unmount(&target);
    until("only the stranger's is left", || host.mounts() == [beside.clone()]);
    assert_eq!(read(&beside.join("file")), "a stranger's");
    unmount(&beside);
    until("no loop device is left", || loop_devices(&host.path("images")).is_empty());
    assert!(host.path("images/volumes").join(handle).join("image").is_file());
}

#[test]
fn invariants_10_and_28_whoever_dies_one_mount_stays_and_nothing_lies_on_top() {
    let real = Bundled::new();
    let host = &real.host;
    let driver = real.start();
    let handle = real.volume("data");
    real.pod("web", "data");
    // Ended after the driver mounted, so that it is called again on its own mount.
    let doomed = host.volumed(&[("VOLUMED_TEST_FAULT", "publish:call")]);
    assert!(!doomed.ended().success());
    let daemon = host.volumed(&[]);
    host.wait(&["pod/web"]);
    let ids = mount_ids(host);
    assert_eq!(sorted(host.mounts()), sorted(vec![real.staging(&handle), real.target("web")]));
    write(&real.target("web").join("file"), "precious");

    driver.kill();
    until("its end is seen", || real.drivers().contains("disconnected"));
    host.wait(&["pod/web"]);
    let driver = real.start();
    until("it is back", || real.drivers().contains("ready"));
    daemon.signal("-TERM");
    assert!(daemon.ended().success(), "{}", host.logs());
    assert_eq!(mount_ids(host), ids, "stopping takes nothing down");
    let daemon = host.volumed(&[]);
    host.wait(&["pod/web"]);
    daemon.kill();
    driver.kill();

    // The manifest goes while nobody is there to hear of it.
    host.remove_manifest("web.yaml");
    let _daemon = host.volumed(&[]);
    until("the takedown waits for the driver", || explanation(host, "web").contains(LOOP));
    assert_eq!(mount_ids(host), ids, "nothing is unmounted without the driver");
    assert_eq!(read(&real.target("web").join("file")), "precious");
    let _driver = real.start();
    host.wait(&["--for=released", "pod/web"]);
    real.assert_released(&[&handle]);
}

#[test]
fn invariant_12_the_staging_path_is_a_directory_also_of_a_block_volume() {
    let real = Bundled::new();
    let host = &real.host;
    let _driver = real.start();
    let _daemon = host.volumed(&[]);
    let handle = create_block_volume(&real.socket(), "data");
    host.manifest("data.yaml", &block(&claim_of(LOOP, "data", &handle)));
    host.manifest("web.yaml", &device_user(&pod_using("web", "uid-web", "data")));
    host.wait(&["pod/web"]);
    let device = host.root.join("pods/uid-web/volumeDevices/kubernetes.io~csi/data");
    assert!(fs::metadata(&device).expect("the device").file_type().is_block_device());
    let staging = host.root.join("plugins/kubernetes.io/csi/volumeDevices/staging/data");
    assert!(staging.is_dir(), "{staging:?}: {:?}", host.tree("plugins"));
    real.release("web");
    real.assert_released(&[&handle]);
}

#[test]
fn invariants_23_and_32_a_claim_that_goes_or_comes_twice_takes_nothing_from_a_pod() {
    let real = Bundled::new();
    let host = &real.host;
    let _driver = real.start();
    let _daemon = host.volumed(&[]);
    let handle = real.volume("data");
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    let ids = mount_ids(host);
    host.manifest("two.yaml", &claim_of(LOOP, "two", &handle));
    real.pod("second", "two");
    until("the second is refused", || {
        explanation(host, "second").contains("PersistentVolume two has the same driver")
    });
    assert_eq!(mount_ids(host), ids);
    host.remove_manifest("second.yaml");
    host.remove_manifest("two.yaml");
    host.wait(&["--for=released", "pod/second"]);
    host.remove_manifest("data.yaml");
    until("there is none", || explanation(host, "web").contains("PersistentVolumeClaim"));
    assert_eq!(mount_ids(host), ids);
    real.release("web");
    real.assert_released(&[&handle]);
}

#[test]
fn invariant_24_a_read_write_once_pod_volume_has_one_pod() {
    let real = Bundled::new();
    let host = &real.host;
    let _driver = real.start();
    let _daemon = host.volumed(&[]);
    let handle = create_volume(&real.socket(), "data");
    host.manifest("data.yaml", &claim_of(LOOP, "data", &handle).replace("ReadWriteOnce", "ReadWriteOncePod"));
    real.pod("one", "data");
    host.wait(&["pod/one"]);
    real.pod("two", "data");
    until("the second waits", || explanation(host, "two").contains("ReadWriteOncePod"));
    assert_eq!(sorted(host.mounts()), sorted(vec![real.staging(&handle), real.target("one")]));
    host.remove_manifest("one.yaml");
    host.wait(&["pod/two"]);
    assert_eq!(sorted(host.mounts()), sorted(vec![real.staging(&handle), real.target("two")]));
    real.release("two");
    real.assert_released(&[&handle]);
}

#[test]
fn invariant_26_a_volume_grows_under_its_pod_and_before_its_next_has_it() {
    let real = Bundled::new();
    let host = &real.host;
    let _driver = real.start();
    let _daemon = host.volumed(&[]);
    until("it serves", || real.drivers().contains("ready"));
    real.administer(&["create", "data", "--size", "320Mi", "--fs", "xfs"]);
    let size = |size: &str| {
        let claim = claim_of(LOOP, "data", "data").replace("storage: 1Gi", &format!("storage: {size}"));
        host.manifest("data.yaml", &claim.replace("volumeAttributes: {colour: blue}", "fsType: xfs"));
    };
    let bytes = |pod: &str| {
        let output = Command::new("stat").args(["-f", "-c", "%b %S"]).arg(real.target(pod)).output();
        let text = String::from_utf8(output.expect("stat").stdout).expect("text");
        text.split_whitespace().map(|number| number.parse::<u64>().expect("a number")).product::<u64>() >> 20
    };
    size("320Mi");
    real.pod("one", "data");
    host.wait(&["pod/one"]);
    let ids = mount_ids(host);
    assert!(bytes("one") <= 320);
    real.administer(&["resize", "data", "--size", "448Mi"]);
    size("448Mi");
    until("it has grown under its pod", || (321..=448).contains(&bytes("one")));
    assert_eq!(mount_ids(host), ids);
    real.release("one");
    real.administer(&["resize", "data", "--size", "640Mi"]);
    size("640Mi");
    real.pod("two", "data");
    host.wait(&["pod/two"]);
    assert!((449..=640).contains(&bytes("two")), "{} MiB", bytes("two"));
    real.release("two");
    real.assert_released(&["data"]);
}

#[test]
fn invariant_29_after_a_reboot_the_mounts_are_made_again() {
    let real = Bundled::new();
    let host = &real.host;
    let driver = real.start();
    let daemon = host.volumed(&[("VOLUMED_TEST_BOOT_ID", "first")]);
    let handle = real.volume("data");
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    write(&real.target("web").join("before"), "before");
    daemon.kill();
    driver.kill();
    host.unmount_all();
    until("no loop device is left", || loop_devices(&host.path("images")).is_empty());

    // The daemon comes first, as it may at a boot.
    let _daemon = host.volumed(&[("VOLUMED_TEST_BOOT_ID", "second")]);
    let _driver = real.start();
    host.wait(&["pod/web"]);
    assert_eq!(sorted(host.mounts()), sorted(vec![real.staging(&handle), real.target("web")]));
    assert_eq!(read(&real.target("web").join("before")), "before");
    real.release("web");
    real.assert_released(&[&handle]);
}

#[test]
fn invariant_34_an_empty_manifest_holds_every_takedown_and_says_what_helps() {
    let real = Bundled::new();
    let host = &real.host;
    let _driver = real.start();
    let _daemon = host.volumed(&[]);
    let handle = real.volume("data");
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    let ids = mount_ids(host);
    // What a redirection of a command that failed leaves.
    let empty = host.manifests.join("left.yaml");
    write(&empty, "");
    until("status names it", || real.status().contains("left.yaml"));
    let status = real.status();
    assert!(status.contains("is empty") && status.contains("remove the file"), "{status}");
    host.remove_manifest("web.yaml");
    let told =
        |text: &str| ["left.yaml", "is empty", "remove the file"].iter().all(|part| text.contains(part));
    until("explain names it, and what helps", || told(&explanation(host, "web")));
    assert_eq!(mount_ids(host), ids);
    fs::remove_file(&empty).expect("the empty file");
    host.wait(&["--for=released", "pod/web"]);
    real.assert_released(&[&handle]);
}
