//! What a kubelet left before volumed came: staged and published volumes that no record of ours knows.
//!
//! It becomes volumed's when a manifest wants it or the operator says so, and is not touched before.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use volumed::model::{
    CallState, DriverName, Handover, Layout, Lifecycle, ObjectRef, Plugin, PublicationId, VolData,
    VolumeRecord,
};
use volumed::reconcile::Command;

use super::trouble::Life;
use super::wish::{self, DRIVERS, PodWish};
use super::world::{Node, ROOT, State, World};

/// One staging or publication, by the path that its driver was told.
#[derive(Debug, Clone)]
pub struct Left {
    pub handle: String,
    /// Whose it is; `None` for a staging.
    pub place: Option<PublicationId>,
    pub whose: Whose,
}

/// Who may touch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Nobody, until a manifest wants it.
    Others,
    /// volumed keeps it, because the operator said so.
    Adopted,
    /// The operator said something, and volumed has not answered.
    Asked,
}

/// So long after a manifest has gone a step may go on that was decided before.
pub const DECIDED: Duration = Duration::from_millis(500);

impl World {
    /// A kubelet ran here before.
    pub fn has_had_a_kubelet(&self) {
        let pods: Vec<String> = (0..3).map(|n| format!("pod{n}")).chain(["old".to_owned()]).collect();
        for pod in pods {
            let volumes: Vec<u64> = (0..4).filter(|_| self.below(4) == 0).collect();
            for volume in volumes {
                let (leaks, single) = (self.below(5) == 0, wish::is_single_pod(volume));
                let mut state = self.lock();
                let handle = wish::handle(volume);
                if single && state.left.values().any(|left| left.handle == handle) {
                    continue;
                }
                state.leave_staging(volume);
                if !leaks {
                    state.leave_publication(volume, &pod);
                }
            }
        }
        self.tell(|| format!("a kubelet left {:?}", self.lock().left.keys()));
    }
}

impl Life {
    /// The operator adopts or releases what others left.
    pub async fn hand_over(&self) {
        let paths: Vec<PathBuf> = self.world.lock().left.keys().cloned().collect();
        let Some(path) = self.world.one_of(&paths).cloned() else { return };
        let was = self.world.lock().left[&path].clone();
        if let (Whose::Adopted, Some(place)) = (was.whose, &was.place) {
            return self.release_adopted(place).await;
        }
        let releases = self.world.below(2) == 0;
        self.world.lock().now(&path, Whose::Asked);
        // The operator takes the mount that he sees for what was left.
        self.world.lock().audit.cut.insert(path.clone());
        let what = Handover::Path(path.clone());
        let said = if releases {
            self.ask(|reply| Command::Release { what, force: false, reply }).await
        } else {
            self.ask(|reply| Command::Adopt { what, reply }).await
        };
        self.world.tell(|| format!("{} is handed over, released: {releases}: {said:?}", path.display()));
        match said {
            Some(Ok(_)) if releases => drop(self.world.lock().left.remove(&path)),
            Some(Ok(_)) => self.world.lock().now(&path, Whose::Adopted),
            Some(Err(_)) => self.world.lock().now(&path, was.whose),
            None => {}
        }
    }

    /// Whatever of a pod's was adopted goes.
    async fn release_adopted(&self, place: &PublicationId) {
        let its: Vec<PathBuf> = {
            let mut state = self.world.lock();
            let is_its = |left: &Left| left.place.as_ref().is_some_and(|other| other.pod == place.pod);
            let its = state.left.iter_mut().filter(|(_, left)| is_its(left) && left.whose == Whose::Adopted);
            its.map(|(path, left)| {
                left.whose = Whose::Asked;
                path.clone()
            })
            .collect()
        };
        let what = Handover::Object(ObjectRef::new("Pod", "foreign", place.pod.as_str()));
        let said = self.ask(|reply| Command::Release { what, force: false, reply }).await;
        self.world.tell(|| format!("what was adopted of {} is released: {said:?}", place.pod));
        if let Some(Ok(_)) = said {
            self.world.lock().left.retain(|path, _| !its.contains(path));
        }
    }
}

impl State {
    fn directory(&mut self, path: &Path) {
        for path in path.ancestors().filter(|path| path.starts_with(ROOT)) {
            self.nodes.entry(path.to_owned()).or_insert(Node::Directory);
        }
    }

    fn leave(&mut self, volume: u64, path: &Path, data: &VolData, place: Option<PublicationId>) {
        let handle = wish::handle(volume);
        self.directory(path);
        self.nodes.insert(path.with_file_name("vol_data.json"), Node::File(data.to_bytes()));
        let mounts =
            if place.is_some() { wish::is_mounted(&handle) } else { wish::is_mounted_staged(&handle) };
        if mounts && !self.is_mounted(path) {
            self.mount(path, &handle);
        }
        self.old_places.insert(path.to_owned());
        self.old_handles.insert(handle.clone());
        self.left.insert(path.to_owned(), Left { handle, place, whose: Whose::Others });
    }

    fn leave_staging(&mut self, volume: u64) {
        let driver = wish::driver(volume);
        if !self.drivers[driver].stages {
            return;
        }
        let (name, handle) = (DriverName::new(DRIVERS[driver]).expect("good"), wish::handle(volume));
        let layout = Layout::new(ROOT);
        let path = layout.absolute(&layout.csi_staging(&name, &handle));
        self.leave(volume, &path, &VolData::staging(&name, &handle), None);
        self.staged.insert(handle, path);
    }

    fn leave_publication(&mut self, volume: u64, pod: &str) {
        let claims = PodWish { claims: [volume].into(), ..PodWish::default() };
        let Some(place) = wish::places(pod, &claims).pop() else { return };
        let name = DriverName::new(DRIVERS[wish::driver(volume)]).expect("good");
        let handle = wish::handle(volume);
        let data = VolData::publication(&place, &name, &handle, "node", Lifecycle::Persistent);
        let path = wish::target(&place);
        self.leave(volume, &path, &data, Some(place));
        self.published.insert(path, handle);
    }

    fn now(&mut self, path: &Path, whose: Whose) {
        if let Some(left) = self.left.get_mut(path) {
            left.whose = whose;
        }
    }

    /// Whether others, or the operator's word, keep a volume staged.
    pub fn is_kept(&self, handle: &str) -> bool {
        self.left.values().any(|left| left.handle == handle && left.place.is_some())
    }

    /// Whether a volume may have to wait for what others left to be released: it is for one pod, or its staging would have to
    /// be undone because its driver can do something else now.
    pub fn waits_for_others(&self, volume: u64) -> bool {
        let retooled = self.drivers[wish::driver(volume)].retooled;
        (retooled || wish::is_single_pod(volume)) && self.is_kept(&wish::handle(volume))
    }

    /// Whether a volume is on the node whatever its driver's limit is.
    pub fn is_here_anyway(&self, handle: &str) -> bool {
        self.old_handles.contains(handle) || self.revived.contains(handle)
    }

    /// Whether a path is, or holds, what others left.
    pub fn is_left_in(&self, path: &Path) -> bool {
        self.left.keys().any(|left| left.starts_with(path) || path.starts_with(left))
    }

    /// A path is about to be undone, unmounted or removed: nobody may touch what is another's.
    pub fn may_be_touched(&mut self, path: &Path, wrong: &mut Vec<String>) {
        let Some(left) = self.left.get(path) else { return };
        let listed = left.place.as_ref().and_then(|place| self.listed.get(&place.pod));
        let is_in = left.place.as_ref().is_some_and(|place| self.manifested.contains(&place.pod));
        let may = match left.whose {
            Whose::Asked => true,
            // What volumed keeps is the pod's, and goes with it or when its manifest does not list it.
            Whose::Adopted => is_in || listed.is_some_and(|until| until.elapsed() < DECIDED),
            Whose::Others => false,
        };
        if !may {
            wrong.push(format!("{} is touched, which is {left:?}", path.display()));
        }
        self.left.remove(path);
    }

    /// A record is about to be written: what it takes over is wanted by a manifest, or the operator said so.
    pub fn takes_over(&mut self, record: &VolumeRecord, wrong: &mut Vec<String>) {
        if self.left.is_empty() {
            return;
        }
        let staging = record.staging.iter().map(|staging| (staging.arguments.staging_path.clone(), false));
        // Whether an undo may begin is asked when its call is made.
        let published = record.publications.values().filter(|p| p.state != CallState::Undoing);
        let published =
            published.filter_map(|p| Some((p.arguments.as_ref()?.target_path.clone(), p.adopted)));
        let paths: Vec<(PathBuf, bool)> = staging.chain(published).collect();
        for (path, adopted) in paths {
            let Some(left) = self.left.get(&path) else { continue };
            if adopted && left.whose != Whose::Others {
                continue;
            }
            if left.whose != Whose::Asked && !self.is_wanted(left) {
                wrong.push(format!("{} is taken over, and nobody asked for it", path.display()));
            }
            self.left.remove(&path);
            self.audit.cut.insert(path);
        }
    }

    fn is_wanted(&self, left: &Left) -> bool {
        let shows = |id: &PublicationId| match &left.place {
            Some(place) => place == id,
            None => {
                let volume = wish::volume_at(id).filter(|_| id.plugin == Plugin::Csi);
                volume.is_some_and(|volume| wish::handle(volume) == left.handle)
            }
        };
        let lately = |until: &Instant| until.elapsed() < DECIDED;
        self.wanted.keys().any(shows)
            || self.wanted_until.iter().any(|(id, until)| shows(id) && lately(until))
    }
}
