//! What an operator says at bad moments, and what the auditor makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};
use volumed::model::{
    DriverName, Handover, InProgress, ObjectRef, Plugin, PublicationId, PublicationRecord, RecordedVolume,
    Scope, StagingKind, Status, VolumeKey, VolumeRecord,
};
use volumed::reconcile::Command;

use super::request::Request;
use super::trouble::Life;
use super::twins::volume_in;
use super::wish::{self, DRIVERS};
use super::world::State;

/// What an operator said, as far as volumed confirmed it.
#[derive(Debug, Default)]
pub struct Operator {
    /// What is paused, and the steps that were under way when that was confirmed.
    pub paused: BTreeMap<Scope, BTreeMap<VolumeKey, InProgress>>,
    /// Driver and handle of what is taken down whoever has it.
    pub forced: BTreeSet<(usize, String)>,
    /// The same by key, whatever the volume's type.
    pub forced_keys: BTreeSet<VolumeKey>,
    /// What is kept of pods that stay, and was given up.
    pub released: BTreeSet<PublicationId>,
    /// When it was wanted again.
    pub released_until: BTreeMap<PublicationId, Instant>,
    /// What this life of the daemon shows.
    pub status: Option<watch::Receiver<Status>>,
}

impl Life {
    /// The operator says something.
    pub async fn command(&mut self) {
        let any_paused: Vec<Scope> = self.world.lock().operator.paused.keys().cloned().collect();
        let paused = self.world.one_of(&any_paused).cloned();
        match self.world.below(10) {
            8 | 9 => self.hand_over().await,
            0..=2 => match paused {
                Some(scope) if self.world.below(3) > 0 => drop(self.resume(scope).await),
                Some(_) | None => self.pause().await,
            },
            3 => {
                self.world.tell(|| "volumectl retry".to_owned());
                let _tried = self.ask(|reply| Command::Retry { object: None, reply }).await;
            }
            _ => self.release().await,
        }
    }

    /// Asks and waits for the answer, of which there is none from a daemon that dies.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.daemon.commands.try_send(command(reply)).ok()?;
        timeout(Duration::from_secs(5), answer).await.ok()?.ok()
    }

    /// A pod or a claim.
    fn any_object(&self) -> ObjectRef {
        if self.world.below(2) == 0 {
            return ObjectRef::new("Pod", "default", self.any_pod());
        }
        let claim = format!("c{}", self.world.below(wish::VOLUMES));
        ObjectRef::new("PersistentVolumeClaim", "default", &claim)
    }

    pub async fn pause(&self) {
        let scope = match self.world.below(6) {
            0 => Scope::All,
            1 | 2 => {
                let driver = self.world.one_of(&DRIVERS).expect("there are two");
                Scope::Driver(DriverName::new(*driver).expect("good"))
            }
            _ => Scope::Object(self.any_object()),
        };
        let said = self.ask(|reply| Command::Pause { scope: scope.clone(), reply }).await;
        self.world.tell(|| format!("volumectl pause {scope}: {said:?}"));
        if let Some(Ok(())) = said {
            let mut state = self.world.lock();
            let under_way = state.under_way();
            state.operator.paused.entry(scope).or_insert(under_way);
        }
    }

    /// Takes a pause back; returns whether that was confirmed.
    pub async fn resume(&self, scope: Scope) -> bool {
        {
            let paused = &mut self.world.lock().operator.paused;
            match scope {
                Scope::All => paused.clear(),
                Scope::Object(_) | Scope::Driver(_) => drop(paused.remove(&scope)),
            }
        }
        let said = self.ask(|reply| Command::Resume { scope: scope.clone(), reply }).await;
        self.world.tell(|| format!("volumectl resume {scope}: {said:?}"));
        matches!(said, Some(Ok(_)))
    }

    /// Gives up what is kept, mostly whoever has it.
    async fn release(&mut self) {
        let (mut what, force) = (self.any_object(), self.world.below(4) > 0);
        let keepers = self.world.lock().keepers();
        if let Some(pod) = self.world.one_of(&keepers).filter(|_| self.world.below(2) == 0) {
            what = ObjectRef::new("Pod", "default", pod);
        }
        if what.kind == "Pod" {
            self.world.lock().gives_up(&what.name);
        }
        let staged = self.world.lock().staged_somewhere();
        let what = match self.world.one_of(&staged) {
            Some(path) if self.world.below(2) == 0 => Handover::Path(path.clone()),
            Some(_) | None => Handover::Object(what),
        };
        let said = self.ask(|reply| Command::Release { what: what.clone(), force, reply }).await;
        self.world.tell(|| format!("volumectl release {what:?}, force: {force}: {said:?}"));
        let Some(Ok(done)) = said else { return };
        let wrong = self.world.lock().forces(&done, force);
        self.world.violations(wrong);
        if let Handover::Object(object) = what
            && self.world.below(3) == 0
        {
            self.list_for_a_while(&object.name).await;
        }
    }

    /// A pod lists again what was given up of it, and then does not.
    async fn list_for_a_while(&mut self, pod: &str) {
        for lists in [true, false] {
            self.wait(600).await;
            let Some(pod) = self.wish.pods.get_mut(pod) else { return };
            pod.empty_dir = lists;
            self.world.tell(|| format!("its emptyDir is listed: {lists}"));
            self.read();
        }
    }
}

impl State {
    /// The steps under way, as volumed shows them.
    fn under_way(&self) -> BTreeMap<VolumeKey, InProgress> {
        let Some(status) = &self.operator.status else { return BTreeMap::new() };
        let status = status.borrow();
        let volumes = status.volumes.iter();
        volumes.filter_map(|(key, volume)| Some((key.clone(), volume.in_progress.clone()?))).collect()
    }

    /// A daemon died, and its steps with it. Pauses outlive it, force does not.
    pub fn operator_outlives(&mut self) {
        self.operator.paused.values_mut().for_each(BTreeMap::clear);
        self.operator.forced.clear();
        self.operator.forced_keys.clear();
    }

    /// Whether a call is made for what is paused, and not by a step that was under way.
    pub fn is_paused(&self, driver: usize, handle: &str) -> Option<&Scope> {
        let record = self.record_of(driver, handle)?;
        let now = self.operator.status.as_ref().map(watch::Receiver::borrow);
        let now = now.as_ref().and_then(|status| status.volumes.get(&record.key)?.in_progress.as_ref());
        let same = |was: &InProgress| now.is_some_and(|now| (now.step, now.since) == (was.step, was.since));
        let is_of = |scope: &Scope| match scope {
            Scope::All => true,
            Scope::Driver(name) => name.as_str() == DRIVERS[driver],
            Scope::Object(object) => record.publications.values().any(|p| is_of(p, object)),
        };
        let mut paused = self.operator.paused.iter();
        let meant = paused.find(|(scope, steps)| is_of(scope) && !steps.get(&record.key).is_some_and(same));
        meant.map(|(scope, _)| scope)
    }

    /// Whether `Status` shows that a volume has a step under way.
    pub fn is_shown_at_work(&self, driver: usize, handle: &str) -> bool {
        let Some(status) = &self.operator.status else { return true };
        let status = status.borrow();
        let name = DriverName::new(DRIVERS[driver]).expect("good");
        let is_it = |csi: &Option<(DriverName, String)>| {
            csi.as_ref().is_some_and(|(driver, other)| *driver == name && other == handle)
        };
        status.volumes.values().any(|volume| is_it(&volume.csi) && volume.in_progress.is_some())
    }

    pub fn record_of(&self, driver: usize, handle: &str) -> Option<&VolumeRecord> {
        let mut records = self.records.values().filter_map(|disk| disk.written.as_ref());
        records.find(|record| names(record).is_some_and(|(d, h)| d == DRIVERS[driver] && h == handle))
    }

    /// Whether a record says that a driver was or is to be asked to stage.
    pub fn records_call(&self, driver: usize) -> bool {
        let records = self.records.values().filter_map(|disk| disk.written.as_ref());
        let mut its = records.filter(|record| names(record).is_some_and(|(name, _)| name == DRIVERS[driver]));
        its.any(|record| record.staging.as_ref().is_some_and(|s| s.arguments.kind == StagingKind::Call))
    }

    /// Where records say that something is staged.
    pub fn staged_somewhere(&self) -> Vec<std::path::PathBuf> {
        let records = self.records.values().filter_map(|disk| disk.written.as_ref());
        records.filter_map(|record| Some(record.staging.as_ref()?.arguments.staging_path.clone())).collect()
    }

    /// Whether what is kept may be taken down, or was given up until a moment ago.
    pub fn is_given_up(&self, id: &PublicationId) -> bool {
        let until = self.operator.released_until.get(id);
        let lately = until.is_some_and(|until| until.elapsed() < super::foreign::DECIDED);
        lately || self.operator.released.contains(id)
    }

    /// What is wanted again was not meant by who gave it up. While a step has the volume's record nobody else writes it: a daemon
    /// that dies meanwhile has not taken that back.
    pub fn is_wanted_again(&mut self, places: &BTreeSet<PublicationId>) {
        let is_at_work = |id: &PublicationId| {
            let status = self.operator.status.as_ref().map(watch::Receiver::borrow);
            let volume = status.as_ref().and_then(|status| status.volumes.get(&VolumeKey::of_pod(id)));
            volume.is_some_and(|volume| volume.in_progress.is_some())
        };
        let again = self.operator.released.intersection(places);
        let again: Vec<_> = again.filter(|id| !is_at_work(id)).cloned().collect();
        for id in again {
            self.operator.released.remove(&id);
            self.operator.released_until.insert(id, Instant::now());
        }
    }

    /// The pods of which something is kept that they do not list any more.
    fn keepers(&self) -> Vec<String> {
        let records = self.records.values().filter_map(|disk| disk.written.as_ref());
        let kept = records.flat_map(|record| &record.publications);
        let kept = kept.filter(|(id, _)| id.plugin == Plugin::EmptyDir && !self.wanted.contains_key(id));
        kept.map(|(_, publication)| publication.pod.name.clone()).collect()
    }

    /// The operator gives up what a pod does not list any more.
    fn gives_up(&mut self, pod: &str) {
        let records = self.records.values().filter_map(|disk| disk.written.as_ref());
        let kept = records.flat_map(|record| record.publications.keys());
        let its = kept.filter(|id| id.pod == wish::uid(pod) && id.plugin == Plugin::EmptyDir);
        let unwanted: Vec<_> = its.filter(|id| !self.wanted.contains_key(id)).cloned().collect();
        self.operator.released.extend(unwanted);
    }

    /// volumed said what it takes down whoever has it: nothing that somebody wants.
    fn forces(&mut self, done: &[String], force: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        let records: Vec<VolumeRecord> =
            self.records.values().filter_map(|disk| disk.written.clone()).collect();
        for record in records {
            let key = &record.key;
            if !done.iter().any(|said| *said == format!("{key} is taken down whoever has it")) {
                continue;
            }
            if !force {
                wrong.push(format!("{key} is forced, and nobody said so"));
            }
            self.operator.forced_keys.insert(key.clone());
            let Some((name, handle)) = names(&record) else { continue };
            let driver = usize::from(name == DRIVERS[1]);
            let mut wanted = self.wanted.iter().filter(|(_, since)| since.elapsed() >= super::records::KNOWN);
            // Of two PVs with this handle only one has the volume.
            let is_it = |id: &PublicationId| {
                let is_shown = wish::volume_at(id).is_some_and(|v| wish::handle(v) == handle);
                id.plugin == Plugin::Csi
                    && is_shown
                    && (self.twin.is_none() || record.publications.contains_key(id))
            };
            if let Some((id, _)) = wanted.find(|(id, _)| is_it(id)) {
                wrong.push(format!("{key} is forced, and {id} is wanted"));
            }
            self.operator.forced.insert((driver, handle.to_owned()));
        }
        wrong
    }

    /// Whether somebody who has a volume may be passed over.
    pub fn is_forced(&self, driver: usize, handle: &str) -> bool {
        self.operator.forced.contains(&(driver, handle.to_owned()))
    }

    /// Whether what a server has not got of a path's volume may be lost.
    pub fn is_path_forced(&self, path: &Path) -> bool {
        let records = self.records.values().filter_map(|disk| disk.written.as_ref());
        let mut its = records.filter(|record| {
            let mut sent = record.publications.values().filter_map(|p| p.arguments.as_ref());
            sent.any(|sent| sent.target_path == path)
        });
        its.any(|record| self.operator.forced_keys.contains(&record.key))
    }

    /// Whether the device that is bound at a path may be taken from somebody.
    pub fn is_map_forced(&self, map: &Path) -> bool {
        let volume = volume_in(map.parent().and_then(Path::parent));
        volume.is_some_and(|volume| self.is_forced(wish::driver(volume), &wish::handle(volume)))
    }

    /// What comes up again was not meant when the operator said that it goes.
    pub fn comes_up(&mut self, driver: usize, request: &Request) {
        self.operator.forced.remove(&(driver, request.handle().to_owned()));
    }
}

fn names(record: &VolumeRecord) -> Option<(&str, &str)> {
    match &record.volume {
        RecordedVolume::Csi { driver, handle, .. } => Some((driver.as_str(), handle)),
        RecordedVolume::EmptyDir
        | RecordedVolume::Local { .. }
        | RecordedVolume::Device { .. }
        | RecordedVolume::Nfs { .. } => None,
    }
}

fn is_of(publication: &PublicationRecord, object: &ObjectRef) -> bool {
    let pod = &publication.pod;
    let named = object.kind == "Pod" && object.name == pod.name && object.namespace == pod.namespace;
    named || publication.claim.as_ref() == Some(object)
}
