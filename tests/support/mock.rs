//! A test's host with csi-test's mock-driver.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "every test binary uses a part of it"
)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::foreign::{Witnessed, assert_released, claim_of, node_calls, program};
use crate::support::{Process, TestHost, pod_using};

pub const NAME: &str = "io.kubernetes.storage.mock";
pub const VARIABLE: &str = "VOLUMED_TEST_MOCK_DRIVER";
pub const UP: [&str; 2] = ["NodeStageVolume", "NodePublishVolume"];
pub const DOWN: [&str; 2] = ["NodeUnpublishVolume", "NodeUnstageVolume"];

/// A host whose configuration names the driver.
pub struct Mock {
    pub host: TestHost,
    pub program: PathBuf,
}

impl Mock {
    /// Says NOT-RUN where there is no driver.
    pub fn new(test: &str) -> Option<Self> {
        Some(Self::with(program(test, VARIABLE)?))
    }

    pub fn with(program: PathBuf) -> Self {
        let mock = Self { host: TestHost::new(), program };
        let endpoint = mock.socket().display().to_string();
        let config = format!("[drivers.\"{NAME}\"]\nendpoint = \"{endpoint}\"\n");
        fs::write(mock.host.path("volumed.toml"), config).expect("a configuration");
        mock
    }

    pub fn socket(&self) -> PathBuf {
        self.host.path("csi.sock")
    }

    /// Writes hooks; `fail('point', n, CODE)` fails n times and is OK from then on.
    pub fn hooks(&self, hooks: &[(String, String)]) {
        let mut text = String::from(
            "globals: \"n = {}; function fail(point, times, code) { n[point] = (n[point] || 0) + 1; \
             return n[point] <= times ? code : OK; }\"\n",
        );
        for (point, script) in hooks {
            text.push_str(&format!("{point}: \"{script}\"\n"));
        }
        fs::write(self.host.path("hooks"), text).expect("hooks");
    }

    pub fn driver(&self, arguments: &[&str]) -> Process {
        let mut command = Command::new(&self.program);
        command.env("CSI_ENDPOINT", format!("unix://{}", self.socket().display())).args(["-v", "5"]);
        if self.host.path("hooks").is_file() {
            command.arg("-hooks-file").arg(self.host.path("hooks"));
        }
        command.args(arguments);
        self.host.spawn(command, "driver.log")
    }

    pub fn calls(&self) -> Vec<Witnessed> {
        node_calls(&self.host.path("driver.log"))
    }

    pub fn of(&self, method: &str) -> Vec<Witnessed> {
        self.calls().into_iter().filter(|call| call.method == method).collect()
    }

    /// Writes the manifests of a pod that uses a volume.
    pub fn wish(&self, handle: &str) {
        self.host.manifest("claim.yaml", &claim_of(NAME, "data", handle));
        self.host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    }

    pub fn release(&self) {
        self.host.remove_manifest("web.yaml");
        self.host.wait(&["--for=released", "pod/web"]);
        assert_released(&self.host);
    }
}
