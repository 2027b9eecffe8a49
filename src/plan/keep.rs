//! What is up: published again where the driver wants that, and grown.

use std::sync::Arc;

use super::chooser::Chooser;
use super::{View, arguments};
use crate::model::{
    BlockedCause, CsiWant, DriverInfo, ExpandStep, ExpansionState, GROWS_UNUSED, HavePublication,
    PublicationId, Step, StepKind, Wanted, WantedVolume,
};

impl View<'_> {
    /// Looks after what is up: says what an edit waits for, and publishes again where the driver wants that.
    pub(super) fn keep(
        &self,
        id: &PublicationId,
        have: &HavePublication,
        wanted: &Wanted,
        staged: bool,
        chooser: &mut Chooser<'_>,
    ) {
        if self.differs(id, have, wanted) {
            chooser.decision.pending_change =
                Some(format!("{} was edited; used at the next bring-up", id.spec));
        }
        let csi = match &wanted.volume {
            WantedVolume::Csi(csi) => csi,
            WantedVolume::Device(device) if staged => return self.grow_device(device, have, chooser),
            WantedVolume::Device(_)
            | WantedVolume::Local(_)
            | WantedVolume::Nfs(_)
            | WantedVolume::EmptyDir { .. }
            | WantedVolume::HostPath { .. } => return,
        };
        // A driver that is away is no trouble of a volume that is up.
        let Ok(info) = self.driver(&csi.driver) else { return };
        if !staged {
            // First the staging comes back: neither call may be made without it (csi.md 10, 3).
            return;
        }
        if csi.republish {
            self.republish(id, have, wanted, info, chooser);
        }
        self.grow(id, csi, have, info, chooser);
    }

    fn republish(
        &self,
        id: &PublicationId,
        have: &HavePublication,
        wanted: &Wanted,
        info: &DriverInfo,
        chooser: &mut Chooser<'_>,
    ) {
        match chooser.retries.republish_at(id) {
            Some(at) if at > chooser.now.mono => return chooser.again_at(at),
            Some(_) | None => {}
        }
        if let Some(obstacle) = &have.obstacle {
            // The driver may exchange its mount, and would meet the other one (design rule 10).
            let target = self.target(id, have.arguments.as_ref());
            return chooser.obstructed(&StepKind::Republish(id.clone()), &target, obstacle);
        }
        let Ok(mut plan) = self.publication(id, wanted, Some(info)) else { return };
        // As it is shown; an edit waits for the next bring-up.
        plan.arguments.clone_from(&have.arguments);
        let mut step = self.publish_step(id, wanted, plan, Some(info), None);
        (step.ownership, step.growth) = (None, None);
        chooser.offer(Step::Republish(Box::new(step)));
    }

    /// Grows a volume that is up, once for all its pods on this node.
    fn grow(
        &self,
        id: &PublicationId,
        csi: &CsiWant,
        have: &HavePublication,
        info: &DriverInfo,
        chooser: &mut Chooser<'_>,
    ) {
        let Some(volume) = self.have else { return };
        let (Some(size), Some(arguments)) = (volume.size, &have.arguments) else { return };
        let may = !csi.read_only && !csi.source_read_only && info.expand_volume;
        let state = volume.expansion.as_ref().map(|expansion| expansion.state);
        // What was begun and not answered is finished, whatever the manifests say by now (csi.md 10, 26).
        let open = state == Some(ExpansionState::Open);
        let Some(wanted) = csi.size.filter(|wanted| may && (wanted.capacity > size || open)) else { return };
        if state == Some(ExpansionState::InUse) {
            let said = volume.expansion.as_ref().map_or("", |expansion| &expansion.said);
            let detail = format!(
                "driver {} does not expand the volume to {} bytes while it is in use: {said}",
                csi.driver, wanted.capacity
            );
            let cause = BlockedCause::new("FAILED_PRECONDITION", detail);
            return chooser.block(&StepKind::Expand, cause, GROWS_UNUSED);
        }
        if chooser.decision.step.as_ref().is_some_and(|step| step.kind() == StepKind::Expand) {
            return;
        }
        let arguments = arguments::expand(self.world.layout, id, csi, arguments, wanted.capacity);
        let secrets = Arc::clone(&csi.expand_secrets);
        chooser.offer(Step::Expand(Box::new(ExpandStep { key: self.key.clone(), arguments, secrets })));
    }
}
