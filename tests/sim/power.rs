//! Power cuts: what is lost, and what comes back.

use volumed::model::{RecordedVolume, VolumeKey};

use super::wish::DRIVERS;
use super::world::World;

impl World {
    /// A power cut and a new boot: mounts are gone, so is what was not synced (some of it, as luck has it).
    pub fn reboot(&self) {
        for driver in 0..DRIVERS.len() {
            self.restart_driver(driver);
        }
        self.close_all();
        self.log_out_all();
        let mut state = self.lock();
        state.boot += 1;
        state.mounts.clear();
        state.strangers.clear();
        state.held.clear();
        for driver in 0..DRIVERS.len() {
            if state.drivers[driver].forgets {
                state.forget(driver);
            }
        }
        let keys: Vec<VolumeKey> = state.records.keys().cloned().collect();
        for key in keys {
            let survives = state.below(2) == 0;
            let Some(disk) = state.records.get_mut(&key) else { continue };
            let was_gone = disk.written.is_none();
            if survives {
                disk.synced = disk.written.clone();
            } else {
                disk.written = disk.synced.clone();
            }
            if let (true, Some(RecordedVolume::Csi { handle, .. })) =
                (was_gone, disk.written.as_ref().map(|record| record.volume.clone()))
            {
                state.revived.insert(handle);
            }
        }
        state.records.retain(|_, disk| disk.written.is_some());
        drop(state);
        self.mounts_version.send_modify(|version| *version += 1);
    }
}
