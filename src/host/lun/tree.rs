//! A `/sys`, `/dev`, `/run` and `/proc` of a test's own.

use std::path::Path;

use tempfile::TempDir;

use super::sysfs::Roots;
use super::tools::Host;

/// What the kernel would show.
#[derive(Debug)]
pub(super) struct Tree(TempDir);

impl Tree {
    pub(super) fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for directory in
            ["sys/class/block", "sys/class/scsi_host", "sys/class/iscsi_session", "sys/devices", "dev/mapper"]
        {
            std::fs::create_dir_all(tree.path().join(directory)).unwrap();
        }
        tree
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn roots(&self) -> Roots {
        let at = |name: &str| self.path().join(name);
        Roots {
            sys: at("sys"),
            dev: at("dev"),
            run: at("run"),
            proc: at("proc"),
            databases: vec![at("etc/iscsi")],
        }
    }

    /// Programs are looked for in `tools`.
    pub(super) fn host(&self) -> Host {
        Host::new(&[self.path().join("tools").into()], self.roots())
    }

    pub(super) fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.path().join(path)).ok()
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(super) fn symlink(&self, path: &str, to: &str) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(to, path).unwrap();
    }

    /// A disk at an address of a SCSI host, with no node.
    pub(super) fn disk(&self, name: &str, address: &str) {
        let host = address.split(':').next().unwrap();
        std::fs::create_dir_all(self.path().join(format!("sys/class/scsi_host/host{host}"))).unwrap();
        std::fs::create_dir_all(self.path().join(format!("sys/devices/{address}/block/{name}"))).unwrap();
        std::fs::create_dir_all(self.path().join(format!("sys/class/block/{name}/holders"))).unwrap();
        self.symlink(&format!("sys/class/block/{name}/device"), &format!("../../../devices/{address}"));
        self.write(&format!("sys/devices/{address}/delete"), "");
        self.write(&format!("sys/devices/{address}/wwid"), "naa.one");
    }

    /// Makes a SCSI host one of Fibre Channel.
    pub(super) fn adapter(&self, host: &str) {
        std::fs::create_dir_all(self.path().join("sys/class/scsi_host").join(host)).unwrap();
        std::fs::create_dir_all(self.path().join("sys/class/fc_host").join(host)).unwrap();
    }

    pub(super) fn link(&self, directory: &str, name: &str, to: &str) {
        self.symlink(&format!("dev/{directory}/{name}"), to);
    }

    /// A device-mapper device over others.
    pub(super) fn map(&self, node: &str, name: &str, uuid: &str, over: &[&str]) {
        self.write(&format!("sys/class/block/{node}/dm/name"), name);
        self.write(&format!("dev/mapper/{name}"), "");
        self.write(&format!("sys/class/block/{node}/dm/uuid"), uuid);
        for disk in over {
            self.write(&format!("sys/class/block/{node}/slaves/{disk}"), "");
            self.write(&format!("sys/class/block/{disk}/holders/{node}"), "");
        }
    }

    pub(super) fn multipathd(&self) {
        self.write("run/multipathd.pid", "77\n");
        self.write("proc/77/comm", "multipathd\n");
    }
}
