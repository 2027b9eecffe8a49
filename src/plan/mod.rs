//! (Desired, Actual, retries, now) -> what to do next with one volume. Pure: no clock, no path lookup, no logging.
//!
//! Takes away before it adds, undoes what is in doubt before it is done differently, lets go of a staging only when nobody
//! is or may be shown the volume, and moves nothing that is held.

mod arguments;
mod retry;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use retry::{Due, Now, Retries, RetryState};

use crate::model::{
    Actual, Blocked, BlockedCause, Connection, CsiWant, Desired, DriverInfo, DriverName, Have,
    HavePublication, HaveStaging, Hold, Layout, Lifecycle, Presence, PublicationId, PublishStep,
    RecordedVolume, StageStep, StagingKind, Step, StepKind, VolumeKey, Want, Wanted, WantedVolume,
};
use crate::mutant::{self, Mutant};

/// What the decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// The wish.
    pub desired: &'a Desired,
    /// The truth.
    pub actual: &'a Actual,
    /// The paths.
    pub layout: &'a Layout,
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
    chooser.decision
}

/// One volume's part of the world.
struct View<'a> {
    world: World<'a>,
    key: &'a VolumeKey,
    wants: &'a BTreeMap<PublicationId, Want>,
    have: Option<&'a Have>,
}

/// Collects candidates in order of preference: the first whose retry is due becomes the step, the others' reasons are kept.
struct Chooser<'a> {
    retries: &'a Retries,
    now: Now,
    decision: Decision,
}

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
            WantedVolume::Csi(csi) => Some(csi),
            WantedVolume::EmptyDir { .. } | WantedVolume::HostPath { .. } => None,
        })
    }

    /// Unpublishes what is absent, and what must be undone before it is done again.
    fn take_away(&self, chooser: &mut Chooser<'_>) {
        let unstage = self.staging_to_undo();
        for (id, have) in self.published() {
            let undo = match self.wants.get(id) {
                None => false,
                Some(Want::Held(hold)) => {
                    chooser.hold(id, hold);
                    false
                }
                Some(Want::Absent) => true,
                Some(Want::Wanted(wanted)) => {
                    have.undoing
                        || (have.presence != Presence::Yes && unstage)
                        || (have.presence == Presence::Uncertain
                            && (self.is_another(wanted) || (have.frozen && self.differs(id, have, wanted))))
                }
            };
            if undo {
                self.unpublish(id, have, chooser);
            }
        }
    }

    fn unpublish(&self, id: &PublicationId, have: &HavePublication, chooser: &mut Chooser<'_>) {
        let kind = StepKind::Unpublish(id.clone());
        if let Some(obstacle) = &have.obstacle
            && !mutant::is(Mutant::UndoUnseen)
        {
            let path = self.world.layout.absolute(&self.world.layout.target(id));
            let cause = BlockedCause::new("obstacle", format!("{}: {obstacle}", path.display()));
            return chooser.block(&kind, cause, OBSTACLE_REMEDY);
        }
        // What was only planned needs no driver to be forgotten.
        if have.presence != Presence::No
            && let Err(cause) = self.recorded_driver_ready()
        {
            return chooser.block(&kind, cause.0, &cause.1);
        }
        chooser.offer(Step::Unpublish { key: self.key.clone(), id: id.clone() });
    }

    /// Stages and publishes what is wanted.
    fn bring_up(&self, chooser: &mut Chooser<'_>) {
        if self.wanted().next().is_none() {
            return;
        }
        let staged = match self.wanted_csi() {
            Some(csi) if csi.lifecycle == Lifecycle::Persistent => self.stage(csi, chooser),
            Some(_) | None => true,
        };
        for (id, wanted) in self.wanted() {
            self.publish(id, wanted, staged, chooser);
        }
    }

    /// Offers the stage step if it is needed; returns whether the volume is staged.
    fn stage(&self, csi: &CsiWant, chooser: &mut Chooser<'_>) -> bool {
        let have = self.staging();
        if have.is_some_and(|have| have.presence == Presence::Yes) {
            return true;
        }
        let kind = StepKind::Stage;
        let info = match self.driver(&csi.driver) {
            Ok(info) => info,
            Err((cause, remedy)) => {
                chooser.block(&kind, cause, &remedy);
                return false;
            }
        };
        if let Some(have) = have {
            if let Some(obstacle) = &have.obstacle {
                let path = have.arguments.staging_path.display();
                chooser.block(
                    &kind,
                    BlockedCause::new("obstacle", format!("{path}: {obstacle}")),
                    OBSTACLE_REMEDY,
                );
                return false;
            }
            if self.staging_to_undo() {
                // `let_go` unstages once nothing is published any more.
                return false;
            }
        } else if let Some(foreign) = self.foreign_staging(csi) {
            chooser.block(&kind, foreign, FOREIGN_REMEDY);
            return false;
        }
        let arguments = match have {
            Some(have) if have.frozen => have.arguments.clone(),
            Some(_) | None => match arguments::stage(self.world.layout, csi, info) {
                Ok(arguments) => arguments,
                Err((cause, remedy)) => {
                    chooser.block(&StepKind::Attach, cause, &remedy);
                    return false;
                }
            },
        };
        let planned = self
            .wanted()
            .filter(|(id, _)| self.have.is_none_or(|have| !have.publications.contains_key(*id)))
            .filter(|(id, _)| self.free_place(id).is_ok())
            .filter_map(|(id, wanted)| {
                let plan =
                    arguments::publication(self.world.layout, id, wanted, Some(info), self.staging_kind())
                        .ok()?;
                Some((id.clone(), plan))
            })
            .collect();
        chooser.offer(Step::Stage(Box::new(StageStep {
            key: self.key.clone(),
            volume: recorded(csi),
            arguments,
            secrets: Arc::clone(&csi.stage_secrets),
            planned,
            adopt: None,
        })));
        false
    }

    fn publish(&self, id: &PublicationId, wanted: &Wanted, staged: bool, chooser: &mut Chooser<'_>) {
        let kind = StepKind::Publish(id.clone());
        let have = self.have.and_then(|have| have.publications.get(id));
        if let Some(have) = have {
            if have.presence == Presence::Yes {
                if self.differs(id, have, wanted) {
                    chooser.decision.pending_change =
                        Some(format!("{} was edited; used at the next bring-up", id.spec));
                }
                return;
            }
            if have.undoing {
                return;
            }
        }
        let (csi, secrets) = match &wanted.volume {
            WantedVolume::HostPath { .. } => return,
            WantedVolume::EmptyDir { .. } => (None, Arc::default()),
            WantedVolume::Csi(csi) => (Some(csi), Arc::clone(&csi.publish_secrets)),
        };
        if !staged {
            return;
        }
        let info = match csi.map(|csi| self.driver(&csi.driver)).transpose() {
            Ok(info) => info,
            Err((cause, remedy)) => return chooser.block(&kind, cause, &remedy),
        };
        if let Err(cause) = self.free_place(id) {
            return chooser.block(&kind, cause, FOREIGN_REMEDY);
        }
        if let Some(obstacle) = have.and_then(|have| have.obstacle.as_ref()) {
            let path = self.world.layout.absolute(&self.world.layout.target(id));
            let cause = BlockedCause::new("obstacle", format!("{}: {obstacle}", path.display()));
            return chooser.block(&kind, cause, OBSTACLE_REMEDY);
        }
        let mut plan = match arguments::publication(self.world.layout, id, wanted, info, self.staging_kind())
        {
            Ok(plan) => plan,
            Err((cause, remedy)) => return chooser.block(&StepKind::Attach, cause, &remedy),
        };
        if have.is_some() && self.is_another(wanted) {
            // `take_away` gives the other driver's volume back first.
            return;
        }
        if let Some(have) = have.filter(|have| have.frozen) {
            if self.differs(id, have, wanted) {
                // `take_away` undoes it first.
                return;
            }
            plan.arguments.clone_from(&have.arguments);
        }
        let volume = match csi {
            Some(csi) => recorded(csi),
            None => RecordedVolume::EmptyDir,
        };
        chooser.offer(Step::Publish(Box::new(PublishStep {
            key: self.key.clone(),
            volume,
            id: id.clone(),
            plan,
            secrets,
            tokens: None,
            ownership: None,
            growth: None,
            adopt: None,
        })));
    }

    /// Unstages when nothing is or may be published and nothing wants it, or when the staging has to be redone.
    fn let_go(&self, chooser: &mut Chooser<'_>) {
        let Some(staging) = self.staging() else { return };
        let held = self.wants.values().any(|want| matches!(want, Want::Held(_)));
        if held || (self.published().next().is_some() && !mutant::is(Mutant::UnstageFirst)) {
            return;
        }
        if self.wanted().next().is_some() && !self.staging_to_undo() {
            return;
        }
        let kind = StepKind::Unstage;
        if let Some(foreign) = self.world.actual.foreign.iter().find(|foreign| self.is_shown_by(foreign)) {
            let cause = BlockedCause::new(
                "foreign-publication",
                format!(
                    "{} is a publication of this volume that volumed did not make",
                    foreign.path.display()
                ),
            );
            return chooser.block(&kind, cause, FOREIGN_REMEDY);
        }
        if let Some(obstacle) = &staging.obstacle
            && !mutant::is(Mutant::UndoUnseen)
        {
            let path = staging.arguments.staging_path.display();
            let cause = BlockedCause::new("obstacle", format!("{path}: {obstacle}"));
            return chooser.block(&kind, cause, OBSTACLE_REMEDY);
        }
        if let Err((cause, remedy)) = self.recorded_driver_ready() {
            return chooser.block(&kind, cause, &remedy);
        }
        chooser.offer(Step::Unstage { key: self.key.clone() });
    }

    /// Whether the staging has to be undone although it is wanted: an undo was begun, or the staging is in doubt and the
    /// manifests now say something else. What is verifiably shown to somebody keeps it: then what was recorded is done again.
    fn staging_to_undo(&self) -> bool {
        let Some(staging) = self.staging() else { return false };
        if self.published().any(|(_, have)| have.presence == Presence::Yes) {
            return false;
        }
        if staging.undoing {
            return true;
        }
        let Some(csi) = self.wanted_csi() else { return false };
        if staging.presence != Presence::Uncertain || !staging.frozen {
            return false;
        }
        let Ok(info) = self.driver(&csi.driver) else { return false };
        arguments::stage(self.world.layout, csi, info).is_ok_and(|new| new != staging.arguments)
    }

    /// Whether what is wanted now would be sent differently from what is recorded. A missing attachment or driver is no
    /// difference: what is recorded stands.
    fn differs(&self, id: &PublicationId, have: &HavePublication, wanted: &Wanted) -> bool {
        let info = match &wanted.volume {
            WantedVolume::Csi(csi) => match self.driver(&csi.driver) {
                Ok(info) => Some(info),
                Err(_) => return false,
            },
            WantedVolume::EmptyDir { .. } | WantedVolume::HostPath { .. } => None,
        };
        self.is_another(wanted)
            || arguments::publication(self.world.layout, id, wanted, info, self.staging_kind())
                .is_ok_and(|plan| plan.arguments != have.arguments)
    }

    /// Whether an inline volume names another driver now: its key does not say which.
    fn is_another(&self, wanted: &Wanted) -> bool {
        match (&wanted.volume, self.have) {
            (WantedVolume::Csi(csi), Some(have)) => have.volume != recorded(csi),
            (WantedVolume::Csi(_) | WantedVolume::EmptyDir { .. } | WantedVolume::HostPath { .. }, _) => {
                false
            }
        }
    }

    fn staging_kind(&self) -> Option<StagingKind> {
        self.staging().map(|staging| staging.arguments.kind)
    }

    /// Refuses a place where another volume's record or a foreign publication stands.
    fn free_place(&self, id: &PublicationId) -> Result<(), BlockedCause> {
        let other =
            self.world.actual.places.get(id).and_then(|keys| keys.iter().find(|key| *key != self.key));
        if let Some(other) = other {
            return Err(BlockedCause::new(
                "place-taken",
                format!("{id} is not yet released by volume {other}"),
            ));
        }
        let foreign = self.world.actual.foreign.iter().find(|foreign| {
            foreign.publication.as_ref().is_some_and(|(pod, plugin, spec)| {
                *pod == id.pod && plugin == id.plugin.directory() && *spec == id.spec
            })
        });
        match foreign {
            None => Ok(()),
            Some(foreign) => Err(BlockedCause::new(
                "foreign",
                format!("{} was made by somebody else", foreign.path.display()),
            )),
        }
    }

    fn foreign_staging(&self, csi: &CsiWant) -> Option<BlockedCause> {
        let path = self.world.layout.absolute(&self.world.layout.csi_volume(&csi.driver, &csi.handle));
        let foreign = self
            .world
            .actual
            .foreign
            .iter()
            .find(|foreign| foreign.publication.is_none() && foreign.path == path)?;
        Some(BlockedCause::new("foreign", format!("{} was made by somebody else", foreign.path.display())))
    }

    fn is_shown_by(&self, foreign: &crate::model::Foreign) -> bool {
        foreign.publication.is_some() && foreign.key.as_ref() == Some(self.key)
    }

    fn recorded_driver_ready(&self) -> Result<(), (BlockedCause, String)> {
        match self.have.map(|have| &have.volume) {
            Some(RecordedVolume::Csi { driver, .. }) => self.driver(driver).map(|_| ()),
            Some(RecordedVolume::EmptyDir) | None => Ok(()),
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

const OBSTACLE_REMEDY: &str = "find out who mounted there and unmount it; volumed goes on by itself";
const FOREIGN_REMEDY: &str = "take it down with the tool that made it, or wait until its volume is released";

fn recorded(csi: &CsiWant) -> RecordedVolume {
    RecordedVolume::Csi { driver: csi.driver.clone(), handle: csi.handle.clone(), lifecycle: csi.lifecycle }
}

// === impl Chooser ===

impl Chooser<'_> {
    fn offer(&mut self, step: Step) {
        let kind = step.kind();
        match self.retries.get(&kind) {
            Some(state) if !state.is_due(self.now) => {
                if let Due::At(at) = state.due {
                    self.decision.again_at = Some(self.decision.again_at.map_or(at, |other| other.min(at)));
                }
                self.decision.blocked.push(state.blocked(&kind, self.now));
            }
            Some(_) | None if self.decision.step.is_none() => self.decision.step = Some(step),
            Some(_) | None => {}
        }
    }

    fn block(&mut self, kind: &StepKind, cause: BlockedCause, remedy: &str) {
        let publication = kind.publication().cloned();
        let blocked = Blocked {
            step: kind.name().to_owned(),
            publication,
            cause,
            since: self.now.wall,
            attempts: 0,
            next_try: None,
            remedy: remedy.to_owned(),
        };
        if !self.decision.blocked.contains(&blocked) {
            self.decision.blocked.push(blocked);
        }
    }

    fn hold(&mut self, id: &PublicationId, hold: &Hold) {
        self.decision.blocked.push(Blocked {
            step: "resolve".to_owned(),
            publication: Some(id.clone()),
            cause: BlockedCause::new(hold.code.as_str(), hold.detail.clone()),
            since: self.now.wall,
            attempts: 0,
            next_try: None,
            remedy: hold.remedy.clone(),
        });
    }
}
