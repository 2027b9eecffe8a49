//! Who counts of those who have a directory: everybody, before it is deleted, or only who can write to it, before it is copied.

use std::path::{Path, PathBuf};

use super::copies::Device;
use super::mounts::{Mounts, inside};
use crate::model::Mount;

const OUR_NAMESPACE: &str = "/proc/thread-self/ns/mnt";

/// Who counts.
#[derive(Debug)]
pub(super) enum Counts {
    /// Whoever has it in any way.
    Users,
    /// Who can write to it. What is staged is for its publications and written to by nobody, and neither are its copies in other
    /// namespaces, which came there by propagation: those that sit where it sits.
    Writers { staged: Option<Seat> },
}

/// Where a mount sits: a file system, and the path inside it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seat(Device, PathBuf);

impl Seat {
    fn of(mount: &Mount, mounts: &Mounts) -> Option<Self> {
        let parent = mounts.by_id.get(&mount.parent).filter(|parent| parent.id != mount.id)?;
        Some(Self(parent.device, inside(parent, &mount.point)?))
    }
}

impl Counts {
    /// Writers, but for what is mounted at a path of our namespace and shows what is asked about.
    pub(super) fn writers(mounts: &Mounts, staged: Option<&Path>, shows: impl Fn(&Mount) -> bool) -> Self {
        let seat = || {
            let ours = std::fs::read_link(OUR_NAMESPACE).ok()?;
            let (ids, _task) = mounts.namespaces.get(ours.as_os_str())?;
            let at = |mount: &&Mount| Some(mount.point.as_path()) == staged && shows(mount);
            Seat::of(ids.iter().filter_map(|id| mounts.by_id.get(id)).find(at)?, mounts)
        };
        Self::Writers { staged: seat() }
    }

    /// Whether whoever has it in any way counts.
    pub(super) fn all(&self) -> bool {
        matches!(self, Self::Users)
    }

    /// Whether a mount that shows it counts.
    pub(super) fn mount(&self, mount: &Mount, mounts: &Mounts) -> bool {
        match self {
            Self::Users => true,
            Self::Writers { staged } => {
                let is_staged = staged.is_some() && Seat::of(mount, mounts) == *staged;
                !mount.read_only && !is_staged
            }
        }
    }
}

/// Whether `fdinfo` says of a file that it was opened for writing, or says nothing.
pub(super) fn is_for_writing(fdinfo: &str) -> bool {
    /// `O_ACCMODE`: of the last two bits 0 is for reading only.
    const HOW: u32 = 3;
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).is_none_or(|flags| flags & HOW != 0)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::fd::OwnedFd;
    use std::sync::mpsc;

    use rustix::fs::{Mode, OFlags};
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

    use super::super::Place;
    use super::*;

    #[test]
    fn only_a_file_that_was_opened_for_reading_is_not_written_to() {
        for (info, expected) in [
            ("pos:\t0\nflags:\t0100000\nmnt_id:\t29\n", false),
            ("pos:\t0\nflags:\t0100001\n", true),
            ("pos:\t0\nflags:\t02100002\n", true),
            ("flags:\t010200000\n", false),
            ("flags:\tnone\n", true),
            ("", true),
        ] {
            assert_eq!(is_for_writing(info), expected, "{info:?}");
        }
    }

    /// Who is said to write to a directory that is staged at a path; nobody: an empty text.
    fn writer(data: &Path, staged: &Path) -> String {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory: OwnedFd = rustix::fs::open(data, flags, Mode::empty()).unwrap();
        let place = Place::of(&directory, data).unwrap();
        place.check_not_written(&directory, Some(staged)).err().map(|user| user.0).unwrap_or_default()
    }

    fn own_namespace() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
    }

    fn unmount(at: &Path) {
        rustix::mount::unmount(at, UnmountFlags::empty()).unwrap();
    }

    /// In namespaces of its own, because it has to see all processes.
    #[test]
    fn who_can_write_to_a_directory_is_found_in_every_namespace_and_its_staging_is_nobody() {
        let name = "host::users::writers::tests::who_can_write_to_a_directory_is_found_in_every_namespace_and_its_staging_is_nobody";
        let test = async {
            own_namespace();
            let top = tempfile::tempdir().unwrap();
            let at = |name: &str| {
                let path = top.path().join(name);
                std::fs::create_dir_all(&path).unwrap();
                path
            };
            let (data, staged, pod, inside) = (at("data"), at("staged"), at("pod"), at("data/inside"));
            std::fs::write(data.join("file"), "x").unwrap();
            assert_eq!(writer(&data, &staged), "");
            rustix::mount::mount_bind(&data, &staged).unwrap();
            assert_eq!(writer(&data, &staged), "", "staged, and no more");
            // A namespace that came by its copy of the staging point as every service does.
            let (ask, asked) = mpsc::channel::<()>();
            let (tell, told) = mpsc::channel::<()>();
            let (theirs, from) = (pod.clone(), staged.clone());
            let other = std::thread::spawn(move || {
                own_namespace();
                tell.send(()).unwrap();
                asked.recv().unwrap();
                rustix::mount::mount_bind(&from, &theirs).unwrap();
                tell.send(()).unwrap();
                // Until the channel is closed.
                let _closed = asked.recv();
            });
            told.recv().unwrap();
            assert_eq!(writer(&data, &staged), "", "its copy elsewhere");
            ask.send(()).unwrap();
            told.recv().unwrap();
            let who = writer(&data, &staged);
            assert!(who.contains(pod.to_str().unwrap()), "published in another namespace only: {who}");
            drop(ask);
            other.join().unwrap();
            assert_eq!(writer(&data, &staged), "");

            rustix::mount::mount_bind(staged.join("inside"), &pod).unwrap();
            let who = writer(&data, &staged);
            assert!(who.contains(pod.to_str().unwrap()), "a directory in it: {who}");
            rustix::mount::mount_remount(&pod, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
            assert_eq!(writer(&data, &staged), "", "read-only");
            unmount(&pod);

            rustix::mount::mount("tmpfs", staged.join("inside"), "tmpfs", MountFlags::empty(), None).unwrap();
            assert!(writer(&data, &staged).contains("inside"), "a mount that hides part of it");
            unmount(&staged.join("inside"));

            let reads = File::open(staged.join("file")).unwrap();
            assert_eq!(writer(&data, &staged), "", "only read");
            let writes = OpenOptions::new().append(true).open(staged.join("file")).unwrap();
            assert!(writer(&data, &staged).starts_with("process "));
            drop((reads, writes));
            assert_eq!(writer(&data, &staged), "");
            assert!(inside.is_dir());
            unmount(&staged);
        };
        crate::alone::run(name, test, |_directory| ());
    }
}
