//! Volumes that change hands by the operator's word: adopted from others, or released.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::pass::Loop;
use crate::error::Chain;
use crate::model::{
    AccessMode, BootId, CallState, Capability, EventKind, Foreign, Handover, HoldCode, ObjectRef, Plugin,
    PodIdentity, PublicationId, PublicationRecord, PublishArguments, RecordedVolume, StageArguments,
    StagingKind, StagingRecord, VolumeKey, VolumeRecord, Want,
};
use crate::record::Durability;

impl Loop {
    /// Makes what somebody else left volumed's own, as it is.
    pub(super) async fn adopt(&mut self, what: &Handover) -> Result<Vec<String>, String> {
        let Handover::Path(path) = what else {
            return Err("name the directory of a foreign volume; volumectl foreign lists them".to_owned());
        };
        self.take_over(path, false).await
    }

    /// Takes down what nobody wants.
    pub(super) async fn release(&mut self, what: &Handover, force: bool) -> Result<Vec<String>, String> {
        match what {
            Handover::Path(path) => match self.going_at(path).filter(|_| force) {
                Some(key) => Ok(vec![self.force(&key)]),
                None => self.take_over(path, true).await,
            },
            Handover::Object(object) => self.release_of(object, force).await,
        }
    }

    /// Releases what is kept of a pod or claim, and with `force` also what waits for who has it.
    async fn release_of(&mut self, object: &ObjectRef, force: bool) -> Result<Vec<String>, String> {
        let keys: Vec<VolumeKey> =
            self.records.keys().filter(|key| self.belongs_to(key, object)).cloned().collect();
        let mut done = Vec::new();
        let mut wanted = Vec::new();
        let mut given_up = Vec::new();
        for key in &keys {
            let (kept, still_wanted) = self.kept(key, object);
            wanted.extend(still_wanted);
            if !kept.is_empty() && self.busy.contains_key(key) {
                return Err(format!("{key} is being worked on; try again; nothing was done"));
            }
            given_up.push(kept);
        }
        for (key, kept) in keys.into_iter().zip(given_up) {
            if !kept.is_empty() {
                if let Err(error) = self.give_up(&key, &kept).await {
                    let before =
                        if done.is_empty() { "nothing was done".to_owned() } else { done.join("; ") };
                    return Err(format!("cannot release {key}: {error}; {before}"));
                }
                done.extend(kept.iter().map(|id| format!("{} is taken down", id.spec)));
            }
            if force && self.is_going(&key) {
                done.push(self.force(&key));
            }
        }
        match (done.is_empty(), wanted.first()) {
            (false, _) => Ok(done),
            (true, Some(volume)) => Err(format!(
                "{object} is still in a manifest and uses {volume}: remove it there first; nothing was done"
            )),
            (true, None) => Err(format!("nothing is kept of {object}; nothing was done")),
        }
    }

    fn force(&mut self, key: &VolumeKey) -> String {
        self.operator.forced.insert(key.clone());
        self.forget_failures(key);
        self.touched.insert(key.clone());
        format!("{key} is taken down whoever has it")
    }

    /// Returns the volume of ours that is going and that a path is of: after a restart nothing says any more whose pod's it was.
    fn going_at(&self, path: &Path) -> Option<VolumeKey> {
        let at = |record: &VolumeRecord| {
            let staged = record.staging.as_ref().is_some_and(|s| s.arguments.staging_path == path);
            let arguments = record.publications.values().filter_map(|p| p.arguments.as_ref());
            staged || arguments.into_iter().any(|arguments| arguments.target_path == path)
        };
        let (key, _) = self.records.iter().find(|(key, record)| at(record) && self.is_going(key))?;
        Some(key.clone())
    }

    /// Returns the publications of an object that are kept without being wanted, and the names of those that are wanted.
    fn kept(&self, key: &VolumeKey, object: &ObjectRef) -> (BTreeSet<PublicationId>, Vec<String>) {
        let mut kept = BTreeSet::new();
        let mut wanted = Vec::new();
        let wants = self.desired.volumes.get(key);
        for (id, publication) in self.records.get(key).into_iter().flat_map(|record| &record.publications) {
            let named = object.kind == "Pod"
                && publication.pod.name == object.name
                && publication.pod.namespace == object.namespace;
            if !named && publication.claim.as_ref() != Some(object) {
                continue;
            }
            match wants.and_then(|wants| wants.publications.get(id)) {
                Some(Want::Held(hold)) if matches!(hold.code, HoldCode::EmptyDirKept | HoldCode::Adopted) => {
                    kept.insert(id.clone());
                }
                Some(Want::Wanted(_)) => wanted.push(id.spec.to_string()),
                Some(Want::Held(_) | Want::Absent) | None => {}
            }
        }
        (kept, wanted)
    }

    /// Whether nothing wants or holds a volume any more.
    pub(super) fn is_going(&self, key: &VolumeKey) -> bool {
        let wants = self.desired.volumes.get(key);
        self.desired.is_read
            && wants.is_none_or(|wants| wants.publications.values().all(|want| *want == Want::Absent))
    }

    async fn give_up(&mut self, key: &VolumeKey, ids: &BTreeSet<PublicationId>) -> Result<(), String> {
        let Some(record) = self.records.get_mut(key) else { return Ok(()) };
        let mut released = record.clone();
        for (_, publication) in released.publications.iter_mut().filter(|(id, _)| ids.contains(*id)) {
            publication.released = true;
        }
        let written = self.parts.store.write(released.clone(), Durability::Synced).await;
        written.map_err(|error| Chain(&error).to_string())?;
        *record = released;
        self.settle_soon();
        Ok(())
    }

    /// Writes a record for what lies at a path, to be kept or to be taken down.
    async fn take_over(&mut self, path: &Path, release: bool) -> Result<Vec<String>, String> {
        self.take_foreign().await;
        let is_it = |foreign: &&Foreign| foreign.path == path || foreign.target == path;
        let Some(foreign) = self.actual.foreign.iter().find(is_it).cloned() else {
            return Err(format!(
                "{} is no foreign volume; volumectl foreign lists them; nothing was done",
                path.display()
            ));
        };
        let (Some(key), Some(volume)) = (foreign.key.clone(), foreign.volume.clone()) else {
            return Err(format!(
                "{} has no vol_data.json that says whose volume it is: volumed cannot call a driver for it; \
                 take it down with the tool that made it; nothing was done",
                path.display()
            ));
        };
        if self.busy.contains_key(&key) {
            return Err(format!("{key} is being worked on; try again; nothing was done"));
        }
        let pods = self.desired.volumes.get(&key).into_iter().flat_map(|want| &want.publications);
        let mut wanted = pods
            .filter(|(id, want)| is_at(&foreign, id) && matches!(want, Want::Wanted(_)))
            .map(|(id, _)| id);
        if let Some(id) = wanted.next().filter(|_| release) {
            return Err(format!(
                "{} is wanted by pod {}: remove its manifest first; nothing was done",
                path.display(),
                id.pod
            ));
        }
        if foreign.publication.is_none() && !release {
            return Err(format!(
                "{} is staged for no pod: nothing would keep it; take it down with volumectl release, or add the \
                 manifest of a pod that uses it; nothing was done",
                path.display()
            ));
        }
        let mut record = match self.records.get(&key) {
            Some(record) => record.clone(),
            None => VolumeRecord::new(key.clone(), volume),
        };
        write_down(&mut record, &foreign, &self.boot, release)?;
        let written = self.parts.store.write(record.clone(), Durability::Synced).await;
        written.map_err(|error| Chain(&error).to_string())?;
        self.records.insert(key.clone(), record);
        self.forget_foreign(&key);
        self.tell_of(&key, EventKind::Adopted { key: key.clone(), path: foreign.path.clone() });
        self.observe(&key);
        self.touched.insert(key.clone());
        // What becomes of it is decided now, so that the answer says it, and noted by the next pass.
        self.settle();
        self.settle_soon();
        let becomes = if release {
            "is taken down".to_owned()
        } else {
            format!("is volumed's now and {}", self.becomes(&key, &foreign))
        };
        Ok(vec![format!("{} ({key}) {becomes}", foreign.path.display())])
    }

    /// Says what becomes of an adopted publication.
    fn becomes(&self, key: &VolumeKey, foreign: &Foreign) -> String {
        let wants = self.desired.volumes.get(key).into_iter().flat_map(|want| &want.publications);
        match wants.into_iter().find(|(id, _)| is_at(foreign, id)).map(|(_, want)| want) {
            // The hold says when the volume is taken down.
            Some(Want::Held(hold)) if hold.code != HoldCode::Adopted => format!("is held: {}", hold.detail),
            Some(Want::Absent) => "is taken down: its pod is being deleted".to_owned(),
            Some(Want::Wanted(_) | Want::Held(_)) | None => "stays".to_owned(),
        }
    }
}

/// Whether others left something at a pod's place. A staging is everybody's who wants the volume.
fn is_at(foreign: &Foreign, id: &PublicationId) -> bool {
    foreign.publication.as_ref().is_none_or(|(pod, plugin, spec)| {
        id.pod == *pod && id.plugin.directory() == plugin && id.spec == *spec
    })
}

/// Adds to a record what is known of a foreign place: enough to take it down.
fn write_down(
    record: &mut VolumeRecord,
    foreign: &Foreign,
    boot: &BootId,
    release: bool,
) -> Result<(), String> {
    // Unproven by a call of ours, and free to be called for with whatever a manifest says.
    let state = CallState::Intended { settled: true };
    let capability = Capability {
        volume_mode: foreign.volume_mode,
        mount_group: String::new(),
        fs_type: String::new(),
        mount_flags: Vec::new(),
        access_mode: AccessMode::SingleNodeWriter,
    };
    let boot = boot.clone();
    let Some((pod, plugin, spec)) = &foreign.publication else {
        if record.staging.is_some() {
            return Err("the volume is staged by volumed already; nothing was done".to_owned());
        }
        let arguments = StageArguments {
            kind: StagingKind::Call,
            staging_path: foreign.target.clone(),
            publish_context: BTreeMap::new(),
            capability,
            volume_context: BTreeMap::new(),
        };
        record.staging = Some(StagingRecord { boot, state, arguments });
        return Ok(());
    };
    let plugin = Plugin::from_directory(plugin).ok_or("volumed does not know this kind of volume")?;
    let id = PublicationId { pod: pod.clone(), plugin, spec: spec.clone() };
    let arguments = matches!(record.volume, RecordedVolume::Csi { .. }).then(|| PublishArguments {
        target_path: foreign.target.clone(),
        staging_path: None,
        publish_context: BTreeMap::new(),
        capability,
        read_only: false,
        volume_context: BTreeMap::new(),
    });
    // Nothing on disk says how the pod is called.
    let pod = PodIdentity { uid: pod.clone(), namespace: "foreign".to_owned(), name: pod.to_string() };
    let publication = PublicationRecord {
        boot,
        state,
        pod,
        names: BTreeSet::from([spec.to_string()]),
        claim: None,
        manifest: None,
        arguments,
        approved: false,
        adopted: true,
        released: release,
    };
    record.publications.insert(id, Box::new(publication));
    Ok(())
}
