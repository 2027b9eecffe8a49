//! What others do to the host: they mount, unmount, and have files and devices open.

use std::path::{Path, PathBuf};
use std::time::Duration;

use volumed::model::Mount;

use super::trouble::Life;
use super::wish::{self, PodWish, VOLUMES};
use super::world::{Node, ROOT, State};

impl Life {
    /// Somebody mounts over, below, instead of, or where soon a volume will be.
    pub fn strange_mount(&self) {
        let world = &self.world;
        let mut points: Vec<PathBuf> = world
            .lock()
            .mounts
            .iter()
            .filter(|mount| !wish::is_map(&mount.point))
            .map(|m| m.point.clone())
            .collect();
        points.extend(world.lock().staged_somewhere());
        let pod = PodWish { claims: (0..VOLUMES).collect(), ..PodWish::default() };
        points.extend(wish::places(&self.any_pod(), &pod).iter().map(wish::target));
        let Some(point) = world.one_of(&points).cloned() else { return };
        let instead = world.below(3) == 0;
        // Where a block device is published there is a file.
        let may_be_below = !instead && !point.iter().any(|part| part == "volumeDevices");
        let point = if may_be_below && world.below(3) == 0 { point.join("below") } else { point };
        world.tell(|| format!("somebody mounts at {}, instead: {instead}", point.display()));
        if instead {
            world.unmount_if(|state, mount| state.may_vanish(mount) && mount.point == point);
        }
        let mut state = world.lock();
        for path in point.ancestors().filter(|path| path.starts_with(ROOT)) {
            state.nodes.entry(path.to_owned()).or_insert(Node::Directory);
            state.strange_places.insert(path.to_owned());
        }
        let source = format!("strange-{}", state.next_mount);
        let id = state.mount(&point, &source);
        state.strangers.insert(id);
        drop(state);
        world.mounts_version.send_modify(|version| *version += 1);
    }

    pub fn strange_unmount(&self) {
        if self.world.unmount_if(is_strange) {
            self.world.tell(|| "somebody unmounts what he mounted".to_owned());
        }
        self.tidy();
    }

    /// Removes the empty directories that somebody's mounts needed.
    pub fn tidy(&self) {
        let mut state = self.world.lock();
        let places: Vec<PathBuf> = state.strange_places.iter().rev().cloned().collect();
        for place in places {
            // Not the directories that volumed makes: a driver may be about to be called for them.
            let own = [Path::new(ROOT), &Path::new(ROOT).join("pods"), &Path::new(ROOT).join("plugins")];
            let is_staging = place.starts_with(own[2]) && place.file_name().is_some_and(|n| n != "below");
            if own.contains(&place.as_path()) || is_staging {
                continue;
            }
            if !state.has_children(&place)
                && !state.is_mounted(&place)
                && !state.audit.up.contains_key(&place)
            {
                state.nodes.remove(&place);
            }
        }
    }

    /// A program opens a file of a staged volume, or a pod's device, and keeps it open for a while.
    pub fn open_something(&self) {
        let mut state = self.world.lock();
        let can_be_open = |mount: &&Mount| wish::is_staging(&mount.point) || wish::is_map(&mount.point);
        let ids: Vec<u64> = state.mounts.iter().filter(can_be_open).map(|mount| mount.id).collect();
        let (at, ms) = (state.below(ids.len() as u64), state.below(40_000));
        let Some(id) = usize::try_from(at).ok().and_then(|at| ids.get(at)) else { return };
        state.open(*id, Duration::from_millis(ms));
        drop(state);
        self.world.tell(|| format!("somebody has something on mount {id} open for {ms} ms"));
    }

    /// A mount goes without a word.
    pub fn vanish(&self) {
        let points: Vec<PathBuf> = {
            let state = self.world.lock();
            let is_meant = |mount: &&Mount| state.may_vanish(mount) && !wish::is_map(&mount.point);
            state.mounts.iter().filter(is_meant).map(|m| m.point.clone()).collect()
        };
        if let Some(point) = self.world.one_of(&points) {
            self.world.tell(|| format!("the mount at {} vanishes", point.display()));
            self.world.unmount(point);
        }
    }
}

/// Whether a mount is somebody else's and may go now.
pub fn is_strange(state: &State, mount: &Mount) -> bool {
    state.strangers.contains(&mount.id) && state.may_vanish(mount)
}
