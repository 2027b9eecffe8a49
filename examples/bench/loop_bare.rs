//! The floor of the bundled driver: the same volume without it, by truncate, losetup, mkfs, mount and bind.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use anyhow::ensure;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// How it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// As an operator types it: five programs.
    Programs,
    /// What the kernel does without a program by one call of it each; losetup and mkfs remain.
    Calls,
}

/// A volume without a driver.
#[derive(Debug)]
pub(crate) struct Bare {
    image: PathBuf,
    staging: PathBuf,
    target: PathBuf,
    /// Its loop device, while it has one.
    node: Option<String>,
}

impl Bare {
    /// Makes the directories that a container orchestrator would make.
    pub(crate) fn new(directory: &Path, name: &str) -> anyhow::Result<Self> {
        let at = |kind: &str| directory.join("bare").join(kind);
        let pod = at("pods").join(name);
        let one = Self {
            image: at("images").join(name),
            staging: at("staging").join(name),
            target: pod.join("mount"),
            node: None,
        };
        for path in [&at("images"), &one.staging, &pod] {
            fs::create_dir_all(path)?;
        }
        Ok(one)
    }

    /// Returns where it is shown.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Makes the image, attaches, formats, mounts and binds it. All with the defaults of the programs, but for direct I/O and
    /// sectors of 4 KiB, which the driver's volumes have too.
    pub(crate) fn up(&mut self, bytes: i64, by: By) -> anyhow::Result<()> {
        match by {
            By::Programs => command("truncate", &[&"--size", &bytes.to_string(), &self.image]).map(drop)?,
            By::Calls => File::create_new(&self.image)?.set_len(u64::try_from(bytes)?)?,
        }
        let attach = ["--find", "--show", "--direct-io=on", "--sector-size=4096"];
        let [find, show, direct, sector] = &attach;
        let node = command("losetup", &[find, show, direct, sector, &self.image])?;
        let node = self.node.insert(node.trim().to_owned()).as_str();
        command("mkfs.ext4", &[&"-q", &node])?;
        match by {
            By::Programs => command("mount", &[&"--types", &"ext4", &node, &self.staging]).map(drop)?,
            By::Calls => mount(Some(node), &self.staging, Some("ext4"), MsFlags::empty(), None::<&str>)?,
        }
        DirBuilder::new().mode(0o750).create(&self.target)?;
        match by {
            By::Programs => command("mount", &[&"--bind", &self.staging, &self.target]).map(drop),
            By::Calls => {
                let nothing = None::<&str>;
                Ok(mount(Some(&self.staging), &self.target, nothing, MsFlags::MS_BIND, nothing)?)
            }
        }
    }

    /// Takes it away again.
    pub(crate) fn down(&mut self) -> anyhow::Result<()> {
        // It goes with its mount, or at once.
        self.detach()?;
        umount2(&self.target, MntFlags::empty())?;
        umount2(&self.staging, MntFlags::empty())?;
        fs::remove_dir(&self.target)?;
        Ok(fs::remove_file(&self.image)?)
    }

    fn detach(&mut self) -> anyhow::Result<()> {
        let Some(node) = self.node.take() else { return Ok(()) };
        command("losetup", &[&"--detach", &node]).map(drop)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Where something failed; the mounts go with the namespace.
        let _detached = self.detach();
    }
}

/// Runs a program to its end; returns what it printed.
pub(crate) fn command(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    let ended = command.args(arguments.iter().map(AsRef::as_ref)).stdin(Stdio::null()).output();
    let ended = ended.with_context(|| format!("start {program}"))?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "{program}: {}: {}", ended.status, said.trim());
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}
