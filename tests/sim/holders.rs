//! Who has a volume: programs that keep files of a staged volume, or a pod's device, open for a while (design rule 4).

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use volumed::host::{Holder, HostError};

use super::world::{State, World};

/// Somebody who has something on a mount open.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    since: Instant,
    until: Instant,
    /// volumed looked and was told.
    told: bool,
}

/// So long before a call somebody must have had the volume for the look before it to find him.
const LOOKED: Duration = Duration::from_millis(100);

impl World {
    /// Looks for who has the topmost mount at a point, as volumed does; now and then somebody came a moment before.
    pub fn look_for_holder(&self, point: &Path) -> Option<Holder> {
        let (comes, ms) = (self.fault(25), self.below(15_000));
        let mut state = self.lock();
        let id = state.mounts.iter().rev().find(|mount| mount.point == point)?.id;
        if comes {
            state.open(id, Duration::from_millis(ms));
        }
        let held = state.held.get_mut(&id).filter(|held| held.until > Instant::now())?;
        held.told = true;
        let how = format!("has {}/data open", point.display());
        Some(Holder { pid: 7, command: "cat".to_owned(), unit: None, how })
    }
}

impl World {
    /// Whether a path cannot be unmounted or removed for a while that nobody explains.
    pub fn is_stuck(&self, path: &Path) -> bool {
        let (sticks, ms) = (self.fault(30), self.below(8000));
        let mut state = self.lock();
        let now = Instant::now();
        if sticks {
            state.stuck.insert(path.to_owned(), now + Duration::from_millis(ms));
        }
        state.faults && state.stuck.get(path).is_some_and(|until| *until > now)
    }
}

impl State {
    /// Whether something cannot be unmounted or removed just now.
    pub fn is_any_stuck(&self) -> bool {
        self.stuck.values().any(|until| *until > Instant::now())
    }

    /// Somebody opens something on a mount, for so long.
    pub fn open(&mut self, mount: u64, time: Duration) {
        let now = Instant::now();
        let held = self.held.entry(mount).or_insert(Held { since: now, until: now, told: false });
        if held.until < now {
            (held.since, held.told) = (now, false);
        }
        held.until = held.until.max(now + time);
    }

    /// Whether somebody has the topmost mount at a point open whom volumed's last look must have found.
    pub fn is_held(&self, point: &Path) -> bool {
        let top = self.mounts.iter().rev().find(|mount| mount.point == point);
        let held = top.and_then(|mount| self.held.get(&mount.id));
        let now = Instant::now();
        held.is_some_and(|held| held.until > now && (held.told || now - held.since >= LOOKED))
    }
}

/// What the host says of a device or mount that somebody has.
pub fn busy(point: &Path, holder: &Holder) -> HostError {
    HostError::Busy { path: point.to_owned(), holder: holder.to_string() }
}
