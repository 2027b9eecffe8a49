//! What is brought up: the staging, then each publication.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::chooser::Chooser;
use super::staged::Staged;
use super::{FOREIGN_REMEDY, View, arguments, recorded, recorded_device, recorded_local, recorded_nfs};
use crate::model::{
    Adoption, BlockedCause, CsiWant, DriverInfo, Foreign, FsGroup, Growth, HaveStaging, HoldCode, Lifecycle,
    MountIdentity, Ownership, Presence, PublicationId, PublicationPlan, PublishStep, RecordedVolume,
    StageArguments, StageStep, StagingKind, Step, StepKind, VolumeKey, VolumeMode, Want, Wanted,
    WantedVolume,
};
use crate::mutant::{self, Mutant};

impl View<'_> {
    /// Stages and publishes what is wanted.
    pub(super) fn bring_up(&self, chooser: &mut Chooser<'_>) {
        if self.wanted().next().is_none() {
            return;
        }
        if let Some(csi) = self.wanted_csi()
            && csi.lifecycle == Lifecycle::Persistent
            && let Some(other) = self.other_name()
            && !mutant::is(Mutant::TwoNames)
        {
            return self.wait_for_other_name(other, chooser);
        }
        let staged = match self.wanted_staged() {
            Some(staged) => self.stage(staged, chooser),
            // What was staged as it was before an edit goes first.
            None => !self.staging_to_undo(),
        };
        for (id, wanted) in self.wanted() {
            self.publish(id, wanted, staged, chooser);
        }
    }

    fn wait_for_other_name(&self, other: &PublicationId, chooser: &mut Chooser<'_>) {
        for (id, _) in self.wanted() {
            let cause = BlockedCause::new(
                "place-taken",
                format!(
                    "PersistentVolume {} has the driver and handle of PersistentVolume {}, as which pod {} has the \
                     volume",
                    id.spec, other.spec, other.pod
                ),
            );
            let remedy = "give each PersistentVolume a handle of its own, or remove the pods of one of them";
            chooser.block(&StepKind::Publish(id.clone()), cause, remedy);
        }
    }

    /// Offers the stage step if it is needed; returns whether the volume is staged.
    fn stage(&self, staged: Staged<'_>, chooser: &mut Chooser<'_>) -> bool {
        let have = self.staging();
        if have.is_some_and(|have| have.presence == Presence::Yes) && !self.staging_to_undo() {
            return true;
        }
        let kind = StepKind::Stage;
        let recorded = staged.recorded();
        if self.have.is_some_and(|have| have.volume != recorded && !self.is_same_lun(have, &recorded)) {
            // `take_away` and `let_go` give back what it was, once no pod is shown that any more.
            let cause = BlockedCause::new(
                "pending-edit",
                "the PersistentVolume was edited to be another volume, and pods have it as it was",
            );
            chooser.block(&kind, cause, "remove the pods that have it as it was, or take the edit back");
            return false;
        }
        let info = match self.driver_to_stage(staged) {
            Ok(info) => info,
            Err((cause, remedy)) => {
                chooser.block(&kind, cause, &remedy);
                return false;
            }
        };
        let Some(new) = self.stage_arguments(staged, info) else { return false };
        let mut adopt = None;
        if let Some(have) = have {
            if let Some(obstacle) = &have.obstacle {
                chooser.obstructed(&kind, &have.arguments.staging_path, obstacle);
                return false;
            }
            if self.staging_to_undo() {
                // `let_go` unstages once nothing is published any more.
                return false;
            }
        } else {
            if let (Staged::Csi(csi), Some(info)) = (staged, info)
                && let Err((cause, remedy)) = self.room(csi, info)
            {
                chooser.block(&kind, cause, &remedy);
                return false;
            }
            match self.foreign_staging(new.as_ref().ok()) {
                Ok(mount) => adopt = mount,
                Err(cause) => {
                    chooser.block(&kind, cause, FOREIGN_REMEDY);
                    return false;
                }
            }
        }
        let arguments = match (have, new) {
            (Some(have), _) if have.frozen => have.arguments.clone(),
            // What may have been staged by a call is not taken for what needs none.
            (Some(have), Ok(new)) if may_be_there(have) && new.kind != have.arguments.kind => {
                have.arguments.clone()
            }
            (_, Ok(arguments)) => arguments,
            (_, Err((cause, remedy))) => {
                chooser.block(&StepKind::Attach, cause, &remedy);
                return false;
            }
        };
        if let (Staged::Csi(csi), Some(info)) = (staged, info)
            && arguments.kind == StagingKind::Call
            && !info.stage_unstage
        {
            // It lost the capability since it staged, and somebody is shown the volume (csi.md 10, 13).
            let cause = BlockedCause::new(
                "driver-cannot-stage",
                format!("driver {} staged the volume and does not stage any more", csi.driver),
            );
            chooser.block(
                &kind,
                cause,
                "run the driver that staged it, or remove the pods that use the volume",
            );
            return false;
        }
        let planned = self
            .wanted()
            .filter(|(id, _)| self.have.is_none_or(|have| !have.publications.contains_key(*id)))
            .filter(|(id, wanted)| self.free_place(id) == Ok(None) && self.only_pod(id, wanted).is_ok())
            .filter_map(|(id, wanted)| Some((id.clone(), self.publication(id, wanted, info).ok()?)))
            .collect();
        chooser.offer(Step::Stage(Box::new(StageStep {
            key: self.key.clone(),
            volume: staged.recorded(),
            arguments,
            secrets: staged.secrets(),
            planned,
            adopt,
            least_bytes: staged.least_bytes(),
        })));
        false
    }

    pub(super) fn publication(
        &self,
        id: &PublicationId,
        wanted: &Wanted,
        info: Option<&DriverInfo>,
    ) -> Result<PublicationPlan, arguments::Refused> {
        arguments::publication(self.world.layout, id, wanted, info, self.staging_kind())
    }

    fn publish(&self, id: &PublicationId, wanted: &Wanted, staged: bool, chooser: &mut Chooser<'_>) {
        let kind = StepKind::Publish(id.clone());
        let have = self.have.and_then(|have| have.publications.get(id));
        if let Some(have) = have {
            if have.presence == Presence::Yes {
                return self.keep(id, have, wanted, staged, chooser);
            }
            if have.undoing || have.dead {
                return;
            }
        }
        let csi = match &wanted.volume {
            WantedVolume::HostPath { .. } => return,
            WantedVolume::Local(_)
            | WantedVolume::Device(_)
            | WantedVolume::Nfs(_)
            | WantedVolume::EmptyDir { .. } => None,
            WantedVolume::Csi(csi) => Some(&**csi),
        };
        if !staged {
            return;
        }
        let info = match csi.map(|csi| self.driver(&csi.driver)).transpose() {
            Ok(info) => info,
            Err((cause, remedy)) => return chooser.block(&kind, cause, &remedy),
        };
        let adopt = match self.free_place(id) {
            Ok(adopt) => adopt,
            Err(cause) => return chooser.block(&kind, cause, FOREIGN_REMEDY),
        };
        if let Err((cause, remedy)) = self.only_pod(id, wanted) {
            return chooser.block(&kind, cause, &remedy);
        }
        if let (Some(csi), Some(info), None) = (csi, info, self.have)
            && let Err((cause, remedy)) = self.room(csi, info)
        {
            return chooser.block(&kind, cause, &remedy);
        }
        if let Some(have) = have
            && let Some(obstacle) = &have.obstacle
        {
            return chooser.obstructed(&kind, &self.target(id, have.arguments.as_ref()), obstacle);
        }
        let mut plan = match self.publication(id, wanted, info) {
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
        chooser.offer(Step::Publish(Box::new(self.publish_step(id, wanted, plan, info, adopt))));
    }

    /// Puts a publish step together from what is to be sent.
    pub(super) fn publish_step(
        &self,
        id: &PublicationId,
        wanted: &Wanted,
        plan: PublicationPlan,
        info: Option<&DriverInfo>,
        adopt: Option<Adoption>,
    ) -> PublishStep {
        let (volume, secrets, tokens, ownership) = match &wanted.volume {
            WantedVolume::Csi(csi) => {
                let ownership = csi.fs_group.and_then(|group| ours_to_own(group, info));
                (recorded(csi), Arc::clone(&csi.publish_secrets), csi.tokens.clone(), ownership)
            }
            WantedVolume::Local(local) => {
                (recorded_local(local), Arc::default(), None, local.ownership.filter(|_| self.is_alone(id)))
            }
            WantedVolume::Device(device) => (
                recorded_device(device),
                Arc::default(),
                None,
                device.ownership.filter(|_| self.is_alone(id)),
            ),
            // Whose the files are is the server's to say (kubelet.md 6.1).
            WantedVolume::Nfs(nfs) => (recorded_nfs(nfs), Arc::default(), None, None),
            WantedVolume::EmptyDir { ownership } => {
                (RecordedVolume::EmptyDir, Arc::default(), None, *ownership)
            }
            WantedVolume::HostPath { .. } => (RecordedVolume::EmptyDir, Arc::default(), None, None),
        };
        let repeats = matches!(&wanted.volume, WantedVolume::Csi(csi) if csi.republish);
        let growth = match &wanted.volume {
            WantedVolume::Csi(csi) => self.growth(id, csi, &plan, info),
            WantedVolume::Device(device) => self.device_growth(device, &plan),
            WantedVolume::Local(_)
            | WantedVolume::Nfs(_)
            | WantedVolume::EmptyDir { .. }
            | WantedVolume::HostPath { .. } => None,
        };
        PublishStep {
            key: self.key.clone(),
            volume,
            id: id.clone(),
            plan,
            secrets,
            tokens,
            ownership,
            growth,
            repeats,
            adopt,
        }
    }

    /// Whether no other pod has it: what another one has keeps the group that it has (kubelet.md 4.6).
    fn is_alone(&self, id: &PublicationId) -> bool {
        self.published().all(|(other, have)| other == id || have.presence != Presence::Yes)
    }

    /// Returns what the volume is to grow to, where it may grow and its driver can.
    pub(super) fn growth(
        &self,
        id: &PublicationId,
        csi: &CsiWant,
        plan: &PublicationPlan,
        info: Option<&DriverInfo>,
    ) -> Option<Growth> {
        let size = csi.size?;
        let read_only = csi.read_only || csi.source_read_only;
        info.filter(|info| info.expand_volume)?;
        let arguments =
            arguments::expand(self.world.layout, id, csi, plan.arguments.as_ref()?, size.capacity);
        Some(Growth { size, read_only, arguments, secrets: Arc::clone(&csi.expand_secrets) })
    }

    /// Refuses a volume that its driver has no room for on this node: max_volumes_per_node counts volumes, not pods, and those
    /// of others too.
    fn room(&self, csi: &CsiWant, info: &DriverInfo) -> Result<(), arguments::Refused> {
        let limit = match usize::try_from(info.max_volumes) {
            Ok(limit) if limit > 0 => limit,
            Ok(_) | Err(_) => return Ok(()),
        };
        let mut here: BTreeSet<&VolumeKey> =
            self.world.actual.on_node.get(&csi.driver).into_iter().flatten().collect();
        let is_its = |foreign: &&Foreign| {
            foreign.volume.as_ref().and_then(RecordedVolume::driver) == Some(&csi.driver)
        };
        here.extend(self.world.actual.foreign.iter().filter(is_its).filter_map(|f| f.key.as_ref()));
        let count = here.len();
        if count < limit || here.contains(self.key) || mutant::is(Mutant::NoLimit) {
            return Ok(());
        }
        Err((
            BlockedCause::new(
                "max-volumes",
                format!("driver {} takes {limit} volumes on this node, and {count} are here", csi.driver),
            ),
            "remove a pod that uses another of its volumes; volumed goes on by itself".to_owned(),
        ))
    }

    /// Returns what is or may be shown of this volume as another PersistentVolume. Two with one driver and handle are one volume,
    /// and what is up stays that of the one as which it came up (csi.md 10, 32). What the operator adopted is nobody's.
    fn other_name(&self) -> Option<&PublicationId> {
        let (wanted, _) = self.wanted().next()?;
        let is_adopted =
            |id| matches!(self.wants.get(id), Some(Want::Held(h)) if h.code == HoldCode::Adopted);
        self.published().map(|(id, _)| id).find(|id| id.spec != wanted.spec && !is_adopted(id))
    }

    /// Refuses a second pod of a ReadWriteOncePod volume (csi.md 10, 24).
    fn only_pod(&self, id: &PublicationId, wanted: &Wanted) -> Result<(), arguments::Refused> {
        let single_pod = match &wanted.volume {
            WantedVolume::Csi(csi) => csi.single_pod,
            WantedVolume::Local(local) => local.single_pod,
            WantedVolume::Device(device) => device.single_pod,
            WantedVolume::Nfs(nfs) => nfs.single_pod,
            WantedVolume::EmptyDir { .. } | WantedVolume::HostPath { .. } => false,
        };
        if !single_pod {
            return Ok(());
        }
        let mut others = self.published().map(|(other, _)| other).filter(|other| other.pod != id.pod);
        let mut foreign =
            self.foreign_publications().filter_map(|foreign| Some(&foreign.publication.as_ref()?.0));
        let has_it = self.published().any(|(other, _)| other == id);
        let other = match (others.next(), foreign.find(|pod| **pod != id.pod)) {
            (Some(other), _) => Some(&other.pod),
            (None, Some(pod)) => Some(pod),
            // Of several that want it and have nothing yet, the first by name gets it.
            (None, None) if has_it => None,
            (None, None) => self.wanted().map(|(first, _)| &first.pod).next().filter(|pod| **pod != id.pod),
        };
        let Some(pod) = other else { return Ok(()) };
        Err((
            BlockedCause::new(
                "read-write-once-pod",
                format!(
                    "the volume uses the ReadWriteOncePod access mode and pod {} has it",
                    self.pod_name(pod)
                ),
            ),
            "remove the other pod, or give the PersistentVolume another access mode".to_owned(),
        ))
    }

    /// Returns the kubelet's mount of this volume that staging takes over; refuses a staging path that is somebody else's, and
    /// a volume that somebody staged elsewhere (csi.md 10, 2).
    fn foreign_staging(&self, new: Option<&StageArguments>) -> Result<Option<MountIdentity>, BlockedCause> {
        let ours = new.map(|new| new.staging_path.as_path());
        for foreign in self.world.actual.foreign.iter().filter(|foreign| foreign.publication.is_none()) {
            let same_place = Some(foreign.target.as_path()) == ours;
            // A damaged `vol_data.json` says nothing, but a file system's staging path is made of the driver and the handle.
            let by_path = foreign.key.is_none() && foreign.volume_mode == VolumeMode::Filesystem;
            let same_volume = foreign.key.as_ref() == Some(self.key) || (by_path && same_place);
            match (same_volume, same_place) {
                (true, true) => return Ok(foreign.mount.clone()),
                (false, false) => {}
                (true, false) | (false, true) => {
                    return Err(BlockedCause::new(
                        "foreign",
                        format!("{} was made by somebody else", foreign.path.display()),
                    ));
                }
            }
        }
        Ok(None)
    }

    /// Refuses a place where another volume's record or a foreign publication stands. What a kubelet published there of this
    /// very volume is taken over.
    fn free_place(&self, id: &PublicationId) -> Result<Option<Adoption>, BlockedCause> {
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
            None => Ok(None),
            // Whose it is: its `vol_data.json` says so, or, if that is damaged, the staging's mount, which it shows too.
            Some(foreign) if self.foreign_publications().any(|ours| ours.target == foreign.target) => {
                Ok(Some(Adoption { mount: foreign.mount.clone() }))
            }
            Some(foreign) => Err(BlockedCause::new(
                "foreign",
                format!("{} was made by somebody else", foreign.path.display()),
            )),
        }
    }
}

/// Whether a call was sent that may have staged something.
fn may_be_there(have: &HaveStaging) -> bool {
    have.presence != Presence::No
}

/// Returns the ownership that volumed sets itself: none where the driver takes the group (csi.md 2.10).
fn ours_to_own(group: FsGroup, info: Option<&DriverInfo>) -> Option<Ownership> {
    let delegated = info.is_some_and(|info| info.volume_mount_group);
    (group.change && !delegated).then_some(group.ownership)
}
