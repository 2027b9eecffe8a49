//! The bundled driver among foreign programs in one volumed: registered by node-driver-registrar as a driver in a cluster is, and
//! beside csi-driver-host-path. Without `VOLUMED_TEST_HOSTPATHPLUGIN` and `VOLUMED_TEST_REGISTRAR` the tests say NOT-RUN.

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

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use foreign::{assert_released, claim_of, create_volume, program};
use hostpath::{Hostpath, Programs, drivers, mount_ids};
use support::{Process, TestHost, loop_devices, pod_using, until};

const LOOP: &str = "loop.csi.volumed.io";

/// The bundled driver on a host that `Hostpath` made, where its registrar looks for an instance of that name.
struct Bundled<'a> {
    real: &'a Hostpath,
    instance: &'static str,
}

impl Bundled<'_> {
    fn images(&self) -> PathBuf {
        self.real.host.path("images")
    }

    fn socket(&self) -> PathBuf {
        self.real.socket(self.instance)
    }

    /// Starts it; with `registers` it does so itself.
    fn start(&self, registers: bool) -> Process {
        let host = &self.real.host;
        fs::create_dir_all(self.socket().parent().expect("it has one")).expect("the plugin's directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_volumed-csi-loop"));
        command.args(["--node-id", "n1"]).arg("--dir").arg(self.images());
        command.arg("--endpoint").arg(self.socket());
        if registers {
            command.arg("--plugins-registry").arg(host.root.join("plugins_registry"));
        }
        host.spawn(command, "loop.log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.real.host.path("loop.log")).unwrap_or_default()
    }

    /// Has it make a volume and writes its PV and claim.
    fn volume(&self, name: &str) -> String {
        let handle = create_volume(&self.socket(), name);
        self.real.host.manifest(&format!("{name}.yaml"), &claim_of(LOOP, name, &handle));
        handle
    }
}

/// The sockets in the registry, by name.
fn registered(host: &TestHost) -> Vec<String> {
    let entries = fs::read_dir(host.root.join("plugins_registry")).into_iter().flatten().flatten();
    let sockets = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
    let mut names: Vec<String> =
        sockets.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn node_driver_registrar_registers_it() {
    let Some(registrar) = program("node_driver_registrar_registers_it", "VOLUMED_TEST_REGISTRAR") else {
        return;
    };
    let real = Hostpath::with(Programs { driver: PathBuf::new(), registrar });
    let (host, bundled) = (&real.host, Bundled { real: &real, instance: "-none" });
    let _volumed = host.volumed(&[]);
    let driver = bundled.start(false);
    until("it serves", || bundled.log().contains(" ready "));
    let handle = bundled.volume("data");
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    assert_eq!(registered(host), Vec::<String>::new(), "nobody asked it to register");
    let registrar = real.registrar_of(bundled.instance, "");
    host.wait(&["pod/web"]);
    assert_eq!(registered(host), [format!("{LOOP}-reg.sock")]);
    assert!(drivers(host).contains(LOOP), "{}", drivers(host));
    let target = host.target("uid-web", "data");
    fs::write(target.join("file"), "x").expect("it can be written");
    let mounts = mount_ids(host);

    // Both start again, as after an upgrade.
    driver.kill();
    registrar.signal("-TERM");
    let _status = registrar.ended();
    let _driver = bundled.start(false);
    until("it serves again", || bundled.log().matches(" ready ").count() == 2);
    let _registrar = real.registrar_of(bundled.instance, "");
    until("it is registered again", || registered(host) == [format!("{LOOP}-reg.sock")]);
    assert_eq!(mount_ids(host), mounts, "a mount was touched");
    assert_eq!(fs::read_to_string(target.join("file")).expect("it is there"), "x");
    real.release("web");
    assert_released(host);
    until("no loop device is left", || loop_devices(&bundled.images()).is_empty());
    assert!(bundled.images().join("volumes").join(handle).exists(), "a persistent volume stays");
}

#[test]
fn it_runs_beside_csi_driver_host_path() {
    let Some(real) = Hostpath::new("it_runs_beside_csi_driver_host_path") else { return };
    let (host, bundled) = (&real.host, Bundled { real: &real, instance: "-none" });
    let (foreign, _registrar) = (real.driver(&[]), real.registrar());
    let own = bundled.start(true);
    let volumed = host.volumed(&[]);
    until("both are registered", || registered(host).len() == 2);
    let (theirs, ours) = (real.volume("theirs"), bundled.volume("ours"));
    // One pod has a volume of each, and a second one shares both.
    for pod in ["a", "b"] {
        let second = "\n  - {name: more, persistentVolumeClaim: {claimName: ours}}\n";
        let text = pod_using(pod, &format!("uid-{pod}"), "theirs");
        let mounts = "volumeMounts: [{name: more, mountPath: /more}, ";
        let text = text.trim_end().replace("volumeMounts: [", mounts) + second;
        host.manifest(&format!("{pod}.yaml"), &text);
        host.wait(&[&format!("pod/{pod}")]);
    }
    for driver in [LOOP, hostpath::NAME] {
        assert!(drivers(host).contains(driver), "{}", drivers(host));
    }
    fs::write(host.target("uid-a", "ours").join("file"), "ours").expect("it can be written");
    assert!(hostpath::shows(&host.target("uid-a", "theirs"), &real.data(&theirs), "theirs"));
    assert!(!bundled.log().contains(&theirs), "it was asked for the other's volume\n{}", bundled.log());
    assert!(real.believes().iter().all(|(handle, ..)| *handle != ours), "the other has ours");
    let mounts = mount_ids(host);

    // All three die at the same time, and nobody's mounts change.
    for process in [foreign, own, volumed] {
        process.kill();
    }
    let (_foreign, _own) = (real.driver(&[]), bundled.start(true));
    // A registrar that is refused ends, and here nobody would start it again: its driver has to be back first.
    until("both serve again", || {
        [real.socket(""), bundled.socket()].iter().all(|socket| UnixStream::connect(socket).is_ok())
    });
    let _volumed = host.volumed(&[]);
    host.wait(&["pod/a"]);
    host.wait(&["pod/b"]);
    assert_eq!(mount_ids(host), mounts, "a mount was touched");
    assert_eq!(fs::read_to_string(host.target("uid-b", "ours").join("file")).expect("there"), "ours");
    real.release("a");
    assert_eq!(fs::read_to_string(host.target("uid-b", "ours").join("file")).expect("there"), "ours");
    real.release("b");
    real.assert_released();
    until("no loop device is left", || loop_devices(&bundled.images()).is_empty());
}
