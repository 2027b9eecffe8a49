//! Processes and threads, by what `/proc` says of them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::place::InUse;

/// What the kernel gives at a time of a file in `/proc`, bytes.
const PAGE: usize = 4096;

/// A thread, by its directory in `/proc`.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) pid: u32,
    pub(super) tid: u32,
    pub(super) directory: PathBuf,
}

impl Task {
    /// Reads one of its files. None of them says how long it is, so std would begin with pieces of 32 bytes.
    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut text = Vec::with_capacity(PAGE);
        File::open(self.directory.join(name))?.read_to_end(&mut text)?;
        Ok(text)
    }

    pub(super) fn name(&self) -> String {
        let comm = text(self.directory.join("comm")).unwrap_or_default();
        format!("process {} ({})", self.pid, comm.trim())
    }

    /// Reads one of its links; `None` when the task or the link is gone.
    pub(super) fn link(&self, name: &str) -> Result<Option<PathBuf>, InUse> {
        match std::fs::read_link(self.directory.join(name)) {
            Ok(target) => Ok(Some(target)),
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(self.hidden(name, &e)),
        }
    }

    pub(super) fn hidden(&self, what: &str, why: &io::Error) -> InUse {
        InUse(format!("an unknown user: cannot read {what} of {}: {why}", self.name()))
    }
}

/// Reads a file of `/proc` in which a process's name stands, which need not be text.
pub(in crate::host) fn text(path: impl AsRef<Path>) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
}

/// ESRCH: the process ended; ENOENT: so did the link; EINVAL: mountinfo of a process on its way out.
pub(super) fn is_gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOENT | Errno::SRCH | Errno::INVAL))
}

/// Lists all threads of all processes.
pub(super) fn tasks() -> io::Result<Vec<Task>> {
    let numbers = |directory: &Path| -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        Ok(found)
    };
    let mut all = Vec::new();
    for pid in numbers(Path::new("/proc"))? {
        let directory = PathBuf::from(format!("/proc/{pid}/task"));
        match numbers(&directory) {
            Ok(tids) => all.extend(tids.into_iter().map(|tid| Task {
                pid,
                tid,
                directory: directory.join(tid.to_string()),
            })),
            Err(e) if is_gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// What `stat` of a thread says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// The process that started it, or took it over.
    pub(super) parent: u32,
    /// It waits in the kernel for something that may never come.
    pub(super) stuck: bool,
    /// A thread of the kernel itself, which has no files.
    pub(super) kernel: bool,
    /// It is on its way out, and not there yet: its files are shown no more, and may be open still.
    pub(super) ending: bool,
}

impl Stat {
    /// `4711 (a name) D 1 ...`: state and parent after the name, which may hold anything; flags are the ninth field.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        /// `PF_KTHREAD` of linux/sched.h.
        const KERNEL: u64 = 0x0020_0000;
        /// `PF_EXITING` of linux/sched.h.
        const ENDING: u64 = 4;
        let name_ends = text.iter().rposition(|byte| *byte == b')')?;
        let after = std::str::from_utf8(text.get(name_ends + 1..)?).ok()?;
        let mut fields = after.split_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let flags: u64 = fields.nth(4)?.parse().ok()?;
        let ended = matches!(state, "Z" | "X");
        Some(Self {
            parent,
            stuck: state == "D",
            kernel: flags & KERNEL != 0,
            ending: flags & ENDING != 0 && !ended,
        })
    }
}

/// Returns the systemd unit of `/proc/<pid>/cgroup`: the innermost one. Where systemd has a hierarchy of its own (version 1
/// and hybrid) that one counts.
pub(super) fn unit(cgroup: &str) -> Option<String> {
    let path_of = |start: &str| cgroup.lines().find_map(|line| hierarchy(line)?.strip_prefix(start));
    let path = path_of("name=systemd:").or_else(|| path_of(":"))?;
    // A group that was removed while the process is still in it.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let is_unit = |name: &&str| [".service", ".scope", ".slice"].iter().any(|kind| name.ends_with(kind));
    let name = path.rsplit('/').find(is_unit)?;
    // systemd puts an underscore before names that the kernel could take for its own files; `\x2d` is part of the name.
    Some(name.strip_prefix('_').unwrap_or(name).to_owned())
}

/// Cuts the number off a line of `/proc/<pid>/cgroup`: `1:name=systemd:/path`, `0::/path`.
fn hierarchy(line: &str) -> Option<&str> {
    line.split_once(':').map(|(_number, rest)| rest)
}

/// Names a process that keeps a mount of our namespace busy: only for the message, so what cannot be seen is left out.
pub(in crate::host) fn holder_of_mount(id: u64, point: &Path) -> Option<String> {
    let wanted = format!("mnt_id:\t{id}");
    let holds = |task: &Task| {
        let links = ["cwd", "root", "exe"];
        if links.iter().any(|name| matches!(task.link(name), Ok(Some(t)) if t.starts_with(point))) {
            return true;
        }
        let Ok(files) = std::fs::read_dir(task.directory.join("fdinfo")) else { return false };
        files.flatten().any(|file| {
            std::fs::read_to_string(file.path()).is_ok_and(|info| info.lines().any(|line| line == wanted))
        })
    };
    tasks().ok()?.iter().find(|task| task.pid == task.tid && holds(task)).map(Task::name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_innermost_of_the_path() {
        for (cgroup, expected) in [
            ("0::/system.slice/nginx.service\n", Some("nginx.service")),
            ("0::/system.slice/docker-0a1b.scope/init\n", Some("docker-0a1b.scope")),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-u5.scope\n",
                Some("run-u5.scope"),
            ),
            ("0::/user.slice\n", Some("user.slice")),
            ("0::/system.slice/a\\x2db@c.service\n", Some("a\\x2db@c.service")),
            ("0::/system.slice/_cgroup.service\n", Some("cgroup.service")),
            ("0::/system.slice/gone.service (deleted)\n", Some("gone.service")),
            ("0::/../backup.service/x\n", Some("backup.service")),
            ("0::/system.slice/odd:name.service\n", Some("odd:name.service")),
            ("0::/\n", None),
            ("0::/kubepods/pod1/services\n", None),
            ("", None),
            ("nonsense\n", None),
        ] {
            assert_eq!(unit(cgroup).as_deref(), expected, "{cgroup}");
        }
    }

    #[test]
    fn systemd_s_own_hierarchy_counts_before_the_others() {
        let v1 = "9:memory:/system.slice/wrong.service\n1:name=systemd:/system.slice/right.service\n";
        assert_eq!(unit(v1).as_deref(), Some("right.service"));
        assert_eq!(unit(&format!("0::/\n{v1}")).as_deref(), Some("right.service"));
        assert_eq!(unit("4:memory:/system.slice/wrong.service\n"), None);
    }

    #[test]
    fn a_name_may_hold_brackets_and_blanks() {
        let stat = Stat::parse(b"7 (a) D 9 (x) R 3 7 7 0 -1 4194560 110 0").unwrap();
        assert_eq!(stat, Stat { parent: 3, stuck: false, kernel: false, ending: false });
        let stat = Stat::parse(b"2 (kthreadd) D 0 0 0 0 -1 2129984 0 0").unwrap();
        assert_eq!(stat, Stat { parent: 0, stuck: true, kernel: true, ending: false });
        let stat = Stat::parse(b"7 (\xff) S 3 7 7 0 -1 4194560 110 0").unwrap();
        assert_eq!(
            stat,
            Stat { parent: 3, stuck: false, kernel: false, ending: false },
            "nor need it be text"
        );
        for (state, ending) in [("S", true), ("D", true), ("Z", false), ("X", false)] {
            let stat = format!("7 (tail) {state} 3 7 7 0 -1 4194564 110 0");
            assert_eq!(Stat::parse(stat.as_bytes()).unwrap().ending, ending, "{stat}");
        }
        assert_eq!(Stat::parse(b"7 (half"), None);
        assert_eq!(Stat::parse(b"7 (half) R 1"), None);
    }
}
