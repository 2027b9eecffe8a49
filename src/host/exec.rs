//! Tools of the system (mkfs, resize2fs, ...): each with a deadline, none of them longer than we live.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::Semaphore;

use super::{HostError, raw};

/// Where tools are looked for, whatever the environment says.
const PATH: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How much of what a tool said is kept: the end says why it gave up.
const KEPT: usize = 2 << 10;

/// How many tools run at a time (design 5, "Limits").
const AT_A_TIME: usize = 16;

/// How a tool ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// The end of what it said, on both streams.
    pub(super) said: String,
}

/// Starts tools. Each holds a lock of ours open: as long as one is left of a process that was killed, nobody gets the lock.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    held: Arc<OwnedFd>,
    slots: Arc<Semaphore>,
}

impl Tools {
    /// Takes the lock that the tools are to hold open.
    pub(super) fn new(held: Arc<OwnedFd>) -> Self {
        Self { held, slots: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    /// Finds a tool.
    ///
    /// # Errors
    /// `Io` with the package to install.
    pub(super) fn find(name: &str, package: &'static str) -> Result<PathBuf, HostError> {
        let found = PATH.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.is_file());
        found.ok_or_else(|| HostError::Io {
            doing: "find the program",
            path: name.into(),
            source: io::Error::new(io::ErrorKind::NotFound, format!("install {package}")),
        })
    }

    /// Runs a tool to its end. Dropped, it is killed.
    ///
    /// # Errors
    /// `Io` when it cannot be started, `Deadline` when it was killed for being late. How it ended is for the caller to judge.
    pub(super) async fn run<A: AsRef<OsStr>>(
        &self,
        doing: &'static str,
        about: &Path,
        tool: &Path,
        arguments: impl IntoIterator<Item = A>,
        limit: Duration,
    ) -> Result<Ended, HostError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| HostError::Io { doing, path, source }
        };
        // Never closed; and if it were, only the limit would be gone.
        let _slot = self.slots.acquire().await.ok();
        #[expect(clippy::disallowed_methods, reason = "the one place for tools: killed at its deadline")]
        let mut command = Command::new(tool);
        command
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", PATH.join(":"))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        raw::tie(&mut command, self.held.as_fd());
        let child = command.spawn().map_err(failed(tool))?;
        match tokio::time::timeout(limit, child.wait_with_output()).await {
            Ok(output) => {
                let output = output.map_err(failed(about))?;
                let mut said = output.stdout;
                said.extend(output.stderr);
                Ok(Ended { status: output.status, said: end_of(&said) })
            }
            Err(_elapsed) => {
                Err(HostError::Deadline { doing, path: about.to_owned(), seconds: limit.as_secs() })
            }
        }
    }

    /// As `run`, but any end other than success is an error with what the tool said.
    ///
    /// # Errors
    /// As `run`.
    pub(super) async fn must<A: AsRef<OsStr>>(
        &self,
        doing: &'static str,
        about: &Path,
        tool: &Path,
        arguments: impl IntoIterator<Item = A>,
        limit: Duration,
    ) -> Result<String, HostError> {
        let ended = self.run(doing, about, tool, arguments, limit).await?;
        if ended.status.success() { Ok(ended.said) } else { Err(ended.failure(doing, about, tool)) }
    }
}

impl Ended {
    /// Returns the error for a tool that did not do what it was told.
    pub(super) fn failure(&self, doing: &'static str, about: &Path, tool: &Path) -> HostError {
        let name = tool.file_name().unwrap_or_default().display();
        let source = io::Error::other(format!("{name}: {}: {}", self.status, self.said));
        HostError::Io { doing, path: about.to_owned(), source }
    }
}

/// The end of a tool's words in one line.
fn end_of(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said.get(said.len().saturating_sub(KEPT)..).unwrap_or_default());
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ").replace(|c: char| c.is_control(), " ")
}
