//! What several readings come to together, without a directory or a clock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Manifests;
use super::file::understand;
use super::set::{Content, DirectoryTaken, FileTaken, Set, Taken, directory_problem};
use crate::model::{Birth, DirectoryIdentity};

const GRACE: u64 = 1000;

fn set() -> Set {
    Set::new(Duration::from_millis(GRACE), BTreeMap::new())
}

fn claim(name: &str) -> String {
    format!("apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{}}\n")
}

/// A reading of the directory /m.
fn reading(began_ms: u64, files: &[(&str, &str)]) -> Taken {
    let identity = DirectoryIdentity { inode: 1, birth: Birth::Time(1) };
    let files = files.iter().map(|(name, text)| {
        let path = Path::new("/m").join(name);
        let content = understand(&path, text.as_bytes().to_vec());
        (path.into(), FileTaken { stamp: None, content })
    });
    Taken {
        began_ms,
        directories: BTreeMap::from([(PathBuf::from("/m"), DirectoryTaken::Listed(identity))]),
        files: files.collect(),
        ..Taken::default()
    }
}

fn unlisted(began_ms: u64) -> Taken {
    let failed = DirectoryTaken::Failed(directory_problem(Path::new("/m"), "cannot be listed"));
    Taken { began_ms, directories: BTreeMap::from([(PathBuf::from("/m"), failed)]), ..Taken::default() }
}

/// Claims' names, a star behind the stale ones.
fn claims(manifests: &Manifests) -> Vec<String> {
    let name = |(key, sourced): (&(String, String), &super::Sourced<_>)| {
        if sourced.stale.is_some() { format!("{}*", key.1) } else { key.1.clone() }
    };
    manifests.objects.claims.iter().map(name).collect()
}

#[test]
fn an_object_is_absent_after_two_complete_readings_a_grace_apart_and_not_before() {
    let mut set = set();
    set.settle(&reading(0, &[("x.yaml", &claim("x"))]));
    assert_eq!(set.confirm_at(), None);
    for began in [10, 20, 500, 10 + GRACE - 1] {
        assert_eq!(claims(&set.settle(&reading(began, &[]))), ["x*"], "at {began}");
    }
    assert_eq!(set.confirm_at(), Some(10 + GRACE));
    assert!(claims(&set.settle(&reading(10 + GRACE, &[]))).is_empty());
    assert_eq!(set.confirm_at(), None);
}

#[test]
fn an_incomplete_reading_neither_begins_nor_ends_an_absence() {
    let mut set = set();
    set.settle(&reading(0, &[("x.yaml", &claim("x"))]));
    let unknown = [("other.yaml", "a: [")];
    for began in [10, 10 + GRACE, 10 + 2 * GRACE] {
        assert_eq!(claims(&set.settle(&reading(began, &unknown))), ["x*"]);
    }
    assert_eq!(claims(&set.settle(&reading(5000, &[]))), ["x*"], "the first complete one");
    assert_eq!(claims(&set.settle(&unlisted(5000 + GRACE))), ["x*"]);
    assert_eq!(claims(&set.settle(&reading(5000 + GRACE, &unknown))), ["x*"]);
    assert!(claims(&set.settle(&reading(5000 + GRACE, &[]))).is_empty());
}

#[test]
fn an_object_that_comes_back_is_there_and_its_absence_forgotten() {
    let mut set = set();
    let there = [("x.yaml", &*claim("x"))];
    set.settle(&reading(0, &there));
    set.settle(&reading(10, &[]));
    assert_eq!(claims(&set.settle(&reading(500, &there))), ["x"]);
    assert_eq!(claims(&set.settle(&reading(10 + GRACE, &[]))), ["x*"], "it begins anew");
}

#[test]
fn one_document_of_a_file_that_breaks_keeps_its_own_last_good_version_only() {
    let mut set = set();
    let two = format!("{}---\n{}", claim("x"), claim("z"));
    set.settle(&reading(0, &[("x.yaml", &two)]));
    let one_broken = two.replacen("spec: {}", "spec: 5", 1);
    let seen = set.settle(&reading(1, &[("x.yaml", &one_broken)]));
    assert_eq!(claims(&seen), ["x*", "z"]);
    assert!(seen.reading.is_complete());
    // It stays so, however long, and a document that lost its name may be any.
    assert_eq!(claims(&set.settle(&reading(9000, &[("x.yaml", &one_broken)]))), ["x*", "z"]);
    let nameless = two.replacen("{name: x}", "{}", 1);
    assert_eq!(claims(&set.settle(&reading(18_000, &[("x.yaml", &nameless)]))), ["x*", "z"]);
    assert_eq!(claims(&set.settle(&reading(27_000, &[("x.yaml", &nameless)]))), ["x*", "z"]);
    // A document that is taken out of a file is gone like a file.
    assert_eq!(claims(&set.settle(&reading(30_000, &[("x.yaml", &claim("z"))]))), ["x*", "z"]);
    assert_eq!(claims(&set.settle(&reading(40_000, &[("x.yaml", &claim("z"))]))), ["z"]);
}

#[test]
fn a_directory_that_cannot_be_listed_has_what_it_had_until_that_is_approved() {
    let mut set = set();
    set.settle(&reading(0, &[("x.yaml", &claim("x"))]));
    for began in [10, 5000, 10_000] {
        let seen = set.settle(&unlisted(began));
        assert_eq!(claims(&seen), ["x*"]);
        assert!(!seen.reading.is_complete());
    }
    let mut approved = unlisted(20_000);
    approved.approved = true;
    let seen = set.settle(&approved);
    assert_eq!((claims(&seen), seen.reading.is_complete()), (vec!["x*".to_owned()], true));
    assert!(claims(&set.settle(&unlisted(20_000 + GRACE))).is_empty());
}

#[test]
fn a_file_that_is_being_written_says_what_it_said() {
    let mut set = set();
    let text = claim("x");
    set.settle(&reading(0, &[("x.yaml", &text)]));
    let mut writing = reading(10, &[("x.yaml", &text)]);
    for file in writing.files.values_mut() {
        file.content = Content::Writing(directory_problem(Path::new("/m/x.yaml"), "is being written"));
    }
    let seen = set.settle(&writing);
    assert_eq!((claims(&seen), seen.reading.is_complete()), (vec!["x".to_owned()], false));
}
