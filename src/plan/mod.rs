//! (Desired, Actual, retries, now) -> what to do next with one volume. Pure: no clock, no path lookup, no logging.
//!
//! Takes away before it adds, undoes what is in doubt before it is done differently, lets go of a staging only when nobody
//! is or may be shown the volume, and moves nothing that is held.

mod arguments;
mod chooser;
mod device;
mod down;
mod keep;
mod retry;
mod staged;
#[cfg(test)]
mod tests;
mod up;

use std::collections::BTreeMap;
use std::path::PathBuf;

use chooser::Chooser;
pub use retry::{Due, Now, Retries, RetryState};

use crate::model::{
    Actual, Blocked, BlockedCause, Connection, CsiWant, Desired, DeviceWant, DiskSource, DriverInfo,
    DriverName, Foreign, Have, HavePublication, HaveStaging, Layout, LocalWant, NfsWant, PodUid, Presence,
    PublicationId, PublishArguments, RecordedVolume, StagingKind, Step, StepKind, VolumeKey, Want, Wanted,
    WantedVolume,
};

/// What the decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// The wish.
    pub desired: &'a Desired,
    /// The truth.
    pub actual: &'a Actual,
    /// The paths.
    pub layout: &'a Layout,
    /// What the operator said of this volume.
    pub orders: Orders,
}

/// What the operator said of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Orders {
    /// Nothing is begun (`volumectl pause`).
    pub paused: bool,
    /// It is taken down although somebody has it (`volumectl release --force`).
    pub force: bool,
    /// The kernel said that a disk has another size: it may be this one's.
    pub resized: bool,
}

/// What is decided about one volume.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The step to take now, if no other step of this volume is under way.
    pub step: Option<Step>,
    /// Why what else is left to do cannot be done now. `since` is now; the caller knows better.
    pub blocked: Vec<Blocked>,
    /// Decide again at this moment even if nothing changes, ms of `Now::mono`.
    pub again_at: Option<u64>,
    /// An edit that takes effect at the next bring-up.
    pub pending_change: Option<String>,
}

/// Decides what to do next with a volume.
pub fn decide(world: World<'_>, key: &VolumeKey, retries: &Retries, now: Now) -> Decision {
    let mut chooser = Chooser { retries, now, decision: Decision::default() };
    let view = View::new(world, key);
    view.take_away(&mut chooser);
    view.bring_up(&mut chooser);
    view.let_go(&mut chooser);
    let mut decision = chooser.decision;
    if world.orders.paused
        && let Some(step) = decision.step.take()
    {
        decision.blocked.push(paused(&step.kind(), now));
    }
    decision
}

fn paused(kind: &StepKind, now: Now) -> Blocked {
    Blocked {
        step: kind.name().to_owned(),
        publication: kind.publication().cloned(),
        cause: BlockedCause::new("paused", "paused by the operator"),
        since: now.wall,
        attempts: 0,
        next_try: None,
        remedy: "volumectl resume".to_owned(),
    }
}

/// One volume's part of the world.
struct View<'a> {
    world: World<'a>,
    key: &'a VolumeKey,
    wants: &'a BTreeMap<PublicationId, Want>,
    have: Option<&'a Have>,
}

const FOREIGN_REMEDY: &str =
    "take it down with volumectl release or the tool that made it, or wait until its volume is released";

// === impl View ===

impl<'a> View<'a> {
    fn new(world: World<'a>, key: &'a VolumeKey) -> Self {
        static NONE: BTreeMap<PublicationId, Want> = BTreeMap::new();
        let wants = world.desired.volumes.get(key).map_or(&NONE, |want| &want.publications);
        Self { world, key, wants, have: world.actual.volumes.get(key) }
    }

    fn published(&self) -> impl Iterator<Item = (&'a PublicationId, &'a HavePublication)> {
        self.have.into_iter().flat_map(|have| &have.publications).map(|(id, have)| (id, &**have))
    }

    fn staging(&self) -> Option<&'a HaveStaging> {
        self.have.and_then(|have| have.staging.as_ref())
    }

    fn wanted(&self) -> impl Iterator<Item = (&'a PublicationId, &'a Wanted)> {
        self.wants.iter().filter_map(|(id, want)| match want {
            Want::Wanted(wanted) => Some((id, &**wanted)),
            Want::Held(_) | Want::Absent => None,
        })
    }

    /// The first wanted CSI volume: what the volume-wide arguments are made from.
    fn wanted_csi(&self) -> Option<&'a CsiWant> {
        self.wanted().find_map(|(_, wanted)| match &wanted.volume {
            WantedVolume::Csi(csi) => Some(&**csi),
            WantedVolume::Local(_)
            | WantedVolume::Device(_)
            | WantedVolume::Nfs(_)
            | WantedVolume::EmptyDir { .. }
            | WantedVolume::HostPath { .. } => None,
        })
    }

    /// Whether what is wanted now would be sent differently from what is recorded. A missing attachment or driver is no
    /// difference: what is recorded stands.
    fn differs(&self, id: &PublicationId, have: &HavePublication, wanted: &Wanted) -> bool {
        let info = match &wanted.volume {
            WantedVolume::Csi(csi) => match self.driver(&csi.driver) {
                Ok(info) => Some(info),
                Err(_) => return false,
            },
            WantedVolume::Local(_)
            | WantedVolume::Device(_)
            | WantedVolume::Nfs(_)
            | WantedVolume::EmptyDir { .. }
            | WantedVolume::HostPath { .. } => None,
        };
        self.is_another(wanted)
            || arguments::publication(self.world.layout, id, wanted, info, self.staging_kind())
                .is_ok_and(|plan| plan.arguments != have.arguments)
    }

    /// Whether an inline volume names another driver now, or a local or NFS one another path: their keys do not say which.
    fn is_another(&self, wanted: &Wanted) -> bool {
        let wanted = match &wanted.volume {
            WantedVolume::Csi(csi) => recorded(csi),
            WantedVolume::Local(local) => recorded_local(local),
            WantedVolume::Device(device) => recorded_device(device),
            WantedVolume::Nfs(nfs) => recorded_nfs(nfs),
            WantedVolume::EmptyDir { .. } | WantedVolume::HostPath { .. } => return false,
        };
        self.have.is_some_and(|have| have.volume != wanted && !self.is_same_lun(have, &wanted))
    }

    /// Whether two sources name one disk of a storage system, each in its own words (other portals besides the first, another
    /// password): whoever comes first says how it is connected, and as long as anybody has it, it stays so.
    fn is_same_lun(&self, have: &Have, wanted: &RecordedVolume) -> bool {
        let both = have.volume.disk().and_then(DiskSource::lun).zip(wanted.disk().and_then(DiskSource::lun));
        both.is_some_and(|(one, other)| VolumeKey::lun(one) == VolumeKey::lun(other))
            && have.volume.key() == wanted.key()
            && (self.published().any(|(_, have)| have.presence == Presence::Yes)
                || self.wanted_staged().is_some_and(|first| first.recorded() == have.volume))
    }

    fn staging_kind(&self) -> Option<StagingKind> {
        self.staging().map(|staging| staging.arguments.kind)
    }

    /// Returns the path at which a publication is or would be shown by its driver.
    fn target(&self, id: &PublicationId, arguments: Option<&PublishArguments>) -> PathBuf {
        match arguments {
            Some(arguments) => arguments.target_path.clone(),
            None => self.world.layout.absolute(&self.world.layout.target(id)),
        }
    }

    /// Returns what others publish of this volume.
    fn foreign_publications(&self) -> impl Iterator<Item = &'a Foreign> {
        let key = self.key;
        let foreign = self.world.actual.foreign.iter();
        // Where `vol_data.json` is damaged, the same mount as the staging's says whose it is.
        let staged = self.staging().and_then(|staging| staging.mount.as_ref());
        let same_mount = move |foreign: &Foreign| staged.is_some() && foreign.mount.as_ref() == staged;
        foreign.filter(move |foreign| {
            foreign.publication.is_some()
                && match &foreign.key {
                    Some(said) => said == key,
                    None => same_mount(foreign),
                }
        })
    }

    /// Names a pod as well as it is known.
    fn pod_name(&self, pod: &PodUid) -> String {
        let wanted = self.wanted().find(|(id, _)| id.pod == *pod);
        wanted.map_or_else(
            || pod.to_string(),
            |(_, wanted)| format!("{}/{}", wanted.pod.namespace, wanted.pod.name),
        )
    }

    fn recorded_driver_ready(&self) -> Result<(), (BlockedCause, String)> {
        match self.have.and_then(|have| have.volume.driver()) {
            Some(driver) => self.driver(driver).map(|_| ()),
            None => Ok(()),
        }
    }

    fn driver(&self, name: &DriverName) -> Result<&'a DriverInfo, (BlockedCause, String)> {
        match self.world.actual.drivers.get(name) {
            None => Err((
                BlockedCause::new("driver-not-registered", format!("driver {name} is not registered")),
                format!(
                    "start the driver; its registration socket belongs into {}, or name its socket in \
                     [drivers.\"{name}\"] of volumed.toml",
                    self.world.layout.root().join("plugins_registry").display()
                ),
            )),
            Some(state) => match &state.connection {
                Connection::Ready => Ok(&state.info),
                Connection::Starting { reason } => Err((
                    BlockedCause::new("driver-starting", format!("driver {name} is not ready yet: {reason}")),
                    "wait; look at the driver's log if it takes long".to_owned(),
                )),
                Connection::Disconnected { reason } => Err((
                    BlockedCause::new(
                        "driver-disconnected",
                        format!("driver {name} does not answer: {reason}"),
                    ),
                    format!("restart the driver behind {}", state.endpoint.display()),
                )),
            },
        }
    }
}

fn recorded_local(local: &LocalWant) -> RecordedVolume {
    RecordedVolume::Local { path: local.path.clone() }
}

fn recorded_device(device: &DeviceWant) -> RecordedVolume {
    RecordedVolume::Device { disk: device.disk.clone(), key: device.key.clone() }
}

fn recorded_nfs(nfs: &NfsWant) -> RecordedVolume {
    RecordedVolume::Nfs { server: nfs.server.clone(), path: nfs.path.clone() }
}

fn recorded(csi: &CsiWant) -> RecordedVolume {
    RecordedVolume::Csi { driver: csi.driver.clone(), handle: csi.handle.clone(), lifecycle: csi.lifecycle }
}
