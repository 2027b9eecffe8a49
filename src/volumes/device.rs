//! Block devices of the host: mounted once for the node and bound for each pod, or shown raw (kubelet.md 4.6, 1.11).

use super::{Answer, Call, Disk, ExpandError, Place, Site, VolumeType, host_failure, own, pod_directories};
use crate::BoxFuture;
use crate::error::Chain;
use crate::host::{
    Bind, BlockMap, DeviceUsers, Directory, DiskError, DiskGrowth, HostError, Progress, Removal, Tree,
};
use crate::model::{
    BlockedCause, Checked, Content, DiskMount, DiskSource, Effect, ExpandArguments, ExpansionState, Failure,
    FsGrowth, KnownContent, MountsAt, PublicationId, PublishArguments, PublishStep, Retry, RootPath,
    SecretMap, StageArguments, StageStep, VolumeMode,
};

/// The type.
#[derive(Debug)]
pub(super) struct Device;

impl VolumeType for Device {
    /// Mounts the file system that was made sure of; of a raw device there is nothing to do.
    fn stage<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        step: &'a StageStep,
    ) -> BoxFuture<'a, Result<Vec<String>, Failure>> {
        Box::pin(async move {
            let arguments = &step.arguments;
            let disk = disk_of(call)?;
            let mut notes: Vec<String> = volatile_name(call, disk).into_iter().collect();
            if arguments.capability.volume_mode == VolumeMode::Block {
                return Ok(notes);
            }
            let at = below_root(site, &arguments.staging_path)?;
            let KnownContent::FileSystem(file_system) = &disk.content else { return Err(unprepared()) };
            let mounts = site.host.mounts().await.map_err(|error| failure(&error, Effect::NotDone))?;
            let is_free = matches!(mounts.at(&arguments.staging_path), MountsAt::None);
            drop(mounts);
            if is_free {
                create(site, &at).await?;
            }
            let options = arguments.capability.mount_flags.clone();
            let read_only = options.iter().any(|option| option.split(',').any(|one| one.trim() == "ro"));
            let (identity, file_system) = (disk.identity.clone(), file_system.clone());
            let mount = DiskMount { identity, file_system, options, read_only };
            let mounted = site.host.mount_disk(disk.node.clone(), mount, at.clone()).await;
            let mounted = mounted.map_err(|error| failure(&error, Effect::MayBeDone))?;
            match mounted.checked {
                Checked::Clean | Checked::Not(_) => {}
                Checked::Mended(said) => {
                    notes.push(format!("the check before the mount mended errors: {said}"));
                }
            }
            if !read_only && !mounted.fills {
                notes.extend(grow(site, disk, at).await.unwrap_or_else(|error| {
                    Some(format!("the file system does not fill its device: {}", Chain(&error)))
                }));
            }
            Ok(notes)
        })
    }

    fn publish<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        step: &'a PublishStep,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let arguments = step.plan.arguments.as_ref().ok_or_else(unprepared)?;
            match arguments.capability.volume_mode {
                VolumeMode::Filesystem => publish(site, &step.id, arguments).await,
                VolumeMode::Block => {
                    let (disk, at) = (disk_of(call)?, below_root(site, &arguments.target_path)?);
                    if let Some(parent) = at.parent() {
                        create(site, &parent).await?;
                    }
                    let shown = site.host.show_disk(disk.node.clone(), disk.identity.clone(), at);
                    shown.await.map_err(|error| failure(&error, Effect::MayBeDone))
                }
            }
        })
    }

    fn finish_publication<'a>(
        &'a self,
        site: &'a Site,
        step: &'a PublishStep,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let arguments = step.plan.arguments.as_ref().ok_or_else(unprepared)?;
            let mounts = site.host.mounts().await.map_err(|error| failure(&error, Effect::MayBeDone))?;
            let is_there = |path| matches!(mounts.at(path), MountsAt::One(_));
            if !is_there(&arguments.target_path) {
                return Err(vanished(&arguments.target_path));
            }
            drop(mounts);
            match (arguments.capability.volume_mode, step.ownership) {
                (VolumeMode::Block, _) => {
                    let mapped = site.host.map_block(places(site, &step.id)).await;
                    mapped.map_err(|error| failure(&error, Effect::MayBeDone))
                }
                (VolumeMode::Filesystem, Some(ownership)) => {
                    own(site, site.layout.publication(&step.id), ownership, progress).await
                }
                (VolumeMode::Filesystem, None) => Ok(()),
            }
        })
    }

    /// Lets the file system take all of its device (kubelet.md 4.13); the device itself is the operator's to make larger.
    fn expand<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        arguments: &'a ExpandArguments,
        _secrets: &'a SecretMap,
    ) -> BoxFuture<'a, Result<(), ExpandError>> {
        Box::pin(async move {
            let open = |failure| ExpandError { state: ExpansionState::Open, failure };
            let disk = disk_of(call).map_err(open)?;
            let path = disk.device.as_path();
            let found = site.host.inspect_disk(path.to_owned()).await;
            let found = found.map_err(|error| open(failure(&error, Effect::NotDone)))?;
            if disk.node == disk.device && !found.identity.is_the_recorded(&disk.identity) {
                let (recorded, found) = (disk.identity.clone(), found.identity);
                let error = DiskError::OtherDisk { path: path.to_owned(), recorded, found };
                return Err(open(failure(&HostError::Disk(Box::new(error)), Effect::NotDone)));
            }
            if let (VolumeMode::Filesystem, Some(at)) =
                (arguments.capability.volume_mode, &arguments.staging_path)
            {
                let at = below_root(site, at).map_err(open)?;
                let grown = grow(site, disk, at).await;
                grown.map_err(|error| open(failure(&error, Effect::MayBeDone)))?;
            }
            if found.bytes >= arguments.required_bytes {
                return Ok(());
            }
            let detail = format!(
                "{} has {} bytes, and the PersistentVolume says {}",
                path.display(),
                found.bytes,
                arguments.required_bytes
            );
            let refused = Failure {
                settled: true,
                retry: Retry::Slow,
                ..Failure::not_done(
                    "device-too-small",
                    detail,
                    "make the device larger (lvextend, the hypervisor, the storage): the file system follows by itself",
                )
            };
            Err(ExpandError { state: ExpansionState::Refused, failure: refused })
        })
    }

    /// What is mounted for the pod is unmounted by `execute`, which knows it (design 5, "Undo").
    fn unpublish<'a>(
        &'a self,
        site: &'a Site,
        _call: &'a Call,
        place: Place<'a>,
        forced: bool,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async move {
            if is_block(place) {
                let users = if forced { DeviceUsers::Ignored } else { DeviceUsers::Count { driver: None } };
                let unmapped = site.host.unmap_block(places(site, place.id), users).await;
                unmapped.map_err(|error| failure(&error, Effect::NotDone))?;
            }
            Ok(Answer::Done)
        })
    }

    fn clean_publication<'a>(
        &'a self,
        site: &'a Site,
        place: Place<'a>,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let removal = if is_block(place) {
                let target = site.layout.block_target(place.id);
                let mut if_empty = pod_directories(&site.layout.block_link(place.id));
                // The last pod's takes the directories of the volume with it.
                if_empty.extend(target.parent());
                if_empty.push(site.layout.raw_device(place.id));
                Removal { empty_files: vec![target], if_empty, ..Removal::default() }
            } else {
                let target = site.layout.publication(place.id);
                let if_empty = pod_directories(&target);
                Removal { directories: vec![target], if_empty, ..Removal::default() }
            };
            site.host.remove(removal).await.map_err(|error| host_failure(&error, Effect::MayBeDone))
        })
    }

    fn unstage<'a>(
        &'a self,
        _site: &'a Site,
        _call: &'a Call,
        _arguments: &'a StageArguments,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async { Ok(Answer::Done) })
    }

    fn clean_staging<'a>(
        &'a self,
        site: &'a Site,
        arguments: &'a StageArguments,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let at = below_root(site, &arguments.staging_path)?;
            let removal = match arguments.capability.volume_mode {
                VolumeMode::Filesystem => Removal { directories: vec![at], ..Removal::default() },
                VolumeMode::Block => Removal { if_empty: vec![at], ..Removal::default() },
            };
            site.host.remove(removal).await.map_err(|error| host_failure(&error, Effect::MayBeDone))
        })
    }
}

/// Binds what is mounted for the node.
async fn publish(site: &Site, id: &PublicationId, arguments: &PublishArguments) -> Result<(), Failure> {
    let not_done = |error: HostError| failure(&error, Effect::NotDone);
    let staged = arguments.staging_path.as_ref().ok_or_else(unprepared)?;
    let mounts = site.host.mounts().await.map_err(not_done)?;
    let MountsAt::One(mount) = mounts.at(staged) else { return Err(vanished(staged)) };
    let target = site.layout.publication(id);
    // An earlier try may have left its mount: the directory lies below it.
    if matches!(mounts.at(&arguments.target_path), MountsAt::None) {
        create(site, &target).await?;
    }
    let bind = Bind {
        source: staged.clone(),
        target,
        read_only: arguments.read_only,
        options: arguments.capability.mount_flags.clone(),
        before: None,
        staged: true,
    };
    let done = site.host.bind(bind).await;
    let after = site.host.mounts().await.map_err(|error| failure(&error, Effect::MayBeDone))?;
    let shown = after.at(&arguments.target_path);
    match (done, shown) {
        (Ok(()), MountsAt::One(shown)) if shown.device == mount.device && shown.root == mount.root => Ok(()),
        (Ok(()), _) => Err(vanished(staged)),
        (Err(error @ (HostError::Deadline { .. } | HostError::Busy { .. })), _) => {
            Err(failure(&error, Effect::MayBeDone))
        }
        (Err(error), MountsAt::None) => Err(not_done(error)),
        (Err(error), _) => Err(failure(&error, Effect::MayBeDone)),
    }
}

/// Grows a file system that does not fill its device; returns what was done in words.
async fn grow(site: &Site, disk: &Disk, at: RootPath) -> Result<Option<String>, HostError> {
    let KnownContent::FileSystem(file_system) = &disk.content else { return Ok(None) };
    let (identity, file_system) = (disk.identity.clone(), file_system.clone());
    let growth = DiskGrowth { device: disk.node.clone(), identity, file_system, at };
    Ok(match site.host.grow_disk(growth).await? {
        FsGrowth::Enough { .. } => None,
        FsGrowth::Grown { from, bytes } => Some(format!("grew the file system from {from} to {bytes} bytes")),
    })
}

/// Says that a device's name may be another disk's after the next start of the host.
fn volatile_name(call: &Call, disk: &Disk) -> Option<String> {
    // That of a storage system's disk is looked up each time.
    let path = match call.volume.disk()? {
        DiskSource::Path(_) => &disk.device,
        DiskSource::Lun(_) => return None,
    };
    let mut parts = path.components().skip(1);
    let in_dev = parts.next().is_some_and(|part| part.as_os_str() == "dev");
    // /dev/disk/by-id/x, /dev/mapper/x, /dev/group/volume: names that somebody keeps.
    (in_dev && parts.count() == 1).then(|| {
        format!(
            "{} may be another disk's name after the next start of the host; name it in the PersistentVolume by its link below \
             /dev/disk/by-id",
            path.display()
        )
    })
}

fn is_block(place: Place<'_>) -> bool {
    place.arguments.is_some_and(|arguments| arguments.capability.volume_mode == VolumeMode::Block)
}

fn places(site: &Site, id: &PublicationId) -> BlockMap {
    BlockMap {
        published: site.layout.block_target(id),
        map: site.layout.block_map(id),
        link: site.layout.block_link(id),
    }
}

async fn create(site: &Site, path: &RootPath) -> Result<(), Failure> {
    let directory = Directory { path: path.clone(), mode: 0o750, exact: false };
    let tree = Tree { directories: vec![directory], files: Vec::new() };
    site.host.create(tree).await.map_err(|error| host_failure(&error, Effect::NotDone))
}

fn disk_of(call: &Call) -> Result<&Disk, Failure> {
    call.disk.as_ref().ok_or_else(unprepared)
}

fn unprepared() -> Failure {
    Failure::not_done(
        "no-arguments",
        "the record is not that of a device whose disk is known",
        "report this as a fault of volumed",
    )
}

fn below_root(site: &Site, path: &std::path::Path) -> Result<RootPath, Failure> {
    site.layout.relative(path).ok_or_else(|| {
        Failure::not_done(
            "obstacle",
            format!("{} is not below the root directory", path.display()),
            "start volumed with the root directory that staged the volume",
        )
    })
}

fn vanished(path: &std::path::Path) -> Failure {
    Failure {
        effect: Effect::MayBeDone,
        settled: true,
        retry: Retry::Backoff,
        cause: BlockedCause::new("vanished", format!("{} was unmounted meanwhile", path.display())),
        remedy: "find out who unmounts it; volumed goes on by itself".to_owned(),
    }
}

/// Returns the failure of a step that a disk stands in the way of, with what to do about it.
pub fn failure(error: &HostError, effect: Effect) -> Failure {
    let disk = match error {
        HostError::Disk(disk) => disk,
        HostError::Lun(lun) => return super::lun::failure(lun, effect),
        other => return host_failure(other, effect),
    };
    let (code, retry, remedy) = match &**disk {
        DiskError::NoDevice { .. } => (
            "device-missing",
            Retry::Soon,
            "connect the disk, or let spec.local.path name the device that is meant; volumed goes on by itself",
        ),
        DiskError::NotBlank { found: Content::Unclear { .. }, .. }
        | DiskError::OtherContent { found: Content::Unclear { .. }, .. } => (
            "unclear",
            Retry::Backoff,
            "look at the device by hand (blkid -p, dmesg): nothing is formatted or mounted in doubt",
        ),
        DiskError::OtherDisk { .. } | DiskError::OtherContent { .. } => (
            "other-disk",
            Retry::Backoff,
            "connect the recorded disk; or, if this one is meant, say so: volumectl accept-identity with the claim's or the pod's name",
        ),
        DiskError::NotBlank { .. } => (
            "not-blank",
            Retry::Backoff,
            "name another device; or erase this one by hand if nobody needs what is on it",
        ),
        DiskError::InUse { .. } => {
            ("in-use", Retry::Soon, "stop who has the device; volumed goes on by itself")
        }
        DiskError::Errors { .. } => (
            "file-system-errors",
            Retry::Backoff,
            "mend it by hand with the command that the message names, then volumectl retry: a file system with errors is not mounted",
        ),
        DiskError::TooSmall { .. } => (
            "device-too-small",
            Retry::Backoff,
            "use a larger device, or write the capacity that it has into the PersistentVolume",
        ),
        DiskError::WrongKey { .. } => (
            "wrong-key",
            Retry::Backoff,
            "give the key with which the disk was encrypted; nothing was changed",
        ),
        DiskError::ReadOnly { .. } => (
            "read-only",
            Retry::Backoff,
            "make the device writable (blockdev --setrw), or use one that has a file system",
        ),
        DiskError::Options { .. } => {
            ("mount-options", Retry::Backoff, "mend spec.mountOptions of the PersistentVolume")
        }
        _ => ("host", Retry::Backoff, "mend what the message names; volumed tries again by itself"),
    };
    Failure {
        retry,
        remedy: remedy.to_owned(),
        cause: BlockedCause::new(code, Chain(error).to_string()),
        ..host_failure(error, effect)
    }
}
