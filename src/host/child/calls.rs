//! The daemon's side of what children do.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::Instant;

use super::wire::{Doing, Reply, Request};
use super::{Children, END, Place, failed};
use crate::host::path::Root;
use crate::host::{HostError, NoUsage, Progress, Usages, raw};
use crate::model::{Ownership, RootPath};

/// How long a file system has for its answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a change of ownership may go on without one more file done. It has no other limit: a volume may have millions.
const STANDSTILL: Duration = Duration::from_secs(120);

/// ERESTARTSYS, which is for the kernel itself, but comes out where a call was given up without a signal.
const GIVEN_UP: Errno = Errno::from_raw_os_error(512);

const CHANGE: &str = "change the group of";
const ASK: &str = "ask the file system at";

/// What one file system said.
#[derive(Debug)]
enum Answer<T> {
    /// This, or why not.
    Said(Result<T, Errno>),
    /// Nothing within `ANSWER`.
    Silent,
    /// It was not asked: a child that asked it before hangs still.
    Hangs,
}

impl Children {
    /// Gives everything in a volume to a group (`Host::set_ownership`).
    ///
    /// # Errors
    /// The volume's own directory is as it was. `Busy`: an earlier child hangs in the volume. An `Enter` that failed is for the
    /// caller to put in words: `Err(errno)` inside.
    pub(in crate::host) async fn set_ownership(
        &self,
        root: &Root,
        path: &RootPath,
        place: Place,
        ownership: Ownership,
        progress: &Progress,
    ) -> Result<Result<(), Errno>, HostError> {
        let volume = place.path.clone();
        // Never closed; and if it were, only the limit would be gone.
        let _slot = self.changes.acquire().await.ok();
        self.wait_for_earlier(&place).await?;
        let mut child = self.start(BTreeMap::from([(0, place)]))?;
        let silent =
            || HostError::Deadline { doing: CHANGE, path: volume.clone(), seconds: STANDSTILL.as_secs() };
        let request = Request::Ownership {
            root: root.path().into(),
            path: path.as_path().into(),
            group: ownership.group,
            on_root_mismatch: ownership.on_root_mismatch,
        };
        let mut until = Instant::now() + STANDSTILL;
        tokio::time::timeout_at(until, child.tell(&request))
            .await
            .map_err(|_elapsed| silent())?
            .map_err(failed(CHANGE, &volume))?;
        let mut done = 0;
        loop {
            let reply = tokio::time::timeout_at(until, child.next()).await.map_err(|_elapsed| silent())?;
            let end = match reply.map_err(failed(CHANGE, &volume))? {
                Reply::SoFar(now) if now == done => continue,
                Reply::SoFar(now) => {
                    done = now;
                    until = Instant::now() + STANDSTILL;
                    progress.tell(format!("{done} files done"));
                    continue;
                }
                Reply::Owned => Ok(Ok(())),
                Reply::Failed { doing: Doing::Enter, errno, .. } => Ok(Err(Errno::from_raw_os_error(errno))),
                Reply::Failed { doing, path, errno } => {
                    let path = if path.is_empty() { volume.clone() } else { volume.join(path) };
                    let source = explained(Errno::from_raw_os_error(errno));
                    Err(HostError::Io { doing: doing.words(), path, source })
                }
                other @ (Reply::Usage(..)
                | Reply::Alive(..)
                | Reply::Lasts(_)
                | Reply::Disk(_)
                | Reply::Lun(_)
                | Reply::Bound(_)
                | Reply::Nfs(_)) => Err(misunderstood(&volume, &other)),
            };
            child.finish().await;
            return end;
        }
    }

    /// Waits a moment for a child that was killed before it answered for this place: two must not change one volume.
    pub(super) async fn wait_for_earlier(&self, place: &Place) -> Result<(), HostError> {
        let Some(earlier) = self.hung.at(place) else { return Ok(()) };
        let watch = earlier.try_clone().and_then(raw::watch_readable).map_err(failed(CHANGE, &place.path))?;
        // Cancel-safe: nothing is taken out of a process descriptor.
        match tokio::time::timeout(END, watch.readable()).await {
            Ok(_ended) => Ok(()),
            Err(_elapsed) => Err(HostError::Busy {
                path: place.path.clone(),
                holder:
                    "an earlier child process of volumed, which hangs in the kernel: the file system does \
                         not answer"
                        .to_owned(),
            }),
        }
    }

    /// Asks file systems how full they are (`Host::usage`); the result has every path.
    ///
    /// # Errors
    /// When the child cannot be started or breaks.
    pub(in crate::host) async fn usage(&self, places: Vec<Place>) -> Result<Usages, HostError> {
        let answers = self
            .ask(&places, Request::Usage, |reply| match reply {
                Reply::Usage(index, answer) => Ok((index, answer)),
                other => Err(other),
            })
            .await?;
        let fs_types = places.iter().map(|place| place.fs_type.as_deref());
        let said = answers.into_iter().zip(fs_types).map(|(answer, fs_type)| match answer {
            Answer::Said(Err(errno)) if gave_up(errno, fs_type) => Err(NoUsage::Silent(match errno {
                GIVEN_UP => "the kernel gave the question up: somebody unmounts by force".to_owned(),
                errno => io::Error::from(errno).to_string(),
            })),
            Answer::Said(said) => said.map_err(|errno| NoUsage::Refused(io::Error::from(errno).to_string())),
            Answer::Silent => {
                let within = ANSWER.as_secs();
                Err(NoUsage::Silent(format!("the file system did not answer within {within} s")))
            }
            Answer::Hangs => {
                Err(NoUsage::Silent("the file system did not answer an earlier question yet".to_owned()))
            }
        });
        let said: Vec<_> = said.collect();
        Ok(places.into_iter().map(|place| place.path).zip(said).collect())
    }

    /// Asks the file systems at mount points whether they still answer (`Host::dead_mounts`).
    ///
    /// # Errors
    /// As `usage`.
    pub(in crate::host) async fn dead_mounts(
        &self,
        places: Vec<Place>,
    ) -> Result<BTreeMap<PathBuf, String>, HostError> {
        let answers = self
            .ask(&places, Request::Alive, |reply| match reply {
                Reply::Alive(index, answer) => Ok((index, answer)),
                other => Err(other),
            })
            .await?;
        let dead = places.into_iter().zip(answers).filter_map(|(place, answer)| match answer {
            Answer::Said(Err(errno)) => Some((place.path, death(errno, place.fs_type.as_deref())?)),
            Answer::Said(Ok(())) | Answer::Silent | Answer::Hangs => None,
        });
        Ok(dead.collect())
    }

    /// Asks each place in one child, and returns the answers in the same order.
    async fn ask<T>(
        &self,
        places: &[Place],
        request: impl Fn(Vec<OsString>) -> Request,
        pick: impl Fn(Reply) -> Result<(usize, Result<T, i32>), Reply>,
    ) -> Result<Vec<Answer<T>>, HostError> {
        let mut answers: Vec<Answer<T>> = places
            .iter()
            .map(|place| if self.hung.at(place).is_some() { Answer::Hangs } else { Answer::Silent })
            .collect();
        // The child counts only what it is asked.
        let asked: BTreeMap<usize, (usize, &Place)> = answers
            .iter()
            .zip(places)
            .enumerate()
            .filter(|(_, (answer, _))| matches!(answer, Answer::Silent))
            .map(|(at, (_, place))| (at, place))
            .enumerate()
            .collect();
        let Some((_, (_, first))) = asked.first_key_value() else { return Ok(answers) };
        let first = &first.path;
        let mut child = self.start(asked.iter().map(|(i, (_, place))| (*i, (*place).clone())).collect())?;
        let request = request(asked.values().map(|(_, place)| place.path.clone().into()).collect());
        let until = Instant::now() + ANSWER;
        match tokio::time::timeout_at(until, child.tell(&request)).await {
            Ok(told) => told.map_err(failed(ASK, first))?,
            Err(_elapsed) => return Ok(answers),
        }
        while !child.unanswered.is_empty() {
            let Ok(reply) = tokio::time::timeout_at(until, child.next()).await else { return Ok(answers) };
            let reply = reply.map_err(failed(ASK, first))?;
            let (index, answer) = pick(reply).map_err(|other| misunderstood(first, &other))?;
            child.unanswered.remove(&index);
            if let Some(place) = asked.get(&index).and_then(|(at, _)| answers.get_mut(*at)) {
                *place = Answer::Said(answer.map_err(Errno::from_raw_os_error));
            }
        }
        child.finish().await;
        Ok(answers)
    }
}

pub(super) fn misunderstood(path: &Path, reply: &Reply) -> HostError {
    failed(ASK, path)(io::Error::other(format!(
        "its child process gave an answer to something else: {reply:?}"
    )))
}

/// Says whether a file system that answered so is dead, and how. Any other error is an answer of one that lives.
fn death(errno: Errno, fs_type: Option<&str>) -> Option<String> {
    let fuse = fs_type.is_some_and(|t| t == "fuse" || t == "fuseblk" || t.starts_with("fuse."));
    let how = match errno {
        Errno::NOTCONN | Errno::CONNABORTED => "its server has ended",
        Errno::STALE => "its server does not know it any more",
        Errno::NODEV | Errno::NXIO | Errno::SHUTDOWN => "what it lies on is gone",
        // Of a disk or a soft NFS mount this may be over the next moment.
        Errno::IO if fuse => "its server fails or has ended",
        _ => return None,
    };
    Some(format!("{how}: {}", io::Error::from(errno)))
}

/// Whether the kernel says so of an NFS server that did not answer: of a soft mount after a while, of any mount when somebody
/// unmounted another one of the same export by force. It is no answer of the server's.
fn gave_up(errno: Errno, fs_type: Option<&str>) -> bool {
    const UNANSWERED: [Errno; 8] = [
        GIVEN_UP,
        Errno::IO,
        Errno::TIMEDOUT,
        Errno::HOSTUNREACH,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::CONNREFUSED,
        Errno::CONNRESET,
    ];
    fs_type.is_some_and(|fs_type| matches!(fs_type, "nfs" | "nfs4")) && UNANSWERED.contains(&errno)
}

/// Adds a remedy to what the kernel says of a change of ownership.
fn explained(errno: Errno) -> io::Error {
    let said = io::Error::from(errno);
    let remedy = match errno {
        Errno::ROFS => "use the volume with readOnly, or make it writable",
        Errno::PERM | Errno::ACCESS => {
            "take its attributes `i` and `a` away (lsattr, chattr), or, where the file system or its server allows no other \
             group, set fsGroupPolicy: None in the CSIDriver"
        }
        Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL => {
            "where the file system has no groups or modes, set fsGroupPolicy: None in the CSIDriver"
        }
        Errno::MFILE | Errno::NFILE => "the tree is too deep for the limit of open files (LimitNOFILE)",
        _ => return said,
    };
    io::Error::new(said.kind(), format!("{said}: {remedy}"))
}

#[cfg(test)]
mod tests {
    use rustix::process::PidfdFlags;

    use super::*;

    #[test]
    fn only_what_a_living_file_system_does_not_say_is_dead() {
        for errno in [Errno::NOTCONN, Errno::STALE, Errno::NODEV, Errno::CONNABORTED] {
            assert!(death(errno, Some("nfs4")).is_some(), "{errno}");
        }
        for errno in [Errno::ACCESS, Errno::NOENT, Errno::TIMEDOUT, Errno::PERM, Errno::NOMEM] {
            assert_eq!(death(errno, Some("fuse.s3fs")), None);
        }
        for (fs_type, dead) in [
            (Some("fuse"), true),
            (Some("fuse.s3fs"), true),
            (Some("fuseblk"), true),
            (Some("fusectl"), false),
            (Some("nfs4"), false),
            (Some("ext4"), false),
            (None, false),
        ] {
            assert_eq!(death(Errno::IO, fs_type).is_some(), dead, "{fs_type:?}");
        }
    }

    #[test]
    fn what_the_kernel_says_in_place_of_an_nfs_server_is_no_answer() {
        for errno in [Errno::IO, Errno::TIMEDOUT, Errno::CONNREFUSED, GIVEN_UP] {
            assert!(gave_up(errno, Some("nfs4")) && gave_up(errno, Some("nfs")), "{errno}");
            assert!(!gave_up(errno, Some("fuse")) && !gave_up(errno, None), "{errno}");
        }
        for errno in [Errno::STALE, Errno::ACCESS, Errno::PERM, Errno::NOENT] {
            assert!(!gave_up(errno, Some("nfs4")), "{errno}");
        }
    }

    #[tokio::test]
    async fn a_place_where_a_child_hangs_still_is_not_asked_again_until_it_ended_or_another_is_mounted() {
        // Whoever is asked would be an error.
        let children = Children::new().with_program("/nonexistent".into());
        let place = |mount| Place { path: "/x".into(), mount, fs_type: None };
        let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        children.hung.add(own, vec![place(Some(1))]);
        let usage = children.usage(vec![place(Some(1))]).await.unwrap();
        assert!(
            usage[Path::new("/x")].clone().unwrap_err().to_string().contains("earlier question"),
            "{usage:?}"
        );
        assert!(children.dead_mounts(vec![place(Some(1))]).await.unwrap().is_empty());
        assert!(children.usage(vec![place(Some(2))]).await.is_err(), "another mount");
        assert!(children.usage(vec![place(Some(1)), place(Some(2))]).await.is_err(), "one of two");

        #[expect(clippy::disallowed_methods, reason = "a test's child, which ends at once")]
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let pidfd =
            rustix::process::pidfd_open(rustix::process::Pid::from_child(&ended), PidfdFlags::empty());
        ended.wait().unwrap();
        children.hung.add(pidfd.unwrap(), vec![place(Some(3))]);
        assert!(children.usage(vec![place(Some(3))]).await.is_err(), "the child ended");
    }
}
