//! What is looked at before a call is made and after it was answered (design rules 3 and 10).
//!
//! Drivers unmount once and then delete what they see. So nobody is called for a path unless what lies there is what the
//! record says, and nothing counts as done unless the mount table shows it.

use std::path::Path;

use super::Executor;
use crate::host::{Seen, Unmount};
use crate::model::{
    BlockedCause, CallState, Effect, Failure, MountIdentity, MountTable, MountsAt, PublicationRecord,
    PublishArguments, PublishStep, RecordedMount, Retry, StageStep, StagingRecord, VolumeMode, VolumeRecord,
};
use crate::mutant::{self, Mutant};
use crate::volumes::{Answer, DriverLine, IN_USE_REMEDY, host_failure};

/// Refuses to stage where a stranger's mount lies. A mount that a former try may have made is fine: staging is repeated; so
/// is the one that the plan knows to be this volume's by a kubelet's hand.
pub(super) async fn before_staging(
    executor: &Executor,
    record: &VolumeRecord,
    step: &StageStep,
) -> Result<(), Failure> {
    let table = executor.host.mounts().await.map_err(|error| host_failure(&error, Effect::NotDone))?;
    let path = &step.arguments.staging_path;
    if is_adopted(&table, path, step.adopt.as_ref()) {
        return Ok(());
    }
    let ours = record.staging.as_ref().map(|staging| (&staging.state, staging.boot == executor.boot));
    may_do(&table, path, ours)?;
    let is_free = matches!(table.at(path), MountsAt::None);
    drop(table);
    not_hidden(executor, path, is_free, ours, false).await
}

/// Refuses to publish where a stranger's mount or files lie.
pub(super) async fn before_publication(
    executor: &Executor,
    record: &VolumeRecord,
    step: &PublishStep,
) -> Result<(), Failure> {
    let recorded = record.publications.get(&step.id);
    let path = match &step.plan.arguments {
        Some(arguments) => arguments.target_path.clone(),
        None => executor.layout.absolute(&executor.layout.target(&step.id)),
    };
    let table = executor.host.mounts().await.map_err(|error| host_failure(&error, Effect::NotDone))?;
    let adopted = step.adopt.as_ref().and_then(|adoption| adoption.mount.as_ref());
    if is_adopted(&table, &path, adopted) {
        return Ok(());
    }
    // A kubelet's emptyDir is taken over with its content; what lies where a driver's mount is to be may be anybody's.
    let adopts_files = step.adopt.is_some() && step.plan.arguments.is_none();
    let ours = recorded.map(|publication| (&publication.state, publication.boot == executor.boot));
    may_do(&table, &path, ours)?;
    let is_block = step.plan.arguments.as_ref().is_some_and(is_block);
    let is_free = matches!(table.at(&path), MountsAt::None);
    drop(table);
    not_hidden(executor, &path, is_free, ours, is_block).await?;
    let was_sent = ours.is_some_and(|ours| ours != (&CallState::Planned, true));
    if was_sent || !is_free || adopts_files {
        return Ok(());
    }
    match look(executor, &path).await? {
        seen if is_nothing(seen, is_block) => Ok(()),
        _ => Err(Failure::not_done(
            "obstacle",
            format!("{} is there already and was not made by volumed", path.display()),
            "move it away",
        )),
    }
}

fn is_block(arguments: &PublishArguments) -> bool {
    arguments.capability.volume_mode == VolumeMode::Block
}

/// Whether a driver that deletes what it sees there deletes nothing of anybody's. For block a device node or a link to one
/// holds no data (design rule 10).
fn is_nothing(seen: Seen, is_block: bool) -> bool {
    match seen {
        Seen::Absent | Seen::EmptyDirectory => true,
        Seen::EmptyFile | Seen::Device | Seen::Symlink => is_block,
        Seen::Directory | Seen::Other => false,
    }
}

async fn look(executor: &Executor, path: &Path) -> Result<Seen, Failure> {
    let Some(relative) = executor.layout.relative(path) else {
        return Err(Failure::not_done(
            "obstacle",
            format!(
                "{} is not below the root directory {}",
                path.display(),
                executor.layout.root().display()
            ),
            "start volumed with the root directory that the volume was brought up with",
        ));
    };
    executor.host.look(relative).await.map_err(|error| host_failure(&error, Effect::NotDone))
}

/// Whether exactly the mount that is to be taken over lies there, alone and with nothing below it.
fn is_adopted(table: &MountTable, path: &Path, adopt: Option<&MountIdentity>) -> bool {
    let found = match table.at(path) {
        MountsAt::One(mount) => mount.identity(),
        MountsAt::None | MountsAt::Stacked(_) => return false,
    };
    adopt == Some(&found) && table.below(path).next().is_none()
}

/// `ours`: how far an earlier call got, and whether that was in this boot.
fn may_do(table: &MountTable, path: &Path, ours: Option<(&CallState, bool)>) -> Result<(), Failure> {
    nothing_below(table, path)?;
    match (table.at(path), ours) {
        (MountsAt::None, _) => Ok(()),
        // A call of this boot whose outcome was lost: it is made again.
        (MountsAt::One(_), Some((CallState::Intended { .. } | CallState::Undoing, true))) => Ok(()),
        (MountsAt::One(mount), Some((CallState::Done { mount: RecordedMount::Mount(recorded) }, _)))
            if mount.identity().same_but_device(recorded) =>
        {
            Ok(())
        }
        (MountsAt::One(mount), Some(_) | None) => Err(obstacle(path, &mount.identity())),
        (MountsAt::Stacked(mounts), _) => {
            let top = mounts.last().map_or_else(String::new, |mount| mount.identity().to_string());
            Err(Failure::not_done(
                "obstacle",
                format!("several mounts lie on {}; the topmost is {top}", path.display()),
                "unmount what is not the volume's",
            ))
        }
    }
}

/// Refuses to mount over files that somebody wrote where a mount has vanished: they would be hidden, and be deleted by a driver
/// that takes the mount down. A driver that mounts nothing keeps its own files there.
async fn not_hidden(
    executor: &Executor,
    path: &Path,
    is_free: bool,
    ours: Option<(&CallState, bool)>,
    is_block: bool,
) -> Result<(), Failure> {
    match ours {
        Some((CallState::Done { mount: RecordedMount::Mount(_) }, _)) if is_free => {}
        Some(_) | None => return Ok(()),
    }
    match look(executor, path).await? {
        seen if is_nothing(seen, is_block) => Ok(()),
        _ => Err(Failure::not_done(
            "obstacle",
            format!("{} is no mount any more, and there is something in it", path.display()),
            "move it away; volumed goes on by itself",
        )),
    }
}

/// Returns what a call that was answered OK left at its path.
pub(super) async fn found(executor: &Executor, path: &Path) -> Result<RecordedMount, Failure> {
    let table = executor.host.mounts().await.map_err(|error| host_failure(&error, Effect::MayBeDone))?;
    match table.at(path) {
        MountsAt::None => Ok(RecordedMount::NotAMountPoint),
        MountsAt::One(mount) => Ok(RecordedMount::Mount(mount.identity())),
        MountsAt::Stacked(mounts) => Err(Failure {
            effect: Effect::MayBeDone,
            settled: false,
            retry: Retry::Backoff,
            cause: BlockedCause::new(
                "obstacle",
                format!("{} mounts lie on {}", mounts.len(), path.display()),
            ),
            remedy: "unmount what is not the volume's".to_owned(),
        }),
    }
}

/// Refuses to call NodeUnpublishVolume for what is not what was recorded. Returns what may be unmounted if the driver does not.
pub(super) async fn before_unpublication(
    executor: &Executor,
    publication: &PublicationRecord,
) -> Result<Option<MountIdentity>, Failure> {
    let Some(arguments) = &publication.arguments else { return Ok(None) };
    let ours = (&publication.state, publication.boot == executor.boot);
    before_undo(executor, &arguments.target_path, ours, is_block(arguments)).await
}

/// The same for NodeUnstageVolume.
pub(super) async fn before_unstaging(
    executor: &Executor,
    staging: &StagingRecord,
) -> Result<Option<MountIdentity>, Failure> {
    let ours = (&staging.state, staging.boot == executor.boot);
    before_undo(executor, &staging.arguments.staging_path, ours, false).await
}

/// Refuses to unstage what somebody still has (design rule 4).
pub(super) async fn nobody_has(
    executor: &Executor,
    staging: &StagingRecord,
    line: Option<&DriverLine>,
) -> Result<(), Failure> {
    let path = &staging.arguments.staging_path;
    let table = executor.host.mounts().await.map_err(|error| host_failure(&error, Effect::NotDone))?;
    let is_staged = matches!(table.at(path), MountsAt::One(_));
    drop(table);
    let Some(relative) = executor.layout.relative(path).filter(|_| is_staged) else { return Ok(()) };
    let driver = line.and_then(|line| line.client.pid());
    let holders = executor.host.holders(relative, driver).await;
    let holders = holders.map_err(|error| host_failure(&error, Effect::NotDone))?;
    if holders.is_empty() || mutant::is(Mutant::UnstageHeld) {
        return Ok(());
    }
    let named = holders.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    Err(Failure {
        effect: Effect::NotDone,
        settled: false,
        retry: Retry::Soon,
        cause: BlockedCause::new("in-use", named),
        remedy: IN_USE_REMEDY.to_owned(),
    })
}

async fn before_undo(
    executor: &Executor,
    path: &Path,
    (state, this_boot): (&CallState, bool),
    is_block: bool,
) -> Result<Option<MountIdentity>, Failure> {
    let table = executor.host.mounts().await.map_err(|error| host_failure(&error, Effect::NotDone))?;
    if mutant::is(Mutant::UndoUnseen) {
        return Ok(match table.at(path) {
            MountsAt::One(mount) => Some(mount.identity()),
            MountsAt::None | MountsAt::Stacked(_) => None,
        });
    }
    nothing_below(&table, path)?;
    match (table.at(path), state) {
        // Exactly the recorded mount, or a mount alone at its place that got a new device number (FUSE, network).
        (MountsAt::One(mount), CallState::Done { mount: RecordedMount::Mount(recorded) })
            if mount.identity().same_but_device(recorded) =>
        {
            Ok(Some(mount.identity()))
        }
        // The outcome of a call of this boot was lost: the only mount there.
        (MountsAt::One(mount), CallState::Intended { .. } | CallState::Undoing) if this_boot => {
            Ok(Some(mount.identity()))
        }
        (MountsAt::One(mount), _) => Err(obstacle(path, &mount.identity())),
        (MountsAt::Stacked(mounts), _) => Err(Failure::not_done(
            "obstacle",
            format!("{} mounts lie on {}", mounts.len(), path.display()),
            "unmount what is not the volume's; volumed goes on by itself",
        )),
        (MountsAt::None, CallState::Done { mount: RecordedMount::NotAMountPoint }) if this_boot => Ok(None),
        (MountsAt::None, _) => match look(executor, path).await? {
            seen if is_nothing(seen, is_block) => Ok(None),
            _ => Err(Failure::not_done(
                "obstacle",
                format!("{} has files in it and is no mount: a driver might delete them", path.display()),
                "move the files away; volumed goes on by itself",
            )),
        },
    }
}

/// Refuses to forget what was never sent while something is mounted at its path.
pub(super) async fn nothing_mounted(executor: &Executor, path: &Path) -> Result<(), Failure> {
    let table = executor.host.mounts().await.map_err(|error| host_failure(&error, Effect::NotDone))?;
    may_do(&table, path, None)
}

fn nothing_below(table: &MountTable, path: &Path) -> Result<(), Failure> {
    match table.below(path).next() {
        None => Ok(()),
        Some(below) => Err(Failure::not_done(
            "obstacle",
            format!("{} is mounted below {}", below.point.display(), path.display()),
            "unmount it; volumed goes on by itself",
        )),
    }
}

/// Makes sure that an undo that was answered has happened: unmounts what the driver left, if it is the recorded mount.
pub(super) async fn after_undo(
    executor: &Executor,
    path: &Path,
    recorded: Option<&MountIdentity>,
    answer: Answer,
    how: Unmount,
) -> Result<(), Failure> {
    let table = executor.host.mounts().await.map_err(|error| host_failure(&error, Effect::MayBeDone))?;
    let left = match table.at(path) {
        MountsAt::None => return Ok(()),
        MountsAt::One(mount) => mount.identity(),
        MountsAt::Stacked(_) => return Err(still_there(path, answer, "several mounts")),
    };
    drop(table);
    match (answer, recorded, executor.layout.relative(path)) {
        (Answer::Done, Some(recorded), Some(relative)) if *recorded == left => executor
            .host
            .unmount(relative, left, how)
            .await
            .map_err(|error| host_failure(&error, Effect::MayBeDone)),
        (Answer::Done | Answer::NotFound, _, _) => Err(still_there(path, answer, &left.to_string())),
    }
}

fn still_there(path: &Path, answer: Answer, left: &str) -> Failure {
    let said = match answer {
        Answer::Done => "OK",
        Answer::NotFound => "NOT_FOUND",
    };
    Failure {
        effect: Effect::MayBeDone,
        settled: false,
        retry: Retry::Backoff,
        cause: BlockedCause::new(
            "still-mounted",
            format!("the driver answered {said}, and {} is still mounted: {left}", path.display()),
        ),
        remedy: "look at the driver's log; unmount it by hand if it is not in use".to_owned(),
    }
}

fn obstacle(path: &Path, found: &MountIdentity) -> Failure {
    Failure::not_done(
        "obstacle",
        format!("a mount that volumed did not record lies on {}: {found}", path.display()),
        "find out who mounted it and unmount it; volumed goes on by itself",
    )
}
