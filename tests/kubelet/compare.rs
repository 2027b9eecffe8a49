//! Comparing our root, mounts and requests with the recorded ones.

use std::collections::{BTreeMap, BTreeSet};

use super::node::Node;
use super::recording::{self, Call, Tree};

/// Something that only one of the two roots has, on purpose.
pub struct Difference {
    pub only: Only,
    /// In which recordings; it must be found in each of them.
    pub recordings: &'static [&'static str],
    /// `*` is any one name, a last `**` everything from there on.
    pub path: &'static str,
    pub reason: &'static str,
}

/// Which root has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only {
    Theirs,
    Ours,
}

/// What of a root belongs to volumes.
fn is_about_volumes(path: &str) -> bool {
    matches!(path, "plugins" | "pods" | "plugins_registry")
        || ["plugins/kubernetes.io", "pods/"].iter().any(|start| path.starts_with(start))
}

fn matches(pattern: &str, path: &str) -> bool {
    let mut names = path.split('/');
    for part in pattern.split('/') {
        match (part, names.next()) {
            ("**", _) => return true,
            (_, None) => return false,
            ("*", Some(_)) => {}
            (part, Some(name)) if part == name => {}
            (_, Some(_)) => return false,
        }
    }
    names.next().is_none()
}

/// Asserts that our root is the kubelet's, but for the differences on purpose.
fn assert_same_root(recording: &str, ours: &Tree, on_purpose: &[Difference]) {
    let mut theirs = recording::root(recording);
    theirs.retain(|path, _| is_about_volumes(path));
    assert!(theirs.len() > 2, "{recording} has nothing to compare with");
    let rows: Vec<&Difference> =
        on_purpose.iter().filter(|row| row.recordings.contains(&recording)).collect();
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    let mut alone = |only, path: &str, entry, wrong: &mut Vec<String>| match rows
        .iter()
        .position(|row| row.only == only && matches(row.path, path))
    {
        Some(row) => drop(used.insert(row)),
        None => wrong.push(format!("{path}: {only:?} alone: {entry:?}")),
    };
    for (path, entry) in &theirs {
        match ours.get(path) {
            Some(our) if our == entry => {}
            Some(our) => wrong.push(format!("{path}: theirs {entry:?}\n  ours {our:?}")),
            None => alone(Only::Theirs, path, entry, &mut wrong),
        }
    }
    for (path, entry) in ours.iter().filter(|(path, _)| is_about_volumes(path)) {
        if !theirs.contains_key(path) {
            alone(Only::Ours, path, entry, &mut wrong);
        }
    }
    for (row, difference) in rows.iter().enumerate() {
        if !used.contains(&row) {
            wrong.push(format!("no difference at {} any more ({})", difference.path, difference.reason));
        }
    }
    assert!(wrong.is_empty(), "{recording}:\n{}", wrong.join("\n"));
}

/// Asserts that our root, our mounts and what our loop devices hold are the kubelet's.
pub fn assert_same(recording: &str, node: &Node, on_purpose: &[Difference]) {
    assert_same_root(recording, &node.tree(), on_purpose);
    let nothing = ["/all-removed", "/pods-deleted"].iter().any(|end| recording.ends_with(end));
    let theirs = if nothing { BTreeSet::new() } else { recording::mounts(recording) };
    assert_eq!(theirs.is_empty(), nothing, "{recording} has nothing to compare with");
    assert_eq!(node.mounts(), theirs, "{recording}");
    assert_eq!(node.locked(), recording::locked(recording), "{recording}");
}

/// Asserts that the same requests were sent, in whatever order of volumes.
pub fn assert_same_calls(ours: Vec<Call>, theirs: Vec<Call>) {
    let sorted = |calls: Vec<Call>| calls.iter().map(Call::text).collect::<BTreeSet<_>>();
    let count = ours.len();
    let (ours, theirs) = (sorted(ours), sorted(theirs));
    assert_eq!(ours.len(), count, "a request was repeated though every call was answered");
    let ours_alone: Vec<_> = ours.difference(&theirs).collect();
    let theirs_alone: Vec<_> = theirs.difference(&ours).collect();
    assert!(
        ours_alone.is_empty() && theirs_alone.is_empty(),
        "ours alone: {ours_alone:#?}\ntheirs alone: {theirs_alone:#?}"
    );
}

/// Asserts for each volume: staged before it is published, and down in the opposite order.
pub fn assert_in_order(calls: &[Call]) {
    const ORDER: [&str; 5] = [
        "NodeStageVolume",
        "NodePublishVolume",
        "NodeExpandVolume",
        "NodeUnpublishVolume",
        "NodeUnstageVolume",
    ];
    let mut seen: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for call in calls {
        let place = ORDER.iter().position(|method| *method == call.method).expect("a known method");
        let volume = (call.driver.clone(), call.request["volumeId"].to_string());
        seen.entry(volume).or_default().push(place);
    }
    assert!(!seen.is_empty());
    for (volume, places) in seen {
        assert!(places.is_sorted(), "{volume:?}: {places:?}");
    }
}

/// Asserts that two trees are the same, and says what differs.
pub fn assert_same_tree(ours: &Tree, theirs: &Tree, what: &str) {
    let paths: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let differs = |path: &&&String| ours.get(**path) != theirs.get(**path);
    let wrong = paths.iter().filter(differs);
    let wrong: Vec<_> =
        wrong.map(|path| format!("{path}: {:?}, was {:?}", ours.get(*path), theirs.get(*path))).collect();
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}
