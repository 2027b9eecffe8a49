//! `Absences`, rule by rule (design 3, "Fail-safe").

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::*;
use crate::model::{
    BootId, CallState, DirectoryState, DriverName, HoldCode, Plugin, RecordedMount, SpecName, Want,
    WantedVolume,
};

/// Manifests, records and a clock, all under the test's hand.
pub(super) struct Bench {
    pub(super) absences: Absences,
    pub(super) resolved: Resolved,
    pub(super) records: BTreeMap<(VolumeKey, PublicationId), PublicationRecord>,
    pub(super) now_ms: u64,
}

pub(super) fn uid(pod: &str) -> PodUid {
    PodUid::new(format!("uid-{pod}")).unwrap()
}

pub(super) fn key(handle: &str) -> VolumeKey {
    VolumeKey::csi(&DriverName::new("d.example").unwrap(), handle)
}

pub(super) fn id(pod: &str, plugin: Plugin, spec: &str) -> PublicationId {
    PublicationId { pod: uid(pod), plugin, spec: SpecName::new(spec).unwrap() }
}

pub(super) fn identity(pod: &str) -> PodIdentity {
    PodIdentity { uid: uid(pod), namespace: "default".to_owned(), name: pod.to_owned() }
}

pub(super) fn problem() -> Problem {
    Problem {
        path: "/m/unreadable.yaml".into(),
        position: None,
        object: None,
        field: None,
        detail: "permission denied".to_owned(),
        remedy: "chmod it".to_owned(),
        warning: false,
    }
}

pub(super) fn hold() -> Hold {
    hold::invalid("it is broken", "mend it")
}

impl Bench {
    pub(super) fn new(absences: Absences) -> Self {
        Self { absences, resolved: Resolved::default(), records: BTreeMap::new(), now_ms: 5_000 }
    }

    /// Adds a pod from a file of a directory, with one CSI volume `data` whose handle is the pod's name.
    pub(super) fn add(&mut self, pod: &str, directory: &str) {
        let file = Path::new(directory).join(format!("{pod}.yaml"));
        let resolved = ResolvedPod {
            identity: identity(pod),
            source: ManifestSource { file, line: 1 },
            leaving: false,
            held: None,
            volumes: BTreeMap::new(),
        };
        Arc::make_mut(&mut self.resolved.pods).insert(uid(pod), Arc::new(resolved));
        self.list(pod, "data", pod);
        self.count_files();
    }

    /// Lists a CSI volume in a pod.
    pub(super) fn list(&mut self, pod: &str, name: &str, handle: &str) {
        self.put(pod, name, key(handle), id(pod, Plugin::Csi, name));
    }

    pub(super) fn put(&mut self, pod: &str, name: &str, key: VolumeKey, id: PublicationId) {
        let pod = self.pod(pod);
        let wanted = Arc::new(Wanted {
            pod: pod.identity.clone(),
            names: BTreeSet::from([name.to_owned()]),
            claim: Some(ObjectRef::new("PersistentVolumeClaim", "default", "data")),
            manifest: Some(pod.source.file.clone()),
            volume: WantedVolume::EmptyDir { ownership: None },
        });
        let want = ResolvedWant::Wanted { key, id, wanted };
        let claim = Some(ObjectRef::new("PersistentVolumeClaim", "default", "data"));
        let volume = ResolvedVolume { claim, links: Vec::new(), capacity: None, access_mode: None, want };
        pod.volumes.insert(name.to_owned(), Box::new(volume));
    }

    pub(super) fn pod(&mut self, pod: &str) -> &mut ResolvedPod {
        Arc::make_mut(Arc::make_mut(&mut self.resolved.pods).get_mut(&uid(pod)).unwrap())
    }

    pub(super) fn remove(&mut self, pod: &str) {
        Arc::make_mut(&mut self.resolved.pods).remove(&uid(pod));
        self.count_files();
    }

    /// One manifest file per pod.
    fn count_files(&mut self) {
        let directories = &mut self.resolved.reading.directories;
        for state in directories.values_mut() {
            state.files = 0;
        }
        for pod in self.resolved.pods.values() {
            let directory = pod.source.file.parent().map(Path::to_owned).unwrap_or_default();
            directories.entry(directory).or_insert(DirectoryState { identity: None, files: 0 }).files += 1;
        }
    }

    /// Everything that is wanted is brought up, and so recorded.
    pub(super) fn bring_up(&mut self) {
        for (spot, want) in self.settle().1 {
            if let Want::Wanted(wanted) = want {
                self.records.entry(spot).or_insert_with(|| PublicationRecord {
                    boot: BootId("boot".to_owned()),
                    state: CallState::Undoing,
                    pod: wanted.pod.clone(),
                    names: wanted.names.clone(),
                    claim: wanted.claim.clone(),
                    manifest: wanted.manifest.clone(),
                    arguments: None,
                    approved: false,
                    adopted: false,
                    released: false,
                });
            }
        }
    }

    /// Reads again, after a while.
    pub(super) fn read(&mut self, after_ms: u64, complete: bool) {
        self.now_ms += after_ms;
        self.resolved.reading.generation += 1;
        self.resolved.reading.began_ms = self.now_ms;
        self.resolved.reading.incomplete = if complete { Vec::new() } else { vec![problem()] };
    }

    pub(super) fn settle(&mut self) -> (Settled, BTreeMap<(VolumeKey, PublicationId), Want>) {
        let wall = 1_000_000 + i64::try_from(self.now_ms).unwrap();
        let recorded = self.records.iter().map(|((key, id), record)| {
            let up = matches!(record.state, CallState::Done { .. });
            Recorded { key, id, record, up }
        });
        let settled = self.absences.settle(&self.resolved, recorded, self.now_ms, wall);
        let mut all = BTreeMap::new();
        for (key, volume) in &settled.desired.volumes {
            for (id, want) in &volume.publications {
                all.insert((key.clone(), id.clone()), want.clone());
            }
        }
        (settled, all)
    }

    /// What is decided about `data` of a pod.
    pub(super) fn want(&mut self, pod: &str) -> Want {
        let spot = (key(pod), id(pod, Plugin::Csi, "data"));
        self.settle().1.remove(&spot).unwrap_or_else(|| panic!("{spot:?} is not decided about"))
    }

    #[track_caller]
    pub(super) fn held(&mut self, pod: &str) -> (HoldCode, String) {
        match self.want(pod) {
            Want::Held(hold) => (hold.code, format!("{} | {}", hold.detail, hold.remedy)),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn absent(&mut self) -> usize {
        self.settle().1.values().filter(|w| **w == Want::Absent).count()
    }

    pub(super) fn approve(&mut self) {
        let approvable: BTreeSet<PublicationId> = self.absences.approvable().into_iter().collect();
        for ((_, id), record) in &mut self.records {
            record.approved |= approvable.contains(id);
        }
    }

    /// Takes down what is absent.
    pub(super) fn take_down(&mut self) {
        for (spot, want) in self.settle().1 {
            if want == Want::Absent {
                self.records.remove(&spot);
            }
        }
    }
}

/// So many pods in one directory, all up.
pub(super) fn running(pods: usize, directory: &str) -> Bench {
    let mut bench = Bench::new(Absences::default());
    more(&mut bench, pods, "web", directory);
    bench
}

pub(super) fn more(bench: &mut Bench, pods: usize, name: &str, directory: &str) {
    for n in 0..pods {
        bench.add(&format!("{name}-{n:03}"), directory);
    }
    bench.read(10, true);
    bench.bring_up();
}

pub(super) fn remove(bench: &mut Bench, name: &str, pods: std::ops::Range<usize>) {
    for n in pods {
        bench.remove(&format!("{name}-{n:03}"));
    }
}

/// Two complete readings, the second late enough.
pub(super) fn read_twice(bench: &mut Bench) {
    bench.read(10, true);
    bench.settle();
    bench.read(1_000, true);
}

#[test]
fn a_removed_manifest_is_absent_after_two_complete_readings_a_grace_apart() {
    let mut bench = running(2, "/m");
    bench.remove("web-000");
    bench.read(10, true);
    let (code, text) = bench.held("web-000");
    assert_eq!(code, HoldCode::ManifestMissing);
    assert!(text.contains("pod/default/web-000") && text.contains("/m/web-000.yaml"), "{text}");
    let first = bench.now_ms;
    assert_eq!(bench.settle().0.confirm_after_ms, Some(first + 1_000));
    // The same reading, however late it is looked at, counts once.
    bench.now_ms += 10_000;
    assert_eq!(bench.held("web-000").0, HoldCode::ManifestMissing);
    bench.resolved.reading.generation += 1;
    bench.resolved.reading.began_ms = first + 999;
    assert_eq!(bench.held("web-000").0, HoldCode::ManifestMissing);
    bench.resolved.reading.generation += 1;
    bench.resolved.reading.began_ms = first + 1_000;
    assert_eq!(bench.want("web-000"), Want::Absent);
    assert!(matches!(bench.want("web-001"), Want::Wanted(_)));
    assert_eq!(bench.settle().0.confirm_after_ms, None);
}

#[test]
fn one_reading_is_never_two_even_without_a_grace() {
    let mut bench = running(1, "/m");
    bench.absences = Absences::new(0, None);
    bench.remove("web-000");
    bench.read(10, true);
    assert_eq!(bench.held("web-000").0, HoldCode::ManifestMissing);
    assert_eq!(bench.held("web-000").0, HoldCode::ManifestMissing);
    bench.read(0, true);
    assert_eq!(bench.want("web-000"), Want::Absent);
}

#[test]
fn a_manifest_that_returns_begins_anew() {
    let mut bench = running(1, "/m");
    bench.remove("web-000");
    bench.read(10, true);
    assert_eq!(bench.held("web-000").0, HoldCode::ManifestMissing);
    bench.add("web-000", "/m");
    bench.read(10, true);
    assert!(matches!(bench.want("web-000"), Want::Wanted(_)));
    bench.remove("web-000");
    bench.read(5_000, true);
    assert_eq!(bench.held("web-000").0, HoldCode::ManifestMissing);
}

#[test]
fn while_a_reading_is_incomplete_nothing_is_absent() {
    let mut bench = running(1, "/m");
    bench.remove("web-000");
    for _ in 0..5 {
        bench.read(5_000, false);
        let (code, text) = bench.held("web-000");
        assert_eq!(code, HoldCode::ReadingIncomplete);
        assert!(text.contains("/m/unreadable.yaml") && text.contains("volumectl approve"), "{text}");
    }
    read_twice(&mut bench);
    assert_eq!(bench.want("web-000"), Want::Absent);
    bench.read(5_000, false);
    assert_eq!(bench.held("web-000").0, HoldCode::ReadingIncomplete);
}

#[test]
fn before_the_first_reading_everything_recorded_is_held() {
    let mut bench = running(1, "/m");
    bench.remove("web-000");
    bench.resolved.reading = ReadingState::default();
    bench.absences = Absences::default();
    for record in bench.records.values_mut() {
        record.approved = true;
    }
    assert_eq!(bench.held("web-000").0, HoldCode::ReadingIncomplete);
}

#[test]
fn a_leaving_pod_is_absent_at_once_even_in_an_incomplete_reading() {
    let mut bench = running(1, "/m");
    bench.pod("web-000").leaving = true;
    bench.read(1, false);
    assert_eq!(bench.want("web-000"), Want::Absent);
    // And nothing new of it comes up.
    bench.records.clear();
    assert!(bench.settle().1.is_empty());
}

#[test]
fn a_held_pod_holds_what_is_recorded_of_it() {
    let mut bench = running(1, "/m");
    let pod = bench.pod("web-000");
    pod.held = Some(hold());
    pod.volumes.clear();
    read_twice(&mut bench);
    assert_eq!(bench.held("web-000"), (HoldCode::ObjectInvalid, "it is broken | mend it".to_owned()));
}

#[test]
fn a_held_volume_is_not_absent_by_name_or_by_claim() {
    for name in ["data", "renamed"] {
        let mut bench = running(1, "/m");
        let pod = bench.pod("web-000");
        let mut volume = pod.volumes.remove("data").unwrap();
        volume.want = ResolvedWant::Held(hold());
        pod.volumes.insert(name.to_owned(), volume);
        read_twice(&mut bench);
        assert_eq!(bench.held("web-000").0, HoldCode::ObjectInvalid, "{name}");
    }
}

#[test]
fn a_volume_that_its_pod_no_longer_uses_goes() {
    let mut bench = running(1, "/m");
    bench.pod("web-000").volumes.clear();
    bench.read(10, true);
    let (code, text) = bench.held("web-000");
    assert_eq!(code, HoldCode::ManifestMissing);
    assert!(text.contains("does not use volume data any more"), "{text}");
    bench.read(1_000, true);
    assert_eq!(bench.want("web-000"), Want::Absent);
}

#[test]
fn a_place_that_is_wanted_for_another_volume_gives_up_the_first() {
    let mut bench = running(1, "/m");
    bench.list("web-000", "data", "other");
    bench.read(10, true);
    let (code, text) = bench.held("web-000");
    assert_eq!(code, HoldCode::ManifestMissing);
    assert!(text.contains("d.example^other now"), "{text}");
    bench.read(1_000, true);
    assert_eq!(bench.want("web-000"), Want::Absent);
    let all = bench.settle().1;
    assert!(matches!(all[&(key("other"), id("web-000", Plugin::Csi, "data"))], Want::Wanted(_)));
}

#[test]
fn an_edit_to_another_volume_waits_as_long_as_the_first_is_up() {
    let mut bench = running(1, "/m");
    let old = (key("web-000"), id("web-000", Plugin::Csi, "data"));
    bench.records.get_mut(&old).unwrap().state = CallState::Done { mount: RecordedMount::NotAMountPoint };
    bench.list("web-000", "data", "other");
    read_twice(&mut bench);
    let all = bench.settle().1;
    for spot in [old.clone(), (key("other"), old.1.clone())] {
        assert!(matches!(&all[&spot], Want::Held(hold) if hold.code == HoldCode::PendingEdit), "{spot:?}");
    }
    bench.remove("web-000");
    read_twice(&mut bench);
    assert_eq!(bench.settle().1[&old], Want::Absent);
}

#[test]
fn an_empty_dir_goes_only_with_its_pod() {
    let mut bench = running(1, "/m");
    let place = id("web-000", Plugin::EmptyDir, "scratch");
    let spot = (VolumeKey::of_pod(&place), place.clone());
    bench.put("web-000", "scratch", spot.0.clone(), place);
    bench.read(10, true);
    bench.bring_up();
    bench.pod("web-000").volumes.remove("scratch");
    bench.records.get_mut(&spot).unwrap().approved = true;
    read_twice(&mut bench);
    assert!(matches!(&bench.settle().1[&spot], Want::Held(h) if h.code == HoldCode::EmptyDirKept));
    bench.records.get_mut(&spot).unwrap().approved = false;
    bench.remove("web-000");
    read_twice(&mut bench);
    assert_eq!(bench.settle().1[&spot], Want::Absent);
}

#[test]
fn a_released_empty_dir_goes_while_its_pod_stays() {
    let mut bench = running(1, "/m");
    let place = id("web-000", Plugin::EmptyDir, "scratch");
    let spot = (VolumeKey::of_pod(&place), place.clone());
    bench.put("web-000", "scratch", spot.0.clone(), place);
    bench.read(10, true);
    bench.bring_up();
    bench.pod("web-000").volumes.remove("scratch");
    bench.records.get_mut(&spot).unwrap().released = true;
    bench.read(20, true);
    assert_eq!(bench.settle().1[&spot], Want::Absent);
}

#[test]
fn an_adopted_volume_is_kept_until_it_is_released() {
    let mut bench = running(1, "/m");
    let spot = bench.records.keys().next().unwrap().clone();
    bench.records.get_mut(&spot).unwrap().adopted = true;
    bench.remove("web-000");
    read_twice(&mut bench);
    assert!(matches!(&bench.settle().1[&spot], Want::Held(h) if h.code == HoldCode::Adopted));
    bench.records.get_mut(&spot).unwrap().released = true;
    assert_eq!(bench.settle().1[&spot], Want::Absent);
}
