//! A test's host with csi-driver-host-path and node-driver-registrar.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "every test binary uses a part of it"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::foreign::{Witnessed, assert_released, claim_of, create_volume, node_calls, program};
pub use crate::support::seen::mount_ids;

use crate::support::objects::csi_driver;
use crate::support::{Process, TestHost, pod_using};

pub const NAME: &str = "hostpath.csi.k8s.io";
pub const NODE: &str = "n1";

/// The two programs.
#[derive(Clone)]
pub struct Programs {
    pub driver: PathBuf,
    pub registrar: PathBuf,
}

impl Programs {
    /// Says NOT-RUN where one is missing.
    pub fn find(test: &str) -> Option<Self> {
        Some(Self {
            driver: program(test, "VOLUMED_TEST_HOSTPATHPLUGIN")?,
            registrar: program(test, "VOLUMED_TEST_REGISTRAR")?,
        })
    }
}

/// A host with the driver's directory.
pub struct Hostpath {
    pub host: TestHost,
    pub programs: Programs,
}

impl Hostpath {
    pub fn new(test: &str) -> Option<Self> {
        Some(Self::with(Programs::find(test)?))
    }

    pub fn with(programs: Programs) -> Self {
        Self { host: TestHost::new(), programs }
    }

    /// Where the socket of an instance lies: in the root, as a driver's deployment has it.
    pub fn socket(&self, instance: &str) -> PathBuf {
        self.host.root.join(format!("plugins/csi-hostpath{instance}/csi.sock"))
    }

    pub fn driver(&self, arguments: &[&str]) -> Process {
        self.instance("", arguments)
    }

    /// Starts an instance of the driver; all of them share one state.
    pub fn instance(&self, instance: &str, arguments: &[&str]) -> Process {
        let socket = self.socket(instance);
        fs::create_dir_all(socket.parent().expect("it has one")).expect("the plugin's directory");
        let mut command = Command::new(&self.programs.driver);
        command
            .arg("-endpoint")
            .arg(format!("unix://{}", socket.display()))
            .arg("-statedir")
            .arg(self.host.path("driver"))
            .args(["-nodeid", NODE, "-v", "5"])
            .args(arguments);
        self.host.spawn(command, &format!("driver{instance}.log"))
    }

    pub fn registrar(&self) -> Process {
        self.registrar_of("", "")
    }

    /// Starts a registrar for an instance, with its socket in a directory below the registry.
    pub fn registrar_of(&self, instance: &str, directory: &str) -> Process {
        let registry = self.host.root.join("plugins_registry").join(directory);
        fs::create_dir_all(&registry).expect("the registry");
        let socket = self.socket(instance).display().to_string();
        let mut command = Command::new(&self.programs.registrar);
        command
            .arg(format!("--csi-address={socket}"))
            .arg(format!("--kubelet-registration-path={socket}"))
            .arg(format!("--plugin-registration-path={}", registry.display()))
            .args(["-v", "5"]);
        self.host.spawn(command, &format!("registrar{instance}.log"))
    }

    pub fn calls(&self) -> Vec<Witnessed> {
        node_calls(&self.host.path("driver.log"))
    }

    /// Has the driver make a volume and writes its PV and claim.
    pub fn volume(&self, name: &str) -> String {
        let handle = create_volume(&self.socket(""), name);
        self.host.manifest(&format!("{name}.yaml"), &claim_of(NAME, name, &handle));
        handle
    }

    pub fn pod(&self, name: &str, volume: &str) {
        self.host.manifest(&format!("{name}.yaml"), &pod_using(name, &format!("uid-{name}"), volume));
    }

    pub fn release(&self, pod: &str) {
        self.host.remove_manifest(&format!("{pod}.yaml"));
        self.host.wait(&["--for=released", &format!("pod/{pod}")]);
    }

    /// Where the driver keeps a volume's data.
    pub fn data(&self, handle: &str) -> PathBuf {
        self.host.path("driver").join(handle)
    }

    /// What the driver believes of its volumes: handle, staging paths, target paths.
    pub fn believes(&self) -> Vec<(String, Vec<String>, Vec<String>)> {
        // It writes the file when it has something to say.
        let Ok(text) = fs::read(self.host.path("driver/state.json")) else { return Vec::new() };
        let state: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let texts = |value: &serde_json::Value| -> Vec<String> {
            let list = value.as_array().into_iter().flatten();
            list.map(|text| text.as_str().expect("a path").to_owned()).collect()
        };
        let volumes = state["Volumes"].as_array().into_iter().flatten();
        volumes
            .map(|volume| {
                let handle = volume["VolID"].as_str().expect("an id").to_owned();
                (handle, texts(&volume["Staged"]), texts(&volume["Published"]))
            })
            .collect()
    }

    /// Nothing is left here or in the driver's mind.
    pub fn assert_released(&self) {
        assert_released(&self.host);
        for (handle, staged, published) in self.believes() {
            assert!(staged.is_empty() && published.is_empty(), "{handle}: {staged:?} {published:?}");
        }
    }
}

/// Whether the driver's directory is mounted at a target: a file made on one side is seen on the other.
pub fn shows(target: &Path, data: &Path, file: &str) -> bool {
    fs::write(target.join(file), file).expect("a file in the volume");
    fs::read_to_string(data.join(file)).is_ok_and(|text| text == file)
}

/// A CSIDriver object of the driver.
pub fn driver_object(spec: &str) -> String {
    csi_driver(NAME, spec)
}

pub fn drivers(host: &TestHost) -> String {
    String::from_utf8_lossy(&host.volumectl(&["drivers"]).stdout).into_owned()
}

/// Ends everything and lets go of every mount.
pub fn reboot(host: &TestHost, processes: [Process; 3]) {
    for process in processes {
        process.kill();
    }
    host.unmount_all();
}
