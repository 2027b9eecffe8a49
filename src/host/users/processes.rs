//! Processes and threads, by what `/proc` says of them.

use std::io;
use std::path::{Path, PathBuf};

use super::place::InUse;

/// A thread, by its directory in `/proc`.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) pid: u32,
    pub(super) tid: u32,
    pub(super) directory: PathBuf,
}

impl Task {
    pub(super) fn name(&self) -> String {
        let comm = std::fs::read_to_string(self.directory.join("comm")).unwrap_or_default();
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
