//! What the fuzz targets (`tests/fuzz`) call: the content of files -> manifests, by the reader's own code, without a directory.

use std::path::Path;
use std::time::Duration;

use super::Manifests;
use super::file::understand;
use super::set::{FileTaken, Set, Taken};

/// Takes readings one after another, ten seconds apart, as the reader does, and returns what each came to. A reading is the
/// files it finds and their content.
pub fn readings(readings: &[&[(&Path, &[u8])]]) -> Vec<Manifests> {
    let mut set = Set::new(Duration::from_secs(1), std::collections::BTreeMap::new());
    let taken = |(began_ms, files): (u64, &&[(&Path, &[u8])])| Taken {
        began_ms,
        files: files.iter().map(|(path, bytes)| (Path::new(path).into(), file(path, bytes))).collect(),
        ..Taken::default()
    };
    (0..).step_by(10_000).zip(readings).map(|reading| set.settle(&taken(reading))).collect()
}

fn file(path: &Path, bytes: &[u8]) -> FileTaken {
    FileTaken { stamp: None, content: understand(path, bytes.to_vec()) }
}
