//! Tools of the system (mkfs, resize2fs, ...): each with a deadline and no longer than we live, but for those that must not stop
//! halfway.

use std::ffi::OsStr;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
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
    /// All that it wrote to its standard output, where that was kept.
    pub(super) stdout: Vec<u8>,
}

/// Starts tools. Each holds a lock of ours open: as long as one is left of a process that was killed, nobody gets the lock.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    held: Vec<Arc<OwnedFd>>,
    /// Where they are looked for.
    directories: Arc<[PathBuf]>,
    slots: Arc<Semaphore>,
}

impl Tools {
    /// Takes the lock that the tools are to hold open.
    pub(super) fn new(held: Arc<OwnedFd>) -> Self {
        Self::holding(vec![held], PATH.map(PathBuf::from).into())
    }

    /// Takes descriptors that the tools are to hold open, each under the number that it has here: a lock, and what
    /// `/proc/self/fd` names for them. Tools are looked for in these directories only.
    pub(super) fn holding(held: Vec<Arc<OwnedFd>>, directories: Arc<[PathBuf]>) -> Self {
        Self { held, directories, slots: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    /// Returns the directories in which these tools are looked for.
    pub(super) fn directories(&self) -> Arc<[PathBuf]> {
        Arc::clone(&self.directories)
    }

    /// Returns the directories in which tools are looked for unless somebody says otherwise.
    pub(super) fn usual_directories() -> Vec<PathBuf> {
        PATH.map(PathBuf::from).into()
    }

    /// Finds a tool where these tools are looked for.
    ///
    /// # Errors
    /// `Io` with the package to install.
    pub(super) fn tool(&self, name: &str, package: &'static str) -> Result<PathBuf, HostError> {
        find_in(&self.directories, name, package)
    }

    /// Finds a tool.
    ///
    /// # Errors
    /// `Io` with the package to install.
    pub(super) fn find(name: &str, package: &'static str) -> Result<PathBuf, HostError> {
        find_in(&Self::usual_directories(), name, package)
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
        self.feed(doing, about, tool, arguments, limit, None).await
    }

    /// As `run`, and the tool reads this from its standard input: a secret is in nobody's arguments, environment or files.
    ///
    /// # Errors
    /// As `run`.
    pub(super) async fn feed<A: AsRef<OsStr>>(
        &self,
        doing: &'static str,
        about: &Path,
        tool: &Path,
        arguments: impl IntoIterator<Item = A>,
        limit: Duration,
        input: Option<&[u8]>,
    ) -> Result<Ended, HostError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| HostError::Io { doing, path, source }
        };
        // Never closed; and if it were, only the limit would be gone.
        let _slot = self.slots.acquire().await.ok();
        let mut command = command(tool, arguments);
        if let Some(input) = input {
            command.stdin(in_memory(input).map_err(failed(tool))?);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        raw::tie(&mut command, &self.held);
        let child = command.spawn().map_err(failed(tool))?;
        match tokio::time::timeout(limit, child.wait_with_output()).await {
            Ok(output) => {
                let output = output.map_err(failed(about))?;
                let said = end_of(&[output.stdout.as_slice(), output.stderr.as_slice()].concat());
                Ok(Ended { status: output.status, said, stdout: output.stdout })
            }
            Err(_elapsed) => {
                Err(HostError::Deadline { doing, path: about.to_owned(), seconds: limit.as_secs() })
            }
        }
    }

    /// Runs a tool that must not be stopped halfway to its end, however long that takes: neither a deadline, nor a caller who
    /// gives up, nor our own death, nor a signal for the whole service ends it. The lock that it holds keeps others away.
    ///
    /// # Errors
    /// `Io` when it cannot be started. How it ended is for the caller to judge.
    pub(super) async fn finish<A: AsRef<OsStr>>(
        &self,
        about: &Path,
        tool: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Ended, HostError> {
        let failed = |doing: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| HostError::Io { doing, path, source }
        };
        let _slot = self.slots.acquire().await.ok();
        // No pipe: who writes to one that nobody reads any more fails.
        let name = "what a tool said";
        let said = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).map(std::fs::File::from);
        let mut said = said.map_err(|e| failed("make a file for", Path::new(name))(e.into()))?;
        let for_tool = || said.try_clone().map_err(failed("make a file for", Path::new(name)));
        let mut command = command(tool, arguments);
        command.stdout(for_tool()?).stderr(for_tool()?).process_group(0);
        raw::outlive(&mut command, &self.held);
        let mut child = command.spawn().map_err(failed("run", tool))?;
        let status = child.wait().await.map_err(failed("wait for", about))?;
        let mut text = Vec::new();
        let read = said.seek(SeekFrom::Start(0)).and_then(|_start| said.read_to_end(&mut text));
        read.map_err(failed("read", Path::new(name)))?;
        Ok(Ended { status, said: end_of(&text), stdout: Vec::new() })
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

fn find_in(directories: &[PathBuf], name: &str, package: &'static str) -> Result<PathBuf, HostError> {
    let found = directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| HostError::Io {
        doing: "find the program",
        path: name.into(),
        source: io::Error::new(io::ErrorKind::NotFound, format!("install {package}")),
    })
}

/// A file without a name that has this in it, to be read from its beginning. No pipe: nobody has to wait with the rest.
fn in_memory(content: &[u8]) -> io::Result<std::fs::File> {
    let file = rustix::fs::memfd_create("input", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(content)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn command<A: AsRef<OsStr>>(tool: &Path, arguments: impl IntoIterator<Item = A>) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the one place for tools; the callers say what ends them")]
    let mut command = Command::new(tool);
    command
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", PATH.join(":"))
        // libblkid's memory of each disk that the host ever saw: e2fsck reads all of it and looks every one of them up. Only a
        // journal on a disk of its own is found by it, and without it by asking every disk; what it says may be long past.
        .env("BLKID_FILE", "/dev/null")
        .current_dir("/")
        .stdin(Stdio::null());
    // Whoever makes a device-mapper device waits for udev to make its node, and makes it itself where nobody else does.
    if matches!(Path::new("/run/udev/control").try_exists(), Ok(false)) {
        command.env("DM_DISABLE_UDEV", "1");
    }
    command
}

/// The end of a tool's words in one line.
fn end_of(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said.get(said.len().saturating_sub(KEPT)..).unwrap_or_default());
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ").replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_tool_is_fed_is_all_that_it_reads() {
        let tools = Tools::holding(Vec::new(), Tools::usual_directories().into());
        let limit = Duration::from_secs(20);
        for (input, read) in [(Some(&b"a key\n"[..]), &b"a key\n"[..]), (None, b"")] {
            let none: [&str; 0] = [];
            let ended = tools.feed("read", Path::new("x"), Path::new("/bin/cat"), none, limit, input).await;
            assert_eq!(ended.unwrap().stdout, read);
        }
    }

    /// The thread that starts it ends, its caller gives up, and it is told to end: it goes on.
    #[expect(
        clippy::disallowed_methods,
        reason = "its runtime is gone when it waits, and the files are its own"
    )]
    #[test]
    fn what_must_not_stop_halfway_outlives_who_started_it() {
        let directory = tempfile::tempdir().unwrap();
        let (begun, done) = (directory.path().join("begun"), directory.path().join("done"));
        let lock = Arc::new(OwnedFd::from(std::fs::File::create(directory.path().join("lock")).unwrap()));
        let script = format!(
            "kill -TERM $$; echo word; touch {}; sleep 0.3; touch {}",
            begun.display(),
            done.display()
        );
        let ended = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let tools = Tools::new(lock);
                let arguments = ["-c", script.as_str()];
                let run = tools.finish(Path::new("x"), Path::new("/bin/sh"), arguments);
                let begun = async {
                    while !begun.exists() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                // Cancel-safe: given up on purpose.
                tokio::select! {
                    _ended = run => panic!("it ended too soon"),
                    () = begun => {}
                }
                let said = tools.finish(Path::new("x"), Path::new("/bin/echo"), ["a", "word"]).await.unwrap();
                assert!(said.status.success() && said.said == "a word", "{said:?}");
            });
        });
        ended.join().unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while !done.exists() {
            assert!(std::time::Instant::now() < until, "it did not get to its end");
            std::thread::yield_now();
        }
    }
}
