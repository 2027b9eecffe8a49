//! Two PersistentVolumes with one driver and handle: one volume, which is shown as only one of them at a time (csi.md 10, 32).

use std::path::{Path, PathBuf};

use super::audit::Sent;
use super::request::Request;
use super::trouble::Life;
use super::wish::{self, PodWish, VOLUMES};
use super::world::State;

/// A second PV of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Twin {
    pub of: u64,
    /// Its name comes before the first one's.
    pub before: bool,
}

impl Twin {
    /// Returns the PV's name.
    pub fn name(self) -> String {
        let of = self.of;
        if self.before { format!("a-pv{of}") } else { format!("pv{of}-twin") }
    }

    /// Returns the claim that is bound to it, which pods call their volume too: another twin is not an edit of this one.
    pub fn claim(self) -> String {
        format!("c-{}", self.name())
    }
}

impl Life {
    /// A second PV comes, takes the first one's place, or goes.
    pub fn twin(&mut self) {
        match (self.wish.twin, self.world.below(3)) {
            (None, _) => {
                let twin = Twin { of: self.world.below(VOLUMES), before: self.world.below(2) == 0 };
                self.wish.twin = Some(twin);
                self.world.tell(|| format!("there is PersistentVolume {} too", twin.name()));
                let name = self.any_pod();
                let pod = self.wish.pods.entry(name.clone()).or_default();
                pod.twin = Some(twin);
                self.world.tell(|| format!("wish {name} {pod:?}"));
            }
            (Some(_), 0) => self.drop_twin(),
            (Some(twin), 1) if !self.wish.replaced => self.replace_by(twin),
            (Some(twin), _) => {
                let name = self.any_pod();
                let Some(pod) = self.wish.pods.get_mut(&name) else { return };
                pod.twin = if pod.twin.is_none() { Some(twin) } else { None };
                self.world.tell(|| format!("edit {name} {pod:?}"));
            }
        }
        self.read();
    }

    /// Only one of the two is left, and the pods use that.
    pub fn settle_twins(&mut self) {
        match self.wish.twin {
            Some(twin) if !self.wish.replaced && self.world.below(2) == 0 => self.replace_by(twin),
            Some(_) if !self.wish.replaced => self.drop_twin(),
            Some(_) | None => {}
        }
    }

    fn drop_twin(&mut self) {
        self.world.tell(|| "the second PersistentVolume goes".to_owned());
        (self.wish.twin, self.wish.replaced) = (None, false);
        self.wish.pods.values_mut().for_each(|pod| pod.twin = None);
    }

    fn replace_by(&mut self, twin: Twin) {
        self.world.tell(|| format!("PersistentVolume {} takes the other one's place", twin.name()));
        self.wish.replaced = true;
        for pod in self.wish.pods.values_mut().filter(|pod| pod.claims.contains(&twin.of)) {
            pod.claims.remove(&twin.of);
            pod.twin = Some(twin);
        }
    }

    /// Returns a pod as it can be wished for now.
    pub fn fitting(&self, pod: PodWish) -> PodWish {
        let mut pod = PodWish { twin: pod.twin.filter(|twin| self.wish.twin == Some(*twin)), ..pod };
        if let Some(twin) = self.wish.twin
            && ((self.wish.replaced && pod.claims.remove(&twin.of)) || self.world.below(4) == 0)
        {
            pod.twin = Some(twin);
        }
        pod
    }
}

impl State {
    /// Checks that a volume is not published as one PV while it is as another.
    pub fn as_one_volume(&self, driver: usize, handle: &str, target: &Path) -> Option<String> {
        let is_other = |(path, sent): &(&PathBuf, &Sent)| {
            let its = sent.driver == driver && sent.handle == handle;
            its && matches!(sent.request, Request::Publish(_)) && name_at(path) != name_at(target)
        };
        let (path, _) = self.audit.up.iter().find(is_other)?;
        Some(format!("32: {handle} is published at {} and at {}", path.display(), target.display()))
    }
}

/// Returns the name of the PV that a target path is of.
pub fn name_at(target: &Path) -> Option<&str> {
    target.parent()?.file_name()?.to_str()
}

/// Returns the volume that a directory of a block device is of.
pub fn volume_in(directory: Option<&Path>) -> Option<u64> {
    wish::volume_named(directory?.file_name()?.to_str()?)
}
