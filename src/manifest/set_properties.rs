//! A `Set` that tells unchanged files by pointer says what one says to which every file is new each time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::file::understand;
use super::set::{Content, DirectoryTaken, FileTaken, Set, Taken, directory_problem};
use super::{Manifests, Sourced};
use crate::model::{Birth, DirectoryIdentity};

const DIRECTORIES: [&str; 2] = ["/m", "/n"];
const FILES: [&str; 3] = ["/m/a.yaml", "/m/b.yaml", "/n/c.yaml"];

/// What a file may hold: objects that meet, by name and by UID, and what cannot be understood or read.
const TEXTS: [&str; 9] = [
    "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: x}, spec: {}}",
    "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: x}, spec: {volumeName: v}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: p, uid: u1}, spec: {containers: []}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: q, uid: u1}, spec: {containers: []}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: p, uid: u2}, spec: {containers: []}}\n---\n\
     {apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: y}, spec: {}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: p, uid: u1}, spec: {containers: []}}\n---\n\
     {apiVersion: v1, kind: Pod, metadata: {name: p, uid: u2}, spec: {containers: []}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: p, uid: u1}, spec: 7}",
    "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: 7}, spec: {}}",
    "{",
];

/// One change, and the reading after it.
#[derive(Debug, Clone)]
struct Change {
    file: usize,
    /// One of `TEXTS`; the next two are being written and unreadable; `None`: the file is not there.
    content: Option<usize>,
    later_ms: u64,
    /// /n cannot be listed.
    away: bool,
    approved: bool,
}

fn change() -> impl Strategy<Value = Change> {
    let content = prop::option::weighted(0.8, 0..TEXTS.len() + 2);
    let later = prop_oneof![Just(1_u64), Just(600), Just(1500)];
    (0..FILES.len(), content, later, prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(
        |(file, content, later_ms, away, approved)| Change { file, content, later_ms, away, approved },
    )
}

fn content(file: &str, which: usize) -> Content {
    let problem = |detail: &str| directory_problem(Path::new(file), detail);
    match TEXTS.get(which) {
        Some(text) => understand(Path::new(file), text.as_bytes().to_vec()),
        None if which == TEXTS.len() => Content::Writing(problem("is being written")),
        None => Content::Unread(problem("cannot be read")),
    }
}

fn directory(path: &str, away: bool) -> DirectoryTaken {
    if away && path == "/n" {
        return DirectoryTaken::Failed(directory_problem(Path::new(path), "cannot be listed"));
    }
    DirectoryTaken::Listed(DirectoryIdentity { inode: 1, birth: Birth::Time(1) })
}

/// All that a reading says, object by object.
fn told(manifests: &Manifests) -> String {
    fn all<K: std::fmt::Debug, T: std::fmt::Debug>(map: &BTreeMap<K, Sourced<T>>) -> String {
        map.iter().map(|(k, s)| format!("{k:?} {} {:?} {:?}\n", s.source, s.stale, s.object)).collect()
    }
    let Manifests { objects, problems, reading } = manifests;
    let (pods, claims) = (all(&objects.pods), all(&objects.claims));
    format!("{pods}{claims}{:?}\n{problems:?}\n{reading:?}", objects.broken_pods)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_did_not_change_counts_as_if_it_were_read_anew(changes in prop::collection::vec(change(), 1..20)) {
        let new_set = || Set::new(Duration::from_secs(1), BTreeMap::new());
        let (mut set, mut forgetful) = (new_set(), new_set());
        let mut files: BTreeMap<&str, (usize, Content)> = BTreeMap::new();
        let mut began_ms = 0;
        for Change { file, content: which, later_ms, away, approved } in changes {
            let file = FILES[file];
            match which {
                Some(which) => drop(files.insert(file, (which, content(file, which)))),
                None => drop(files.remove(file)),
            }
            // Twice: nothing changes from the first to the second.
            for approved in [approved, false] {
                began_ms += later_ms;
                let taken = |anew: bool| {
                    let listed = files.iter().filter(|(file, _)| !(away && file.starts_with("/n/")));
                    let listed = listed.map(|(file, (which, known))| {
                        let content = if anew { content(file, *which) } else { known.clone() };
                        (Path::new(file).into(), FileTaken { stamp: None, content })
                    });
                    let directories = DIRECTORIES.map(|path| (PathBuf::from(path), directory(path, away)));
                    Taken {
                        began_ms,
                        approved,
                        directories: BTreeMap::from(directories),
                        files: listed.collect(),
                        ..Taken::default()
                    }
                };
                let manifests = set.settle(&taken(false));
                forgetful.join_all();
                prop_assert_eq!(told(&manifests), told(&forgetful.settle(&taken(true))));
                let anew = Manifests { objects: set.published_anew().into(), ..manifests.clone() };
                prop_assert_eq!(told(&manifests), told(&anew));
                prop_assert_eq!(set.confirm_at(), forgetful.confirm_at());
            }
        }
    }
}
