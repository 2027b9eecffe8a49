//! What the world must come to once the trouble has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use volumed::model::{DriverName, Layout, Plugin, Presence, RecordedVolume, Status};

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
    for (name, pod) in staying() {
        stagings.extend(pod.claims.iter().map(|volume| (staging(*volume), *volume)));
        for place in wish::places(name, pod) {
            let shown = status.volumes.values().find_map(|volume| volume.publications.get(&place));
            if shown.map(|shown| shown.presence) != Some(Presence::Yes) {
                wrong.push(format!("{place} is not shown as published: {shown:?}"));
            }
            if place.plugin != Plugin::Csi {
                continue;
            }
            let target = wish::target(&place);
            let data = target.parent().map(|parent| parent.join("vol_data.json"));
            if !data.is_some_and(|data| matches!(state.nodes.get(&data), Some(Node::File(_)))) {
                wrong.push(format!("{place} has no vol_data.json"));
            }
            let handle = wish::volume_at(&place).map(wish::handle);
            let mounted = mounts.remove(&target);
            if handle.as_deref().is_none_or(wish::is_mounted)
                && (mounted.is_none() || handle.is_some() && mounted != handle)
            {
                wrong.push(format!("{place} is not mounted, but {mounted:?}"));
            }
        }
    }
    for (path, volume) in &stagings {
        if !state.drivers[wish::driver(*volume)].stages {
            continue;
        }
        let mounted = mounts.remove(path);
        if wish::is_mounted(&wish::handle(*volume)) && mounted != Some(wish::handle(*volume)) {
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
            ["plugins", "kubernetes.io", "csi", _, _] => {
                !stagings.keys().any(|staged| staged.starts_with(path))
            }
            _ => false,
        };
        if left {
            wrong.push(format!("the directory {} is left", path.display()));
        }
    }
    for (key, disk) in &state.records {
        if disk.written.is_some() && !status.volumes.contains_key(key) {
            wrong.push(format!("the record of {key} is left"));
        }
    }
    wrong.extend(state.audit_at_rest());
    wrong
}

fn staging(volume: u64) -> PathBuf {
    let layout = Layout::new(ROOT);
    let driver = DriverName::new(DRIVERS[wish::driver(volume)]).expect("good");
    layout.absolute(&layout.csi_staging(&driver, &wish::handle(volume)))
}

impl State {
    /// Whether anything of a driver's is recorded.
    pub fn has_records_of(&self, driver: usize) -> bool {
        self.records.values().filter_map(|disk| disk.written.as_ref()).any(|record| match &record.volume {
            RecordedVolume::Csi { driver: name, .. } => name.as_str() == DRIVERS[driver],
            RecordedVolume::EmptyDir => false,
        })
    }
}
