//! What is taken away: publications that are absent or have to be redone, and the staging after the last of them.

use super::chooser::Chooser;
use super::{FOREIGN_REMEDY, View};
use crate::model::{
    BlockedCause, HavePublication, HoldCode, Presence, PublicationId, StagingKind, Step, StepKind, Want,
};
use crate::mutant::{self, Mutant};

impl View<'_> {
    /// Unpublishes what is absent, and what must be undone before it is done again.
    pub(super) fn take_away(&self, chooser: &mut Chooser<'_>) {
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
                    let again = self.is_another(wanted)
                        || have.dead
                        || (have.frozen && self.differs(id, have, wanted));
                    have.undoing || (have.presence != Presence::Yes && (unstage || again))
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
            return chooser.obstructed(&kind, &self.target(id, have.arguments.as_ref()), obstacle);
        }
        // What was only planned needs no driver to be forgotten.
        if have.presence != Presence::No
            && let Err((cause, remedy)) = self.recorded_driver_ready()
        {
            return chooser.block(&kind, cause, &remedy);
        }
        let force = self.world.orders.force;
        chooser.offer(Step::Unpublish { key: self.key.clone(), id: id.clone(), force });
    }

    /// Unstages when nothing is or may be published and nothing wants it, or when the staging has to be redone.
    pub(super) fn let_go(&self, chooser: &mut Chooser<'_>) {
        let Some(staging) = self.staging() else { return };
        let held = self.wants.values().any(|want| matches!(want, Want::Held(_)));
        if held || (self.published().next().is_some() && !mutant::is(Mutant::UnstageFirst)) {
            return;
        }
        if self.wanted().next().is_some() && !self.staging_to_undo() {
            return;
        }
        if !self.world.desired.is_read {
            // Who wants it is not known yet (csi.md 10, 29).
            return;
        }
        let kind = StepKind::Unstage;
        if let Some(foreign) = self.foreign_publications().next() {
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
            return chooser.obstructed(&kind, &staging.arguments.staging_path, obstacle);
        }
        if staging.presence != Presence::No
            && let Err((cause, remedy)) = self.recorded_driver_ready()
        {
            return chooser.block(&kind, cause, &remedy);
        }
        // A dead file system is held by nobody who could use it (design rule 4).
        let force = self.world.orders.force || staging.dead;
        chooser.offer(Step::Unstage { key: self.key.clone(), force });
    }

    /// Whether others publish the volume, or what the operator adopted of theirs does: it cannot be unstaged then.
    fn is_shown_by_others(&self) -> bool {
        let is_adopted = |want: &Want| matches!(want, Want::Held(hold) if hold.code == HoldCode::Adopted);
        self.foreign_publications().next().is_some() || self.wants.values().any(is_adopted)
    }

    /// Whether the staging has to be undone although it is wanted: an undo was begun, its file system died, its PersistentVolume
    /// names another device, its driver learned to stage, its path is another one now, or the manifests now say something else and it is in doubt or
    /// nobody's. What is verifiably shown to somebody, or
    /// what others show, keeps it: then what was recorded is done again.
    pub(super) fn staging_to_undo(&self) -> bool {
        let Some(staging) = self.staging() else { return false };
        if self.published().any(|(_, have)| have.presence == Presence::Yes) {
            return false;
        }
        // Its device or directory is another one by now, or it is no such volume at all.
        let is_another = self.wanted().any(|(_, wanted)| self.is_another(wanted));
        if staging.undoing || staging.dead || is_another {
            return true;
        }
        let Some(wanted) = self.wanted_staged() else { return false };
        let Ok(info) = self.driver_to_stage(wanted) else { return false };
        if info.is_some_and(|info| info.stage_unstage) && staging.arguments.kind == StagingKind::DirectoryOnly
        {
            // It wants the call by now.
            return true;
        }
        let (old, frozen) = (&staging.arguments, staging.frozen);
        let Some(Ok(new)) = self.stage_arguments(wanted, info) else { return false };
        if new.staging_path != old.staging_path {
            // A block volume is staged under its PersistentVolume's name, which is another one now.
            return true;
        }
        if self.is_shown_by_others() {
            return false;
        }
        match staging.presence {
            Presence::Uncertain => new.kind != old.kind || (frozen && new != *old),
            // Nobody has it as it was: this is the next bring-up, for which an edit waits.
            Presence::Yes => new.kind == old.kind && new != *old && self.published().next().is_none(),
            Presence::No => false,
        }
    }
}
