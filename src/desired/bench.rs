//! What the tests of `Absences` work with: manifests, records and a clock, all under the test's hand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::*;
use crate::model::{
    BootId, CallState, DirectoryState, DriverName, HoldCode, Plugin, SpecName, Want, WantedVolume,
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
