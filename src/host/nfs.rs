//! Exports of NFS servers, mounted by mount.nfs (kubelet.md 4.7) where nobody sees it until it is right.
//!
//! mount.nfs asks the server which protocols it speaks, and may wait for it for good. So it runs in a child process, and that
//! has a thread with a mount namespace of its own for it: what it mounts is mounted there. Only when it has ended well is a copy
//! of that one mount moved to the target, which by then must still be an empty directory with nothing mounted on it. A
//! mount.nfs that is given up leaves nothing: its mount ends with its namespace, however late it comes.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use serde::{Deserialize, Serialize};

use super::exec::Tools;
use super::mount_table;
use super::options::Attributes;
use super::path::{self, BENEATH, Root};
use super::{HostError, raw};
use crate::model::RootPath;

/// How long mount.nfs may take. A kubelet gives it 2 min, in which nobody hears why it waits; here it is tried again anyway.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

const HELPER: &str = "mount.nfs";

/// An export of a server, and where it is to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NfsMount {
    /// Host name or address; an IPv6 address without brackets.
    pub server: String,
    /// The server's path.
    pub path: String,
    /// A directory that is there, empty.
    pub target: RootPath,
    /// Nobody can write to it there.
    pub read_only: bool,
    /// Options as mount.nfs takes them, each one or several with commas between them.
    pub options: Vec<String>,
}

/// An export that is not mounted: nothing was left at the target.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {}: {said}", .mount.source())]
pub struct NfsError {
    /// What was to be mounted.
    pub mount: NfsMount,
    /// Why, as far as it is known.
    pub cause: NfsCause,
    /// What mount.nfs said, or what is said in its place.
    pub said: String,
}

/// Why an export is not mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NfsCause {
    /// mount.nfs is not installed.
    NoHelper,
    /// The kernel has no NFS.
    NoKernel,
    /// mount.nfs waited for the server until its time was up.
    Late,
    /// mount.nfs said that nothing answers at the server's address.
    Unreachable,
    /// The server is there, and no NFS server on it.
    NoService,
    /// The server's name is not known.
    NoSuchServer,
    /// It does not export the path.
    NoExport,
    /// It does not export it to this host.
    Denied,
    /// It does not speak this version or transport.
    Version,
    /// An option is not known or does not go with another.
    Options,
    /// It has forgotten what it exported.
    Stale,
    /// For NFSv3 something that locks files is missing on this host.
    Locks,
    /// Something else.
    Other,
}

/// The same, for a child process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    tools_in: Vec<OsString>,
    root: OsString,
    target: OsString,
    source: String,
    options: String,
    read_only: bool,
}

/// Why a child did not show an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    /// It could not be mounted.
    Mount(NfsCause, String),
    /// Something is mounted at the target.
    Covered,
    /// Something lies in the target.
    NotEmpty,
    /// The kernel refuses.
    Failed(String, i32),
}

impl NfsMount {
    /// Returns the export as mount.nfs takes it.
    pub(super) fn source(&self) -> String {
        let Self { server, path, .. } = self;
        if server.contains(':') { format!("[{server}]:{path}") } else { format!("{server}:{path}") }
    }

    /// Returns the options as mount.nfs takes them.
    fn options(&self) -> String {
        let mut options: Vec<&str> = if self.read_only { vec!["ro"] } else { Vec::new() };
        options.extend(self.options.iter().map(String::as_str).filter(|option| !option.is_empty()));
        // Without it mount.nfs tries for two minutes, and says only then why.
        let is_retry = |option: &str| option.trim() == "retry" || option.trim().starts_with("retry=");
        if !options.iter().flat_map(|given| given.split(',')).any(is_retry) {
            options.push("retry=0");
        }
        options.join(",")
    }

    pub(super) fn ask(&self, root: &Path, tools_in: &[PathBuf]) -> Ask {
        Ask {
            tools_in: tools_in.iter().map(Into::into).collect(),
            root: root.into(),
            target: self.target.as_path().into(),
            source: self.source(),
            options: self.options(),
            read_only: self.read_only,
        }
    }

    /// Puts a refusal in words.
    pub(super) fn refused(&self, root: &Path, refusal: Refusal) -> HostError {
        let target = root.join(self.target.as_path());
        match refusal {
            Refusal::Mount(cause, said) => self.error(cause, said),
            Refusal::Covered => {
                HostError::WrongMount { path: target, found: "something is mounted there".to_owned() }
            }
            Refusal::NotEmpty => HostError::NotEmpty { path: target },
            Refusal::Failed(what, errno) => {
                let source = std::io::Error::from_raw_os_error(errno);
                let source = std::io::Error::new(source.kind(), format!("{what}: {source}"));
                HostError::Io { doing: "mount the export at", path: target, source }
            }
        }
    }

    /// Returns the error of a server that says nothing.
    pub(super) fn silent(&self, limit: Duration) -> HostError {
        self.error(NfsCause::Late, format!("no answer within {} s", limit.as_secs()))
    }

    fn error(&self, cause: NfsCause, said: String) -> HostError {
        HostError::Nfs(Box::new(NfsError { mount: self.clone(), cause, said }))
    }
}

impl NfsCause {
    /// Takes the cause from the words of mount.nfs, which ends with 32 for all of them. They are those of nfs-utils 1.3 to 2.8.
    fn of(said: &str) -> Self {
        const WORDS: [(&str, NfsCause); 24] = [
            ("Failed to resolve server", NfsCause::NoSuchServer),
            ("failed to resolve", NfsCause::NoSuchServer),
            ("access denied", NfsCause::Denied),
            ("Permission denied", NfsCause::Denied),
            ("Operation not permitted", NfsCause::Denied),
            ("reason given by server: No such file or directory", NfsCause::NoExport),
            ("No such file or directory", NfsCause::NoExport),
            ("Not a directory", NfsCause::NoExport),
            ("Stale file handle", NfsCause::Stale),
            ("Stale NFS file handle", NfsCause::Stale),
            ("rpc.statd is not running", NfsCause::Locks),
            ("Protocol not supported", NfsCause::Version),
            ("requested NFS version or transport protocol is not supported", NfsCause::Version),
            ("incorrect mount option", NfsCause::Options),
            ("Invalid argument", NfsCause::Options),
            ("Unsupported nfs mount option", NfsCause::Options),
            ("parsing error on", NfsCause::Options),
            ("Connection refused", NfsCause::NoService),
            ("Program not registered", NfsCause::NoService),
            ("Connection timed out", NfsCause::Unreachable),
            ("timed out", NfsCause::Unreachable),
            ("No route to host", NfsCause::Unreachable),
            ("Network is unreachable", NfsCause::Unreachable),
            ("Host is down", NfsCause::Unreachable),
        ];
        const KERNEL: [&str; 2] = ["unknown filesystem type", "No such device"];
        if KERNEL.iter().any(|words| said.contains(words)) {
            return Self::NoKernel;
        }
        WORDS.iter().find(|(words, _)| said.contains(words)).map_or(Self::Other, |(_, cause)| *cause)
    }
}

/// What the child does.
pub(super) fn answer(ask: &Ask) -> Result<(), Refusal> {
    let directories: Vec<PathBuf> = ask.tools_in.iter().map(PathBuf::from).collect();
    let tools = Tools::holding(Vec::new(), directories.into());
    let helper = tools
        .tool(HELPER, "nfs-common")
        .map_err(|_| Refusal::Mount(NfsCause::NoHelper, format!("there is no {HELPER} on this host")))?;
    let root = Root::existing(Path::new(&ask.root)).map_err(failed("open the root directory"))?;
    let target = RootPath::new(Path::new(&ask.target)).ok_or(Errno::INVAL).map_err(failed("use the path"))?;
    let place = empty(&root, &target)?;
    // A thread, because from another namespace there is no way back without CAP_SYS_CHROOT. Descriptors are the process's.
    let mount = std::thread::scope(|scope| {
        let made = scope.spawn(|| make(&tools, &helper, root.path(), &target, ask)).join();
        made.unwrap_or_else(|_panic| Err(Refusal::Failed("its thread ended".to_owned(), libc::EIO)))
    })?;
    // The look and the move are two calls; in between only a stranger could mount something, and the guard would see two.
    drop(place);
    let place = empty(&root, &target)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", &place, "", flags).map_err(failed("show it"))
}

/// Opens the target if it is a directory without a mount on it and without anything in it.
fn empty(root: &Root, target: &RootPath) -> Result<OwnedFd, Refusal> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = match root.open_at(target, flags) {
        Ok(place) => place,
        Err(Errno::XDEV) => return Err(Refusal::Covered),
        Err(errno) => return Err(failed("open the target")(errno)),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let names = rustix::fs::openat(&place, ".", flags, Mode::empty()).and_then(path::names);
    if names.map_err(failed("read the target"))?.is_empty() { Ok(place) } else { Err(Refusal::NotEmpty) }
}

/// Mounts the export in a mount namespace of this thread's own and returns a copy of the mount that is attached nowhere.
fn make(tools: &Tools, helper: &Path, root: &Path, target: &RootPath, ask: &Ask) -> Result<OwnedFd, Refusal> {
    leave(root, target).map_err(|e| Refusal::Failed("make a mount namespace".to_owned(), e as i32))?;
    let point = root.join(target.as_path());
    let arguments =
        [OsString::from(&ask.source), point.clone().into(), "-n".into(), "-o".into(), (&ask.options).into()];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|e| Refusal::Failed("begin".to_owned(), e.raw_os_error().unwrap_or(libc::EIO)))?;
    let ended = runtime.block_on(tools.run("mount", &point, helper, arguments, LIMIT));
    let ended = ended.map_err(|error| match error {
        HostError::Deadline { seconds, .. } => {
            Refusal::Mount(NfsCause::Late, format!("no answer within {seconds} s"))
        }
        other => Refusal::Mount(NfsCause::Other, crate::error::Chain(&other).to_string()),
    })?;
    if !ended.status.success() {
        let said = if ended.said.is_empty() { ended.status.to_string() } else { ended.said };
        return Err(Refusal::Mount(NfsCause::of(&said), said));
    }
    // Of this namespace: the descriptor of the root that the caller has is of the other one.
    let root = Root::existing(root).map_err(failed("open the root directory"))?;
    let (parent, name) = root.open_parent(target).map_err(failed("open the target's directory"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mounted =
        rustix::fs::openat2(&parent, name, flags, Mode::empty(), BENEATH).map_err(failed("open it"))?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(&mounted, c"", flags, StatxFlags::TYPE).map_err(failed("look at it"))?;
    if !found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Refusal::Mount(NfsCause::Other, format!("{HELPER} ended well and mounted nothing")));
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&mounted, "", flags).map_err(failed("copy the mount"))?;
    let (set, clear) = Attributes::also(&[], ask.read_only).bits();
    raw::set_attributes(tree.as_fd(), set, clear, libc::MS_PRIVATE).map_err(|e| {
        Refusal::Failed("set the mount's attributes".to_owned(), e.raw_os_error().unwrap_or(libc::EIO))
    })?;
    Ok(tree)
}

/// Gives this thread a mount namespace of its own: what is mounted in it is seen nowhere else, what others unmount goes from it
/// too, and no volume has a copy of its mount here that could keep it busy.
fn leave(root: &Path, target: &RootPath) -> nix::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    nix::mount::mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
    let target = root.join(target.as_path());
    // A copy that cannot be read or let go of goes with this process.
    let table = mount_table::once();
    for mount in table.iter().flat_map(|table| table.below(root)) {
        if !target.starts_with(&mount.point) {
            // Lazily: the copy's own file system is not asked, and the volume's mount is another one.
            let _gone = nix::mount::umount2(&mount.point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
    Ok(())
}

fn failed(doing: &'static str) -> impl Fn(Errno) -> Refusal {
    move |errno| Refusal::Failed(format!("cannot {doing}"), errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(server: &str, options: &[&str]) -> NfsMount {
        NfsMount {
            server: server.to_owned(),
            path: "/exp".to_owned(),
            target: RootPath::new("pods/x").unwrap(),
            read_only: false,
            options: options.iter().map(|&option| option.to_owned()).collect(),
        }
    }

    #[test]
    fn an_ipv6_address_has_brackets_and_the_operators_options_stay() {
        assert_eq!(mount("fd00::1", &[]).source(), "[fd00::1]:/exp");
        assert_eq!(mount("nas", &[]).source(), "nas:/exp");
        assert_eq!(mount("nas", &["vers=3,soft", "timeo=5"]).options(), "vers=3,soft,timeo=5,retry=0");
        assert_eq!(mount("nas", &["soft,retry=3"]).options(), "soft,retry=3");
        let reader = NfsMount { read_only: true, ..mount("nas", &[]) };
        assert_eq!(reader.options(), "ro,retry=0");
    }

    #[test]
    fn the_words_of_the_helper_say_the_cause() {
        for (said, cause) in [
            (
                "mount.nfs: Failed to resolve server nowhere: Name or service not known",
                NfsCause::NoSuchServer,
            ),
            ("mount.nfs: access denied by server while mounting nas:/exp", NfsCause::Denied),
            (
                "mount.nfs: mounting nas:/exp failed, reason given by server: No such file or directory",
                NfsCause::NoExport,
            ),
            ("mount.nfs: Connection refused", NfsCause::NoService),
            ("mount.nfs: Connection timed out for nas:/exp on /x", NfsCause::Unreachable),
            ("mount.nfs: No route to host for nas:/exp on /x", NfsCause::Unreachable),
            ("mount.nfs: Protocol not supported", NfsCause::Version),
            ("mount.nfs: an incorrect mount option was specified for /x", NfsCause::Options),
            ("mount.nfs: Stale file handle", NfsCause::Stale),
            ("mount.nfs: rpc.statd is not running but is required for remote locking.", NfsCause::Locks),
            ("mount.nfs: No such device", NfsCause::NoKernel),
            ("mount.nfs: Cannot allocate memory", NfsCause::Other),
        ] {
            assert_eq!(NfsCause::of(said), cause, "{said}");
        }
    }
}
