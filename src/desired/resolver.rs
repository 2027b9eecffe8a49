//! Readings -> what each pod's volumes come to. A pod is looked up again only when its manifest, or an answer that it got the
//! last time, may be another now: a reading costs what changed, however many pods there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::changes::{Question, differing, questions};
use super::index::Index;
use super::node::Node;
use super::ways::Ways;
use super::{Resolved, ResolvedPod, ResolvedPods, hold, resolve};
use crate::manifest::{Manifests, Objects, Sourced, Stale};
use crate::model::{ManifestSource, ObjectRef, PodIdentity, PodUid, Problem};

/// Looks the volumes of every pod up, reading after reading.
#[derive(Debug)]
pub struct Resolver {
    node: Node,
    last: Arc<Manifests>,
    ways: Ways,
    known: BTreeMap<PodUid, Known>,
    /// All of them, the broken ones too.
    pods: Arc<ResolvedPods>,
    /// Those of `last` that only show when the objects are seen together.
    problems: Vec<Problem>,
}

/// What a pod came to, and why it may come to something else.
#[derive(Debug)]
struct Known {
    pod: Arc<ResolvedPod>,
    asked: BTreeSet<Question>,
}

impl Resolver {
    /// Begins with no reading.
    pub fn new(node: Node) -> Self {
        Self {
            node,
            last: Arc::default(),
            ways: Ways::default(),
            known: BTreeMap::new(),
            pods: Arc::default(),
            problems: Vec::new(),
        }
    }

    /// Looks the volumes of every pod up. The answer depends on this reading alone, and is made without any I/O: the files
    /// that the node's settings name are not read either.
    pub fn resolve(&mut self, manifests: &Arc<Manifests>) -> Resolved {
        let last = std::mem::replace(&mut self.last, Arc::clone(manifests));
        if !Arc::ptr_eq(&last.objects, &manifests.objects) {
            self.look_up(&last.objects, &manifests.objects);
        }
        let mut problems = manifests.problems.clone();
        problems.extend(self.problems.iter().cloned());
        problems.sort();
        problems.dedup();
        Resolved { reading: manifests.reading.clone(), problems, pods: Arc::clone(&self.pods) }
    }

    /// Looks up the pods that the difference between two readings concerns.
    fn look_up(&mut self, old: &Objects, new: &Objects) {
        self.ways.update(old, new);
        let changed: BTreeSet<&PodUid> = differing(&old.pods, &new.pods).map(|change| change.key).collect();
        let questions = questions(old, new);
        self.known.retain(|uid, known| !changed.contains(uid) && known.asked.is_disjoint(&questions));
        let index = Index::new(new, &self.ways, &self.node);
        self.problems = index.problems();
        for (uid, pod) in new.pods.iter().filter(|(_, pod)| !is_gone(pod)) {
            self.known.entry(uid.clone()).or_insert_with(|| {
                let pod = Arc::new(resolve::pod(&index, uid, pod));
                Known { pod, asked: index.take_asked() }
            });
        }
        let broken = new.broken_pods.iter();
        let mut pods: ResolvedPods =
            broken.map(|(uid, why)| (uid.clone(), Arc::new(self::broken(uid, why)))).collect();
        pods.extend(self.known.iter().map(|(uid, known)| (uid.clone(), Arc::clone(&known.pod))));
        self.pods = Arc::new(pods);
    }
}

/// Whether the reading lacks a pod. It is not resolved then: `Absences` counts the readings that lack it.
fn is_gone(pod: &Sourced<k8s_openapi::api::core::v1::Pod>) -> bool {
    matches!(pod.stale, Some(Stale::Gone(_))) && pod.object.metadata.deletion_timestamp.is_none()
}

fn broken(uid: &PodUid, (name, problem): &(ObjectRef, Problem)) -> ResolvedPod {
    ResolvedPod {
        identity: PodIdentity {
            uid: uid.clone(),
            namespace: name.namespace.clone(),
            name: name.name.clone(),
        },
        source: ManifestSource {
            file: problem.path.clone(),
            line: problem.position.map_or(1, |(line, _)| line),
        },
        leaving: false,
        held: Some(hold::broken(name, problem)),
        volumes: BTreeMap::new(),
    }
}
