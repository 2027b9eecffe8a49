//! Publishing: the staged volume shown at a pod's path. Unpublishing: unmounted, and what was made there removed.

use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::directory::check_flags;
use super::place::Place;
use super::stage::{check_access, options};
use crate::error::Chain;
use crate::execute::fault;
use crate::host::HostError;
use crate::host::images::{Attributes, Going, of_the_file_system, read_only};
use crate::loop_driver::Driver;
use crate::loop_driver::ask::{Capability, read_only_device};
use crate::loop_driver::errors::Failure;
use crate::loop_driver::store::{Asked, Content, Id, OTHER_FLAGS, OTHER_GROUP, OTHER_RIGHTS, Use, Volume};
use crate::proto::csi::volume_capability::access_mode::Mode;

impl Driver {
    /// Publishes a staged volume. Its lock is held.
    pub(super) async fn publish(
        &self,
        id: &Id,
        staging: &Path,
        target: &Path,
        capability: &Capability,
        read_only: bool,
    ) -> Result<(), Failure> {
        let volume = self.volume(Some(id), id.as_str())?;
        check_access(&volume, &capability.access)?;
        check_flags(id, volume.content.is_directory(), &capability.access)?;
        let asked = capability.asked(read_only);
        if volume.content == Content::Block && asked.read_only {
            return Err(read_only_device());
        }
        let place = self.place_as_before(id).await?;
        let staging = self.directory(staging).await?;
        let mut usage = self.store().usage(id).await;
        let staged = match volume.content {
            Content::Block => place.device()?.is_some(),
            Content::FileSystem(_) | Content::Directory(_) => place.at(&staging).is_some(),
        };
        if !staged {
            let problem = format!("the volume {id} is not staged at {}", staging.display());
            return Err(Failure::Precondition(problem));
        }
        let target = self.target(target).await?;
        if self.is_published(&place, &usage, &target, &asked).await? {
            return self.note_target(id, usage, &target, asked).await;
        }
        check_sharing(&usage, &place, &staging, &target, capability.mode)?;
        check_options(&volume, &usage, &asked)?;
        let group = self.group_to_give(&usage, &place, &staging, &target, asked.group).await?;
        usage.targets.insert(target.clone(), asked.clone());
        self.store().set_usage(id, &usage).await?;
        fault::reached("publish:intent");
        match volume.content {
            Content::Block => {
                let missing =
                    || Failure::Precondition(format!("the volume {id} has no loop device: stage it again"));
                let device = place.device()?.ok_or_else(missing)?;
                self.images().bind_device(device.number(), &target).await.map_err(taken)?;
                self.keep_if_ours(id, device.number(), &target).await?;
            }
            Content::FileSystem(_) | Content::Directory(_) => {
                self.make_target(&target).await?;
                fault::reached("publish:target");
                if let Some(group) = group {
                    self.images().give_to_group(&staging, group, &self.progress(id.clone())).await?;
                }
                let with = Attributes::also(&asked.flags, is_read_only(&asked));
                self.images().bind(&staging, &target, with).await?;
            }
        }
        fault::reached("publish:outcome");
        info!(volume = %id, target = %target.display(), read_only = is_read_only(&asked), "published");
        Ok(())
    }

    /// Returns the group that a file system has to be given to before it is published for it: it was staged for none.
    ///
    /// # Errors
    /// `Precondition`: it is another's already. What is in it has one group.
    async fn group_to_give(
        &self,
        usage: &Use,
        place: &Place,
        staging: &Path,
        target: &Path,
        wanted: Option<u32>,
    ) -> Result<Option<u32>, Failure> {
        let Some(wanted) = wanted else { return Ok(None) };
        if let Some((_, Asked { group: Some(group), .. })) = &usage.staging {
            return if *group == wanted { Ok(None) } else { Err(other_group(wanted, Some(*group), staging)) };
        }
        let seen = self.images().seen(staging).await?;
        // As when it is staged: where nobody can write nobody's group is set.
        if seen.read_only {
            return Ok(None);
        }
        let others: Vec<&Path> = (place.mounts.iter().map(|mount| mount.point.as_path()))
            .filter(|at| *at != staging && *at != target)
            .collect();
        for other in &others {
            // What was asked there may be lost.
            let group = usage.targets.get(*other).map_or(Some(seen.group), |asked| asked.group);
            if group != Some(wanted) {
                return Err(other_group(wanted, group, other));
            }
        }
        // Those that are published have it.
        Ok(others.is_empty().then_some(wanted))
    }

    /// Looks again at a device that was just shown to a pod: nothing holds it before, and its number may have become that of
    /// another's.
    async fn keep_if_ours(&self, id: &Id, number: u32, target: &Path) -> Result<(), Failure> {
        let image = self.store().volume_image(id);
        let file = self.images().look(&image).await?;
        let found = match file {
            Some(file) => self.images().attached_by(number, &image, file.id).await?,
            None => None,
        };
        if found.is_some_and(|device| device.is_for(id.as_str()) && device.going() == Going::WhenTold) {
            return Ok(());
        }
        if let Some(shown) = self.images().mount_at(target).await? {
            self.images().unmount(&shown).await?;
        }
        self.images().remove_target(target).await?;
        Err(Failure::Precondition(format!(
            "/dev/loop{number} is not over the image of the volume {id} any more"
        )))
    }

    /// Returns whether a volume is shown at a target as it is asked for.
    ///
    /// # Errors
    /// `Exists`: it is shown there in another way; `Precondition`: something else is.
    pub(super) async fn is_published(
        &self,
        place: &Place,
        usage: &Use,
        target: &Path,
        asked: &Asked,
    ) -> Result<bool, Failure> {
        let Some(there) = self.images().mount_at(target).await? else { return Ok(false) };
        if place.at(target).is_none_or(|ours| ours.id != there.id) {
            let problem = format!("{} is mounted at {}", there.source, target.display());
            return Err(Failure::Precondition(problem));
        }
        let differs = match usage.targets.get(target) {
            Some(before) => before.differs_from(asked),
            // What was asked is lost. The whole file system may be read-only though the publication is not.
            None if there.read_only && !is_read_only(asked) => Some(OTHER_RIGHTS),
            None => self.seen_otherwise(target, asked, asked.read_only).await?,
        };
        if let Some(what) = differs {
            return Err(Failure::Exists(format!("it is published at {} with {what}", target.display())));
        }
        Ok(true)
    }

    /// Returns what is otherwise than asked in what is mounted somewhere, as far as it can be seen.
    pub(super) async fn seen_otherwise(
        &self,
        at: &Path,
        asked: &Asked,
        read_only: bool,
    ) -> Result<Option<&'static str>, Failure> {
        if asked.block {
            return Ok(None);
        }
        let seen = self.images().seen(at).await?;
        Ok(match asked.group {
            _ if read_only && !seen.read_only => Some(OTHER_RIGHTS),
            _ if !seen.goes_with(&asked.flags) => Some(OTHER_FLAGS),
            // Where nobody can write nobody's group was set.
            Some(group) if group != seen.group && !seen.read_only => Some(OTHER_GROUP),
            Some(_) | None => None,
        })
    }

    /// Writes down what was asked of a target, unless it is.
    pub(super) async fn note_target(
        &self,
        id: &Id,
        mut usage: Use,
        target: &Path,
        asked: Asked,
    ) -> Result<(), Failure> {
        if !usage.targets.contains_key(target) {
            usage.targets.insert(target.to_owned(), asked);
            self.store().set_usage(id, &usage).await?;
        }
        Ok(())
    }

    /// Makes the directory of a target; an empty one may be there.
    ///
    /// # Errors
    /// `Precondition`: something else is there, and stays.
    pub(super) async fn make_target(&self, target: &Path) -> Result<(), Failure> {
        self.images().make_target(target).await.map_err(taken)
    }

    /// Unpublishes a volume. Its lock is held.
    pub(super) async fn unpublish(&self, id: &Id, given: &Path) -> Result<(), Failure> {
        let target = self.target_if_any(given).await?;
        let volume = self.store().volumes.get(id);
        if let Some(target) = &target {
            if let Some(there) = self.images().mount_at(target).await? {
                let place = self.place_as_before(id).await?;
                if place.left_at(target).is_none_or(|ours| ours.id != there.id) {
                    let problem =
                        format!("{} is mounted at {}, not the volume {id}", there.source, target.display());
                    return Err(Failure::Precondition(problem));
                }
                self.images().unmount(&there).await?;
                fault::reached("unpublish:unmount");
                info!(volume = %id, target = %target.display(), "unpublished");
            }
            // Empty, and so taken for the one that publishing made: after a reboot nobody knows, and it has to go.
            if volume.is_some() || self.images().real_directory(target).await?.is_some() {
                self.images().remove_target(target).await?;
            }
            fault::reached("unpublish:target");
        }
        let Some(volume) = volume else { return Ok(()) };
        if volume.ephemeral {
            return self.discard_volume(id).await;
        }
        let mut usage = self.store().usage(id).await;
        if usage.targets.remove(target.as_deref().unwrap_or(given)).is_some() {
            self.note_gone(id, &usage).await;
        }
        Ok(())
    }

    /// Writes down that a volume is not shown any more. It is only a hint, and what is mounted is looked up: on a full host,
    /// where nothing can be written, pods must still be able to go.
    pub(super) async fn note_gone(&self, id: &Id, usage: &Use) {
        if let Err(error) = self.store().set_usage(id, usage).await {
            warn!(volume = %id, "what is noted of its use stays: {}", Chain(&error));
        }
    }

    /// Finds the real path of a target, which need not be there; its parent has to be.
    pub(super) async fn target(&self, given: &Path) -> Result<PathBuf, Failure> {
        let parent = given.parent().unwrap_or(Path::new("/"));
        let found = self.target_if_any(given).await?;
        found.ok_or_else(|| Failure::Precondition(format!("there is no directory {}", parent.display())))
    }

    async fn target_if_any(&self, given: &Path) -> Result<Option<PathBuf>, Failure> {
        let parent = self.images().real_directory(given.parent().unwrap_or(Path::new("/"))).await?;
        Ok(parent.zip(given.file_name()).map(|(parent, name)| parent.join(name)))
    }
}

/// What is in a target's place has to go first.
fn taken(error: HostError) -> Failure {
    match error {
        HostError::NotEmpty { .. } | HostError::WrongKind { .. } => Failure::Precondition(error.to_string()),
        error => error.into(),
    }
}

/// Returns whether nobody is to write to a publication, however that was said.
fn is_read_only(asked: &Asked) -> bool {
    asked.read_only || read_only(&asked.flags)
}

fn other_group(wanted: u32, found: Option<u32>, at: &Path) -> Failure {
    let found = found
        .map_or_else(|| "without a volume_mount_group".to_owned(), |group| format!("for the group {group}"));
    Failure::Precondition(format!(
        "it cannot be published for the group {wanted}: it is mounted at {} {found}, and what is in it has one group",
        at.display()
    ))
}

/// Refuses options of the file system with which it was not staged: a publication shows what is mounted.
fn check_options(volume: &Volume, usage: &Use, asked: &Asked) -> Result<(), Failure> {
    // What was asked may be lost.
    let Some((at, staged)) = &usage.staging else { return Ok(()) };
    let staged = of_the_file_system(&options(&staged.flags, volume.allocation));
    let wanted = of_the_file_system(&asked.flags);
    let missing: Vec<&str> = wanted.difference(&staged).map(String::as_str).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let staged: Vec<&str> = staged.iter().map(String::as_str).collect();
    Err(Failure::Precondition(format!(
        "the mount options {} are the whole file system's, and it is staged at {} with {}",
        missing.join(","),
        at.display(),
        staged.join(",")
    )))
}

/// Refuses a second target where the access mode has one (csi.md 2.7, "Second NodePublish").
fn check_sharing(
    usage: &Use,
    place: &Place,
    staging: &Path,
    target: &Path,
    mode: Mode,
) -> Result<(), Failure> {
    let shown = place.mounts.iter().chain(&place.binds).map(|mount| mount.point.as_path());
    let Some(other) = shown.into_iter().find(|at| *at != staging && *at != target) else { return Ok(()) };
    let single = |mode: i32| mode == i32::from(Mode::SingleNodeSingleWriter);
    let before = usage.targets.get(other).is_some_and(|before| single(before.mode));
    if before || single(i32::from(mode)) {
        return Err(Failure::Precondition(format!(
            "it is published at {}, and SINGLE_NODE_SINGLE_WRITER has one target",
            other.display()
        )));
    }
    Ok(())
}
