//! Volumes that are directories (`backing: directory`): no image, no loop device, and the host's file system keeps each to its
//! size by a project quota.
//!
//! A project is a number that files carry. Ours are from a range of their own, written down with the volume before a file has
//! one, and nobody else's: a project that anybody uses or limits is passed over, and after ours is given to the volume's directory
//! that directory has to be all that belongs to it. So of two drivers on one file system that choose the same at once none keeps
//! it, or one.
//!
//! What the kernel does about quotas is asked each time that something depends on it, never read out of mount options.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use super::Driver;
use super::copies::Copying;
use super::errors::Failure;
use super::store::{Source, Store, Volume};
use crate::error::Chain;
use crate::execute::fault;
use crate::host::HostError;
use crate::host::images::{Copied, FsType, Limits, Project};

/// The projects that are ours to use: round numbers, so that whoever lists quotas (`repquota -P`, `xfs_quota`) sees whose they
/// are, and far from those that people give by hand in /etc/projid.
const PROJECTS: RangeInclusive<u32> = 1_000_000_000..=1_999_999_999;

/// How often another project is tried where somebody takes the same one at the same moment.
const TRIES: usize = 8;

/// How long it may take until files that went are counted no more: XFS does it in the background, some milliseconds later.
const COUNTED: Duration = Duration::from_secs(5);

/// How often that is looked at.
const COUNTED_AGAIN: Duration = Duration::from_millis(20);

/// The projects that were chosen and are not written down yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Projects {
    /// A std mutex: held for a look-up only.
    chosen: Arc<Mutex<BTreeSet<u32>>>,
}

/// A project that nobody else gets as long as this lives.
#[derive(Debug)]
#[must_use = "it is kept only as long as this value lives"]
pub(super) struct Chosen {
    id: u32,
    projects: Projects,
}

impl Chosen {
    /// Returns its number.
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

impl Projects {
    /// Chooses the first project from a number on that is not among these and that nobody chose.
    fn choose(&self, from: u32, taken: &BTreeSet<u32>) -> Option<Chosen> {
        let mut chosen = self.chosen();
        let free = |id: &u32| !taken.contains(id) && !chosen.contains(id);
        let id = (from.max(*PROJECTS.start())..=*PROJECTS.end()).find(free)?;
        chosen.insert(id);
        drop(chosen);
        Some(Chosen { id, projects: self.clone() })
    }

    fn chosen(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.projects.chosen().remove(&self.id);
    }
}

impl Driver {
    /// Returns the file system on which directories are limited.
    ///
    /// # Errors
    /// `Precondition`: they are not, and what can be done.
    pub(super) async fn limiting(&self) -> Result<FsType, Failure> {
        let (fs_type, limits) = self.images().limits().await?;
        match (fs_type, limits) {
            (Some(fs_type), Limits::Enforced) => Ok(fs_type),
            (found, limits) => Err(Failure::Precondition(remedy(self.store().directory(), found, limits))),
        }
    }

    /// Chooses a project for a new volume: it is nobody's until this is dropped, and is to be written down before.
    pub(super) async fn choose_project(&self) -> Result<Chosen, Failure> {
        self.limiting().await?;
        let mut from = *PROJECTS.start();
        loop {
            // Each time: meanwhile another call may have written down what it chose.
            let taken = self.store().volumes.all().into_iter().filter_map(|volume| volume.project).collect();
            let chosen = self.inner.projects.choose(from, &taken).ok_or_else(|| {
                let (first, last) = (PROJECTS.start(), PROJECTS.end());
                Failure::Exhausted(format!("all projects from {first} to {last} are in use"))
            })?;
            let default = self.images().project(0).await?.limit;
            if is_free(self.images().project(chosen.id).await?, default) {
                return Ok(chosen);
            }
            debug!(project = chosen.id, "somebody else uses the project");
            from = chosen.id.saturating_add(1);
        }
    }

    /// Makes the directory of a volume that is written down, with what it is copied from, and syncs it.
    pub(super) async fn fill_directory(&self, volume: &mut Volume, copying: &Copying) -> Result<(), Failure> {
        let data = self.store().volume_place(&volume.id, volume.content);
        self.check_room().await?;
        self.images().make_directory(&data).await?;
        fault::reached("create:directory");
        self.take_project(volume, &data).await?;
        fault::reached("create:project");
        let copied = match &volume.source {
            None => None,
            Some(Source::Volume(id)) => Some(self.copy_of_one(id, &data, copying).await?.0),
            Some(Source::Snapshot(id)) => {
                let snapshot = self.snapshot(Some(id), id.as_str())?;
                let from = self.store().snapshot_place(id, snapshot.content);
                Some(self.copy_directory(&from, &data).await?)
            }
        };
        fault::reached("create:image");
        let project = project_of(volume)?;
        if copied == Some(Copied::Shared) {
            // Counted from now on, the source's part of it too.
            volume.shared = self.images().project(project).await?.used;
            self.store().volumes.put(volume.clone()).await?;
            self.check_room().await?;
        }
        // After the copy, which may need a block more than its source.
        self.images().limit_project(project, volume.bytes).await?;
        fault::reached("create:format");
        Ok(self.images().sync_directory(&data).await?)
    }

    /// Gives a new directory to its project, and to another one where somebody else uses that by now.
    async fn take_project(&self, volume: &mut Volume, data: &Path) -> Result<(), Failure> {
        for _ in 0..TRIES {
            let project = project_of(volume)?;
            self.images().give_to_project(data, project).await?;
            let found = self.images().project(project).await?;
            let default = self.images().project(0).await?.limit;
            if found.files == 1 && is_unlimited(found, default) {
                return Ok(());
            }
            info!(volume = %volume.id, project, ?found, "the project is somebody else's too: another one is taken");
            let chosen = self.choose_project().await?;
            volume.project = Some(chosen.id);
            self.store().volumes.put(volume.clone()).await?;
        }
        let problem = "others take the same projects as this driver again and again; repeat the call";
        Err(Failure::Precondition(problem.to_owned()))
    }

    /// Makes sure that a volume's directory is there and that the kernel keeps it to a size; returns it, and that size in bytes.
    ///
    /// # Errors
    /// `Lost`: it is gone. `Precondition`: it would not be limited, and what can be done.
    async fn check_limited(&self, volume: &Volume) -> Result<(PathBuf, u64), Failure> {
        let data = self.store().volume_place(&volume.id, volume.content);
        let Some(found) = self.images().look_at_directory(&data).await? else {
            return Err(Failure::Lost(format!("the directory of the volume {} is gone", volume.id)));
        };
        self.limiting().await?;
        let project = project_of(volume)?;
        if found.project != Some(project) {
            return Err(Failure::Precondition(format!(
                "what is in {0} does not belong to the project {project} of the volume {1}, and is not limited: \
                 chattr -R -p {project} {0}, and chattr +P {0} and each directory in it",
                data.display(),
                volume.id
            )));
        }
        Ok((data, self.images().project(project).await?.limit))
    }

    /// As `check_limited`, and makes the limit right. The volume's lock is held.
    pub(super) async fn keep_limited(&self, volume: &Volume) -> Result<PathBuf, Failure> {
        let (data, limit) = self.check_limited(volume).await?;
        if limit != volume.bytes {
            info!(volume = %volume.id, limit, bytes = volume.bytes, "its directory's limit was another one");
            self.images().limit_project(project_of(volume)?, volume.bytes).await?;
        }
        Ok(data)
    }

    /// Lets a volume's directory have so many bytes. The room for them was looked at.
    pub(super) async fn grow_directory(&self, volume: &Volume, bytes: u64) -> Result<(), Failure> {
        self.limiting().await?;
        Ok(self.images().limit_project(project_of(volume)?, bytes).await?)
    }

    /// Returns what the kernel limits a volume's directory to, in bytes.
    pub(super) async fn limit_of(&self, volume: &Volume) -> Result<u64, Failure> {
        Ok(self.images().project(project_of(volume)?).await?.limit)
    }

    /// Copies a directory to which nobody writes.
    ///
    /// # Errors
    /// `Exhausted` where the host is full.
    pub(super) async fn copy_directory(&self, from: &Path, to: &Path) -> Result<Copied, Failure> {
        if let Err(error) = self.images().copy_directory(from, to).await {
            return Err(self.or_no_room(error).await);
        }
        Ok(if self.images().shares_blocks().await? { Copied::Shared } else { Copied::Whole })
    }

    /// Returns the directory of a volume that is to be copied, and what is in it, in bytes.
    ///
    /// # Errors
    /// `Precondition`: somebody can write to it.
    pub(super) async fn at_rest(&self, volume: &Volume) -> Result<(PathBuf, u64), Failure> {
        let staged = self.store().usage(&volume.id).await.staging.map(|(at, _)| at);
        let data = self.store().volume_place(&volume.id, volume.content);
        // In all namespaces: a container may have it in one of its own, where it is in no table of ours.
        match self.images().check_not_written(&data, staged.as_deref()).await {
            Ok(()) => {}
            Err(HostError::Busy { holder, .. }) => {
                return Err(Failure::Precondition(format!(
                    "the volume {} is a directory and cannot be frozen for a copy while pods write to it: unpublish it first; in \
                     use by {holder}",
                    volume.id
                )));
            }
            Err(error) => return Err(error.into()),
        }
        Ok((data, self.images().project(project_of(volume)?).await?.used))
    }

    /// Removes all that is in the directories of an entry, by the directory that these are in.
    pub(super) async fn remove_data(&self, entry: &Path) -> Result<(), Failure> {
        for data in Store::data_in(entry) {
            self.images().remove_content(&data).await?;
        }
        Ok(())
    }

    /// Takes the limit of a project away of which the emptied directory of an entry is all that is left. One that the directory
    /// does not carry, or that other files carry too, is somebody else's by now, and stays as it is. Where nothing is limited
    /// there is none.
    pub(super) async fn free_project(&self, entry: &Path, project: u32) -> Result<(), Failure> {
        let (_, limits) = self.images().limits().await?;
        match limits {
            Limits::Enforced | Limits::Counted => {}
            Limits::Off => return Ok(()),
        }
        let mut carried = false;
        for data in Store::data_in(entry) {
            let found = self.images().look_at_directory(&data).await?;
            carried |= found.is_some_and(|found| found.project == Some(project));
        }
        let until = Instant::now() + COUNTED;
        loop {
            let found = self.images().project(project).await?;
            if is_last(carried, found) {
                return Ok(self.images().limit_project(project, 0).await?);
            }
            if !carried || Instant::now() > until {
                info!(entry = %entry.display(), project, ?found, "the project is somebody else's too: its limit stays");
                return Ok(());
            }
            tokio::time::sleep(COUNTED_AGAIN).await;
        }
    }

    /// Returns what is wrong with a volume's limit, in words.
    pub(super) async fn not_limited(&self, volume: &Volume) -> Option<String> {
        match self.check_limited(volume).await {
            Ok((_, 0)) => Some(format!("its project {:?} has no limit: stage it again", volume.project)),
            Ok(_) => None,
            Err(failure) => Some(Chain(&failure).to_string()),
        }
    }
}

/// Returns whether nobody but an emptied directory uses a project, by whether that carries it and what the kernel counts.
fn is_last(carried: bool, found: Project) -> bool {
    carried && found.files == 1
}

/// Returns whether a project is nobody's, by what is found of it and the limit that the file system gives to all that have none
/// of their own: it is kept as that of the project 0, and XFS shows it as theirs.
fn is_free(found: Project, default: u64) -> bool {
    found.files == 0 && found.used == 0 && is_unlimited(found, default)
}

/// Returns whether nobody gave a project a limit.
fn is_unlimited(found: Project, default: u64) -> bool {
    found.limit == 0 || found.limit == default
}

/// Returns the project of a directory.
pub(super) fn project_of(volume: &Volume) -> Result<u32, Failure> {
    let missing = || Failure::Lost(format!("no project is written down of the volume {}", volume.id));
    volume.project.ok_or_else(missing)
}

/// Says why directories cannot be limited here, and what can be done.
fn remedy(directory: &Path, fs_type: Option<FsType>, limits: Limits) -> String {
    let what = "project quotas, which volumes with backing: directory need";
    let directory = directory.display();
    match (fs_type, limits) {
        (Some(FsType::Xfs), _) => format!(
            "the file system of {directory} (xfs) is mounted without {what}: unmount it and mount it with -o prjquota (of the \
             root file system: rootflags=prjquota on the kernel's command line); the kernel needs CONFIG_XFS_QUOTA"
        ),
        (Some(FsType::Ext4), Limits::Counted) => format!(
            "the file system of {directory} (ext4) is mounted without {what}: unmount it and mount it with -o prjquota"
        ),
        (Some(FsType::Ext4), _) => format!(
            "the file system of {directory} (ext4) has no {what}: unmount it, run tune2fs -O project,quota on its device, and mount \
             it with -o prjquota; the kernel needs CONFIG_QUOTA and CONFIG_QFMT_V2"
        ),
        (Some(FsType::Btrfs) | None, _) => format!(
            "the file system of {directory} has no {what}: let --dir be on ext4 or xfs with them, or use backing: image"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_chosen_once_until_it_is_given_back() {
        let projects = Projects::default();
        let first = *PROJECTS.start();
        let taken = BTreeSet::from([first, first + 2]);
        let one = projects.choose(0, &taken).unwrap();
        let other = projects.choose(first, &taken).unwrap();
        assert_eq!((one.id(), other.id()), (first + 1, first + 3));
        assert_eq!(projects.choose(first + 9, &taken).unwrap().id(), first + 9);
        drop(one);
        assert_eq!(projects.choose(0, &taken).unwrap().id(), first + 1);
        assert!(projects.choose(PROJECTS.end() + 1, &taken).is_none());
    }

    #[test]
    fn a_limit_goes_only_with_the_last_file_of_a_project_that_is_ours() {
        let found = |files| Project { limit: 1 << 20, used: 4096, files };
        assert!(is_last(true, found(1)));
        assert!(!is_last(true, found(2)), "somebody else has files of it");
        assert!(!is_last(true, found(0)), "the directory is counted nowhere");
        assert!(!is_last(false, found(1)), "the only file is somebody else's");
    }

    #[test]
    fn a_limit_that_all_have_is_nobody_s() {
        let limited = |limit| Project { limit, ..Project::default() };
        for (limit, default, free) in [(0, 0, true), (7, 7, true), (0, 7, true), (7, 0, false), (7, 8, false)]
        {
            assert_eq!(is_free(limited(limit), default), free, "{limit} of {default}");
        }
        assert!(!is_free(Project { files: 1, ..limited(7) }, 7));
        assert!(!is_free(Project { used: 512, ..limited(7) }, 7));
    }

    #[test]
    fn a_file_system_that_limits_nothing_is_named_with_its_remedy() {
        let said = |fs_type, limits| remedy(Path::new("/srv/volumes"), fs_type, limits);
        for (text, word) in [
            (said(Some(FsType::Ext4), Limits::Off), "tune2fs -O project,quota"),
            (said(Some(FsType::Ext4), Limits::Counted), "mount it with -o prjquota"),
            (said(Some(FsType::Xfs), Limits::Counted), "rootflags=prjquota"),
            (said(None, Limits::Off), "backing: image"),
        ] {
            assert!(text.contains(word) && text.contains("/srv/volumes"), "{text}");
        }
        assert!(!said(Some(FsType::Ext4), Limits::Counted).contains("tune2fs"));
    }
}
