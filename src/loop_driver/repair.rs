//! What a crash left behind is put in order before anybody is served: steps that were begun are finished or undone, loop devices
//! of nobody go. Nothing is unmounted. What has to go of directories may be millions of files: the start waits a moment for it, and
//! then it goes on beside the calls. (Frozen file systems thaw before that: `Driver::open`.)

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{info, warn};

use super::errors::Failure;
use super::locks::Key;
use super::store::{Content, Group, IMAGE, Id, State, Volume, VolumeState};
use super::{Breaks, Driver};
use crate::error::Chain;
use crate::host::images::{Attached, FileId, Going};

/// How long the start waits, in all, for directories that have to go.
const PATIENCE: Duration = Duration::from_secs(5);

impl Driver {
    /// Puts everything in order. What cannot be now is tried again by the call that meets it.
    pub(super) async fn repair(&self) {
        let mut directories = Vec::new();
        for group in self.store().groups.all() {
            if group.state == State::Ready {
                continue;
            }
            if self.has_directories(&group) {
                directories.push(Key::Group(group.id));
            } else {
                tell("group", &group.id, self.discard_group(&group.id).await);
            }
        }
        for snapshot in self.store().snapshots.all() {
            if snapshot.state != State::Ready && snapshot.content.is_directory() {
                directories.push(Key::Snapshot(snapshot.id));
            } else if snapshot.state != State::Ready {
                tell("snapshot", &snapshot.id, self.discard_snapshot(&snapshot.id).await);
            } else if self.is_orphan(&snapshot) {
                warn!(snapshot = %snapshot.id, "its group is gone; it stays until it is deleted by itself");
            }
        }
        for volume in self.store().volumes.all() {
            if volume.state.is_leftover() && volume.content.is_directory() {
                directories.push(Key::Volume(volume.id));
            } else {
                tell("volume", &volume.id, self.repair_volume(&volume).await);
            }
        }
        let driver = self.clone();
        self.begin(PATIENCE, async move { driver.discard_all(directories).await }).await;
        if let Err(failure) = self.collect_devices().await {
            warn!("loop devices that nobody uses may be left: {}", Chain(&failure));
        }
    }

    /// Returns whether a member of a group is a directory.
    fn has_directories(&self, group: &Group) -> bool {
        let mut members = group.members.values().filter_map(|id| self.store().snapshots.get(id));
        members.any(|snapshot| snapshot.content.is_directory())
    }

    /// Begins something that is done to its end, as a call is, and waits for that no longer than this.
    async fn begin(&self, limit: Duration, work: impl Future<Output = ()> + Send + 'static) {
        let breaks = Breaks(Some(self.inner.broken.clone()));
        let task = self.inner.calls.spawn(async move {
            work.await;
            breaks.passed();
        });
        if tokio::time::timeout(limit, task).await.is_err() {
            info!("what has to go of directories is much: it goes on while calls are answered");
        }
    }

    /// Removes what has to go of these, one after the other, so that calls have places for theirs.
    async fn discard_all(&self, left: Vec<Key>) {
        for key in left {
            // The next start goes on.
            if self.inner.calls.is_closed() {
                return;
            }
            match &key {
                Key::Group(id) => tell("group", id, self.discard_left(&key).await),
                Key::Snapshot(id) => tell("snapshot", id, self.discard_left(&key).await),
                Key::Volume(id) => tell("volume", id, self.discard_left(&key).await),
            }
        }
    }

    /// Removes one of these with its locks, unless a call did that meanwhile or is about to.
    async fn discard_left(&self, key: &Key) -> Result<(), Failure> {
        let group = match key {
            Key::Group(id) => self.store().groups.get(id),
            Key::Snapshot(_) | Key::Volume(_) => None,
        };
        let members = group.iter().flat_map(|group| group.members.values().cloned());
        let keys: Vec<Key> = members.map(Key::Snapshot).chain([key.clone()]).collect();
        let lock = match self.inner.locks.take(keys).await {
            Err(Failure::Pending(_)) => return Ok(()),
            taken => taken?,
        };
        let done = match key {
            Key::Group(id) => {
                let found = self.store().groups.get(id).filter(|found| found.state != State::Ready);
                // Another one by now has members that are not locked.
                match found.filter(|found| group.is_some_and(|group| group.members == found.members)) {
                    Some(_) => self.discard_group(id).await,
                    None => Ok(()),
                }
            }
            Key::Snapshot(id) => match self.store().snapshots.get(id) {
                Some(found) if found.state != State::Ready => self.discard_snapshot(id).await,
                Some(_) | None => Ok(()),
            },
            Key::Volume(id) => match self.store().volumes.get(id) {
                Some(found) if found.state.is_leftover() => self.discard_volume(id).await,
                Some(_) | None => Ok(()),
            },
        };
        drop(lock);
        done
    }

    async fn repair_volume(&self, volume: &Volume) -> Result<(), Failure> {
        let id = &volume.id;
        match volume.state {
            VolumeState::Creating | VolumeState::Deleting => return self.discard_volume(id).await,
            VolumeState::Growing { to } => {
                let length = match volume.content {
                    Content::Directory(_) => self.limit_of(volume).await?,
                    Content::FileSystem(_) | Content::Block => {
                        let image = self.store().volume_image(id);
                        self.images().look(&image).await?.map_or(0, |file| file.length)
                    }
                };
                let mut volume = volume.clone();
                volume.state = VolumeState::Ready;
                if length >= to {
                    volume.bytes = to;
                    volume.grown = volume.content.grown(volume.grown, to);
                }
                info!(volume = %id, bytes = volume.bytes, "its growth was interrupted");
                self.store().volumes.put(volume).await?;
            }
            VolumeState::Ready => {}
        }
        self.take_size(id).await
    }

    /// Lets those of our loop devices go that stay by themselves and that nobody uses: over an image that is gone, or over
    /// that of a volume which is not staged.
    async fn collect_devices(&self) -> Result<(), Failure> {
        let mut images: BTreeMap<FileId, Id> = BTreeMap::new();
        for volume in self.store().volumes.all() {
            if let Some(file) = self.images().look(&self.store().volume_image(&volume.id)).await? {
                images.insert(file.id, volume.id);
            }
        }
        for device in self.images().all_attached(IMAGE).await? {
            let volume = images.get(&device.file());
            // Over the image of another driver like this one.
            if volume.is_none() && !device.lost_its_image(self.store().directory()) {
                continue;
            }
            if device.going() == Going::WhenTold && !self.is_used(volume, &device).await? {
                let device_node = device.node();
                match self.images().detach(&device).await {
                    Ok(()) => info!(device = %device_node.display(), "a loop device that nobody uses went"),
                    Err(error) => {
                        warn!(device = %device_node.display(), "a loop device stays: {}", Chain(&error));
                    }
                }
            }
        }
        Ok(())
    }

    async fn is_used(&self, volume: Option<&Id>, device: &Attached) -> Result<bool, Failure> {
        let Some(id) = volume else {
            // Its image is gone: whoever still sees the device sees what was in it.
            let name = format!("loop{}", device.number());
            let mounts = self.images().mounts().await?;
            let shown = mounts.iter().any(|mount| {
                mount.source == format!("/dev/{name}")
                    || mount.root.file_name().is_some_and(|root| root == name.as_str())
            });
            return Ok(shown);
        };
        let place = self.place(id).await?;
        let shown = !place.mounts.is_empty() || !place.binds.is_empty();
        // Of what could not be written down on a full host nothing is known.
        Ok(shown || self.store().usage(id).await.staging.is_some() || !self.store().is_noted(id))
    }
}

fn tell(what: &str, id: &Id, done: Result<(), Failure>) {
    if let Err(failure) = done {
        warn!("the {what} {id} is not in order: {}", Chain(&failure));
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshots::new_snapshot;
    use super::super::store::VERSION;
    use super::super::{Config, Flags};
    use super::*;
    use crate::host::images::{Allocation, FsType};

    async fn open(directory: &std::path::Path) -> Driver {
        let file = directory.join("config");
        std::fs::write(&file, "").unwrap();
        let dir = Some(directory.join("images"));
        let flags = Flags { dir, node_id: Some("n".to_owned()), ..Flags::default() };
        Driver::open(Config::load(Some(&file), flags).unwrap()).await.unwrap()
    }

    fn volume(id: &Id, content: Content, state: VolumeState) -> Volume {
        Volume {
            version: VERSION,
            id: id.clone(),
            name: id.to_string(),
            state,
            bytes: 1 << 20,
            grown: 1 << 20,
            content,
            allocation: Allocation::Thin,
            project: content.is_directory().then_some(1_000_000_000),
            source: None,
            ephemeral: false,
            shared: 0,
            created: 0,
        }
    }

    #[tokio::test]
    async fn a_start_waits_for_a_long_removal_a_moment_only() {
        let directory = tempfile::tempdir().unwrap();
        let driver = open(directory.path()).await;
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        // It comes back though the work has not ended.
        driver.begin(Duration::from_millis(1), async move { ended.await.unwrap() }).await;
        assert_eq!(driver.inner.calls.len(), 1);
        end.send(()).unwrap();
        driver.inner.calls.close();
        driver.inner.calls.wait().await;
        assert!(!driver.inner.broken.is_cancelled());
    }

    /// In namespaces of its own: only who may look at all processes can say that nobody has the directory.
    #[test]
    fn what_has_to_go_of_directories_goes_but_not_what_a_call_works_with() {
        let name =
            "loop_driver::repair::tests::what_has_to_go_of_directories_goes_but_not_what_a_call_works_with";
        let test = async {
            let directory = tempfile::tempdir().unwrap();
            let driver = open(directory.path()).await;
            let [left, busy, ready] = ["left", "busy", "ready"].map(|id| Id::new(id).unwrap());
            let kind = Content::Directory(FsType::Ext4);
            for (id, state) in
                [(&left, VolumeState::Deleting), (&busy, VolumeState::Creating), (&ready, VolumeState::Ready)]
            {
                driver.store().volumes.put(volume(id, kind, state)).await.unwrap();
                let data = driver.store().volume_place(id, kind);
                std::fs::create_dir(&data).unwrap();
                std::fs::write(data.join("file"), "").unwrap();
            }
            let works = driver.inner.locks.take([Key::Volume(busy.clone())]).await.unwrap();
            driver.discard_all([&left, &busy, &ready].map(|id| Key::Volume(id.clone())).into()).await;
            let there = |id| driver.store().volume_place(id, kind).join("file").try_exists().unwrap();
            assert!(driver.store().volumes.get(&left).is_none() && !there(&left));
            assert!(there(&busy) && there(&ready));
            drop(works);
            driver.repair().await;
            assert!(driver.store().volumes.get(&busy).is_none() && !there(&busy));
            assert!(there(&ready));
        };
        crate::alone::run(name, test, |_directory| ());
    }

    #[tokio::test]
    async fn a_snapshot_that_could_not_be_written_down_takes_those_before_it_along() {
        let directory = tempfile::tempdir().unwrap();
        let driver = open(directory.path()).await;
        let [one, other] = ["one", "other"].map(|id| Id::new(id).unwrap());
        let of = volume(&one, Content::Block, VolumeState::Ready);
        // What is no directory can have no meta.json in it.
        std::fs::write(driver.store().snapshots.directory(&other), "").unwrap();
        let wanted = [&one, &other].map(|id| new_snapshot(id.clone(), id.to_string(), &of, None));
        driver.take_snapshots(wanted.into()).await.unwrap_err();
        assert!(driver.store().snapshots.get(&one).is_none());
        assert!(!driver.store().snapshots.directory(&one).try_exists().unwrap());
    }
}
