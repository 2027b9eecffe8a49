//! What the world must come to once the trouble has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use volumed::model::{
    CallState, DiskSource, DriverName, ExpansionState, Layout, Plugin, Presence, PublicationId,
    RecordedVolume, SpecName, Status, VolumeKey, VolumeRecord,
};

use super::request::Request;
use super::wish::{self, DRIVERS, Wish};
use super::world::{Node, ROOT, State};

/// Compares the world with the wish.
pub fn differences(state: &State, wish: &Wish, status: &Status) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut mounts: BTreeMap<PathBuf, String> = BTreeMap::new();
    for mount in &state.mounts {
        if let Some(other) = mounts.insert(mount.point.clone(), mount.source.clone()) {
            wrong.push(format!("{} lies on {other} at {}", mount.source, mount.point.display()));
        }
    }
    let mut stagings: BTreeMap<PathBuf, u64> = BTreeMap::new();
    let staying = || wish.pods.iter().filter(|(_, pod)| !pod.leaving);
    let mut kept = BTreeSet::new();
    let mut of_one_pod: BTreeMap<u64, usize> = BTreeMap::new();
    for (name, pod) in staying() {
        stagings.extend(pod.claims.iter().map(|volume| (staging(*volume), *volume)));
        stagings.extend(pod.twin.map(|twin| (staging_as(twin.of, &twin.name()), twin.of)));
        for place in wish::places(name, pod) {
            let shown = status.volumes.values().find_map(|volume| volume.publications.get(&place));
            let is_shown = shown.map(|shown| shown.presence) == Some(Presence::Yes);
            let may_wait = |volume| state.waits_for_others(volume) || state.waits_for_room(volume);
            let has_room = pod.inline.is_none_or(|driver| state.drivers[driver].limit == 0);
            let is_inline = place.plugin == Plugin::Csi && wish::volume_at(&place).is_none();
            if !is_shown && is_inline && !has_room {
                continue;
            }
            if !is_shown && wish::volume_at(&place).is_some_and(may_wait) {
                continue;
            }
            if let Some(volume) = wish::volume_at(&place).filter(|volume| wish::is_single_pod(*volume)) {
                *of_one_pod.entry(volume).or_default() += usize::from(is_shown);
                if !is_shown {
                    continue;
                }
            }
            if !is_shown {
                wrong.push(format!("{place} is not shown as published: {shown:?}"));
            }
            if place.plugin != Plugin::EmptyDir {
                published(state, &place, &mut mounts, &mut wrong);
            }
        }
    }
    let pods_of_one = of_one_pod
        .iter()
        .filter(|(volume, pods)| **pods != 1 && !(**pods == 0 && state.is_kept(&wish::handle(**volume))));
    wrong.extend(pods_of_one.map(|(volume, pods)| format!("pv{volume} is for one pod, and {pods} have it")));
    sizes(state, wish, &mut wrong);
    room(state, wish, &mut wrong);
    for (path, left) in &state.left {
        mounts.remove(path).filter(|source| *source != left.handle).into_iter().for_each(|source| {
            wrong.push(format!("{source} is at {}, which is {left:?}", path.display()));
        });
    }
    // Where others are shown a volume, it stays staged.
    for volume in (0..wish::VOLUMES).filter(|volume| state.is_kept(&wish::handle(*volume))) {
        let path = staging(volume);
        if !stagings.contains_key(&path) {
            mounts.remove(&path);
            kept.insert(path);
        }
    }
    if wish.device && staying().any(|(_, pod)| pod.local) {
        let (layout, disk) = (Layout::new(ROOT), DiskSource::Path(wish::DISK.into()));
        let staged =
            layout.absolute(&layout.device_staging(&disk, &SpecName::new(wish::LOCAL).expect("good")));
        let mounted = mounts.remove(&staged);
        if mounted.as_deref() != Some(wish::DISK) {
            wrong.push(format!("the disk is not mounted at {}, but {mounted:?}", staged.display()));
        }
        let disk = state.disks.get(std::path::Path::new(wish::DISK));
        wrong.extend(
            disk.filter(|disk| disk.used != disk.bytes)
                .map(|disk| format!("the file system has {} of its disk's {} bytes", disk.used, disk.bytes)),
        );
    }
    lun(state, wish, &mut mounts, &mut wrong);
    for (path, volume) in &stagings {
        let (driver, handle) = (wish::driver(*volume), wish::handle(*volume));
        let mounted = mounts.remove(path);
        if state.waits_for_others(*volume) {
            kept.insert(path.clone());
            continue;
        }
        if state.waits_for_room(*volume) {
            wrong.extend(mounted.map(|what| format!("{what} is left at {}", path.display())));
            continue;
        }
        if !state.drivers[driver].stages || state.audit.is_up_without_staging(driver, &handle) {
            let mounted = mounted.filter(|_| !state.old_places.contains(path));
            wrong.extend(mounted.map(|what| format!("{what} is left at {}", path.display())));
            continue;
        }
        if wish::is_mounted_staged(&wish::handle(*volume)) && mounted != Some(wish::handle(*volume)) {
            wrong.push(format!("volume {volume} is not mounted at {}, but {mounted:?}", path.display()));
        }
        if state.audit.up.get(path).is_none_or(|sent| sent.done_in != Some(state.boot)) {
            wrong.push(format!("volume {volume} was not staged in this boot"));
        }
    }
    wrong.extend(mounts.iter().map(|(point, what)| format!("{what} is left at {}", point.display())));
    // An emptyDir that a pod no longer lists is kept until the pod goes, so the directories of pods that stay are not judged.
    let pods: BTreeSet<String> = staying().map(|(name, _)| wish::uid(name).to_string()).collect();
    for path in state.nodes.keys() {
        let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).skip(2).collect();
        let left = match parts.as_slice() {
            ["pods", pod] => !pods.contains(*pod),
            ["plugins", "kubernetes.io", "csi", driver, _] if *driver != "volumeDevices" => {
                !stagings.keys().any(|staged| staged.starts_with(path))
            }
            _ => false,
        };
        if left && !state.is_left_in(path) && !kept.iter().any(|kept: &PathBuf| kept.starts_with(path)) {
            wrong.push(format!("the directory {} is left", path.display()));
        }
    }
    let is_kept = |record: &VolumeRecord| match &record.volume {
        RecordedVolume::Csi { handle, .. } => state.is_kept(handle),
        RecordedVolume::EmptyDir
        | RecordedVolume::Local { .. }
        | RecordedVolume::Device { .. }
        | RecordedVolume::Nfs { .. } => false,
    };
    for (key, disk) in &state.records {
        let Some(record) = &disk.written else { continue };
        if !status.volumes.contains_key(key) {
            wrong.push(format!("the record of {key} is left"));
        }
        if record.volume == RecordedVolume::EmptyDir {
            // One that its pod does not list is kept as it is.
            continue;
        }
        let calls = record.publications.values().filter(|publication| !publication.adopted);
        let calls = calls.map(|publication| &publication.state);
        // Where others are shown the volume, it is not unstaged.
        let staging = record.staging.iter().filter(|_| !is_kept(record));
        let mut calls = staging.map(|staging| &staging.state).chain(calls);
        if let Some(open) = calls.find(|state| !matches!(state, CallState::Done { .. })) {
            wrong.push(format!("a call for {key} is not done: {open:?}"));
        }
    }
    // Where drivers want to be called again and again, there is always something under way.
    for (key, volume) in status.volumes.iter().filter(|_| !wish.republish) {
        if volume.in_progress.is_some() || volume.blocked.iter().any(|blocked| blocked.next_try.is_some()) {
            wrong.push(format!("{key} is not at rest: {:?} {:?}", volume.in_progress, volume.blocked));
        }
    }
    if !wrong.is_empty() {
        let blocked = status.volumes.values().flat_map(|volume| &volume.blocked);
        wrong.extend(blocked.map(|blocked| format!("{} is blocked: {}", blocked.step, blocked.cause.detail)));
    }
    let is_at_work = state.audit.is_waiting() || !state.pending.is_empty();
    if is_at_work && !wish.republish {
        wrong.push("a driver is being called".to_owned());
    }
    wrong.extend(status.paused.iter().map(|scope| format!("{scope} is still paused")));
    wrong.extend(state.audit_at_rest());
    wrong
}

/// Compares one published place with what is there, and takes its mounts out of those that are not accounted for.
fn published(
    state: &State,
    place: &PublicationId,
    mounts: &mut BTreeMap<PathBuf, String>,
    wrong: &mut Vec<String>,
) {
    let target = wish::target(place);
    let handle = wish::volume_at(place).map(wish::handle);
    let mounted = mounts.remove(&target);
    let is_right = match &handle {
        Some(handle) if wish::is_mounted(handle) => mounted.as_ref() == Some(handle),
        Some(_) => mounted.is_none(),
        None => mounted.is_some(),
    };
    if !is_right {
        wrong.push(format!("{place} is not mounted, but {mounted:?}"));
    }
    let layout = Layout::new(ROOT);
    if handle.is_some_and(|handle| wish::is_block(&handle)) {
        let mapped = mounts.remove(&layout.absolute(&layout.block_map(place)));
        let linked = state.nodes.contains_key(&layout.absolute(&layout.block_link(place)));
        if mapped.is_none() || !linked {
            wrong.push(format!("{place} has no device: mapped {mapped:?}, linked {linked}"));
        }
        return;
    }
    if matches!(place.plugin, Plugin::Local | Plugin::Nfs | Plugin::Iscsi) {
        // A kubelet writes none for it.
        return;
    }
    let data = target.parent().map(|parent| parent.join("vol_data.json"));
    if !data.is_some_and(|data| matches!(state.nodes.get(&data), Some(Node::File(_)))) {
        wrong.push(format!("{place} has no vol_data.json"));
    }
}

/// Compares the disk of the iSCSI target with what is wanted of it: connected and mounted, or none of both.
fn lun(state: &State, wish: &Wish, mounts: &mut BTreeMap<PathBuf, String>, wrong: &mut Vec<String>) {
    let layout = Layout::new(ROOT);
    let staged =
        layout.absolute(&layout.device_staging(&wish::lun(), &SpecName::new(wish::LUN).expect("good")));
    let is_wanted = wish.pods.values().any(|pod| pod.lun && !pod.leaving);
    let mounted = mounts.remove(&staged);
    if mounted.as_deref() != is_wanted.then_some(wish::LUN_DISK) {
        wrong.push(format!("at {} is {mounted:?}, and that it is wanted is {is_wanted}", staged.display()));
    }
    if state.is_connected() != is_wanted {
        wrong.push(format!(
            "that there is a session with the target is {}, wanted {is_wanted}",
            state.is_connected()
        ));
    }
}

/// Looks whether drivers with a limit have as many volumes here as are wanted and as they take.
fn room(state: &State, wish: &Wish, wrong: &mut Vec<String>) {
    for (driver, mind) in state.drivers.iter().enumerate().filter(|(_, mind)| mind.limit > 0) {
        let staying = || wish.pods.values().filter(|pod| !pod.leaving);
        let claims: BTreeSet<u64> = staying().flat_map(wish::PodWish::volumes).collect();
        let claimed = claims.iter().filter(|volume| wish::driver(**volume) == driver).count();
        // An inline volume that was edited to another driver stays the old one's while it is up.
        let inline = wish.pods.iter().filter(|(_, pod)| !pod.leaving).filter(|(name, pod)| {
            let places = wish::places(name, pod);
            let is_inline = |id: &&PublicationId| id.plugin == Plugin::Csi && wish::volume_at(id).is_none();
            let up = places.iter().find(is_inline).and_then(|id| state.audit.up.get(&wish::target(id)));
            up.map_or(pod.inline, |sent| Some(sent.driver)) == Some(driver)
        });
        let wanted = claimed + inline.count();
        let here = state.handles_up(driver);
        if here.len() != wanted.min(mind.limit) && state.old_handles.is_empty() && state.revived.is_empty() {
            let limit = mind.limit;
            wrong.push(format!(
                "driver {driver} takes {limit} volumes, {wanted} are wanted, here are {here:?}"
            ));
        }
    }
}

/// Looks whether volumes have grown to what their manifests say, unless a driver refuses that while they are in use.
fn sizes(state: &State, wish: &Wish, wrong: &mut Vec<String>) {
    for volume in 0..wish::VOLUMES {
        let driver = wish::driver(volume);
        let mut users =
            wish.pods.values().filter(|pod| !pod.leaving && pod.volumes().contains(&volume)).peekable();
        if state.waits_for_others(volume)
            || state.waits_for_room(volume)
            || !state.drivers[driver].expands
            || users.peek().is_none()
            || users.any(|pod| pod.read_only)
        {
            continue;
        }
        let name = DriverName::new(DRIVERS[driver]).expect("good");
        let key = VolumeKey::csi(&name, &wish::handle(volume));
        let Some(record) = state.records.get(&key).and_then(|disk| disk.written.as_ref()) else { continue };
        // Shown read-only before an edit.
        if record.publications.values().any(|p| p.arguments.as_ref().is_some_and(|sent| sent.read_only)) {
            continue;
        }
        let in_use = record.expansion.as_ref().is_some_and(|e| e.state == ExpansionState::InUse);
        let size = wish::capacity(wish, volume);
        if !in_use && record.size.is_none_or(|has| has < size) {
            wrong.push(format!("26: {key} has {:?} of {size} bytes: {:?}", record.size, record.expansion));
        }
    }
}

fn staging(volume: u64) -> PathBuf {
    staging_as(volume, &format!("pv{volume}"))
}

/// Returns where a volume is staged as a PV of this name.
fn staging_as(volume: u64, name: &str) -> PathBuf {
    let layout = Layout::new(ROOT);
    if wish::is_block(&wish::handle(volume)) {
        let spec = SpecName::new(name).expect("good");
        return layout.absolute(&layout.block_staging(&spec));
    }
    let driver = DriverName::new(DRIVERS[wish::driver(volume)]).expect("good");
    layout.absolute(&layout.csi_staging(&driver, &wish::handle(volume)))
}

impl State {
    /// Whether a volume may have to wait until its driver takes another one.
    pub fn waits_for_room(&self, volume: u64) -> bool {
        let driver = wish::driver(volume);
        self.drivers[driver].limit > 0 && !self.handles_up(driver).contains(&wish::handle(volume))
    }

    /// What came up, is not wanted and was never undone (7), and what is wanted and was not done in this boot (29).
    pub fn audit_at_rest(&self) -> Vec<String> {
        let wanted: BTreeMap<PathBuf, &PublicationId> = self
            .wanted
            .keys()
            .filter(|id| id.plugin == Plugin::Csi)
            .map(|id| (wish::target(id), id))
            .collect();
        let volumes: Vec<String> =
            wanted.values().filter_map(|id| wish::volume_at(id)).map(wish::handle).collect();
        let mut wrong = Vec::new();
        for (path, sent) in &self.audit.up {
            let needed = match &sent.request {
                Request::Publish(_) => wanted.contains_key(path),
                Request::Stage(_) if wish::is_block(&sent.handle) => {
                    wanted.values().any(|id| path.ends_with(id.spec.as_str()))
                }
                Request::Stage(_) => volumes.contains(&sent.handle) || self.is_kept(&sent.handle),
                Request::Expand(_) | Request::Unstage(_) | Request::Unpublish(_) => false,
            };
            if !needed {
                wrong.push(format!("7: {} at {} was never undone", sent.handle, path.display()));
            }
        }
        for (path, id) in &wanted {
            let done = self.audit.up.get(path).is_some_and(|sent| sent.done_in == Some(self.boot));
            // Of a volume for one pod the others wait.
            let may_wait = |volume| {
                wish::is_single_pod(volume) || self.waits_for_others(volume) || self.waits_for_room(volume)
            };
            // Of an inline volume `differences` says whether there is room.
            let any_limit = self.drivers.iter().any(|mind| mind.limit > 0);
            let waits = wish::volume_at(id).map_or(any_limit, may_wait);
            if !done && !waits {
                wrong.push(format!("29: {id} was not published in this boot"));
            }
        }
        wrong
    }
}
