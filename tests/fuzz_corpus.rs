//! The fuzz targets as plain tests: every stored input, and some thousand mutations of each that are the same in every run.

#![expect(clippy::expect_used, clippy::panic, reason = "a test: its helpers may fail loudly")]
#![expect(unreachable_pub, reason = "the targets are a crate of their own for cargo-fuzz")]

#[path = "fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Replays one target's corpus: each file as it is, then `mutations` changed forms of it.
fn replay(target: &str, check: fn(&[u8]), mutations: u64) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&directory)
        .expect("the corpus can be listed")
        .map(|entry| entry.expect("the corpus can be listed").path())
        .collect();
    files.sort();
    assert!(files.len() >= 5, "{}: only {} files", directory.display(), files.len());
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("it can be read")).collect();
    for (file, bytes) in files.iter().zip(&corpus) {
        run(check, bytes, || file.display().to_string());
        for number in 0..mutations {
            let mut chance = Chance(number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5EED);
            let changed = mutate(bytes, &corpus, &mut chance);
            run(check, &changed, || format!("{}, mutation {number}", file.display()));
        }
    }
}

fn run(check: fn(&[u8]), bytes: &[u8], name: impl Fn() -> String) {
    if catch_unwind(AssertUnwindSafe(|| check(bytes))).is_err() {
        panic!("{}: {:?}", name(), String::from_utf8_lossy(bytes));
    }
}

/// Numbers that are the same in every run (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, 0 where there is none.
    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("a usize fits");
        usize::try_from(self.next() % end.max(1)).expect("it is below a usize")
    }
}

/// What parsers stumble over.
const TOKENS: [&[u8]; 24] = [
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"\x1b[31m",
    b"\n",
    b"\r\n",
    b"\t",
    b" ",
    b"\"",
    b"'",
    b"\\",
    b"..",
    b"/",
    b"../..",
    b"---\n",
    b"&a ",
    b"*a",
    b"{",
    b"}",
    b"[",
    b": ",
    b"//deleted",
    b"9223372036854775808",
    b"\xe2\x80\xae",
];

/// One to four changes: of a bit, of a byte, a token put in, a part left out, doubled, or taken from another file.
fn mutate(bytes: &[u8], corpus: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for _ in 0..=chance.below(4) {
        let at = chance.below(changed.len());
        let end = (at + 1 + chance.below(32)).min(changed.len());
        match chance.below(7) {
            0 => changed.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << chance.below(8)),
            1 => changed
                .get_mut(at)
                .into_iter()
                .for_each(|byte| *byte = u8::try_from(chance.below(256)).expect("a byte")),
            2 => drop(changed.splice(at..at, TOKENS[chance.below(TOKENS.len())].iter().copied())),
            3 => drop(changed.drain(at..end)),
            4 => drop(changed.splice(at..at, changed[at..end].to_vec())),
            5 => changed.truncate(at),
            _ => {
                let other = &corpus[chance.below(corpus.len())];
                let from = chance.below(other.len());
                let part = &other[from..(from + chance.below(200)).min(other.len())];
                drop(changed.splice(at..end, part.iter().copied()));
            }
        }
    }
    changed
}

#[test]
fn a_manifest_of_any_bytes_names_nothing_outside_and_loses_nothing() {
    replay("manifest", targets::manifest::check, 40);
}

#[test]
fn a_mount_table_of_any_bytes_is_understood_whole_or_not_at_all() {
    replay("mountinfo", targets::mountinfo::check, 3000);
}

#[test]
fn a_vol_data_file_of_any_bytes_is_written_again_as_it_was_read() {
    replay("vol_data", targets::vol_data::check, 3000);
}

#[test]
fn a_registration_of_any_bytes_names_a_driver_and_a_socket_or_is_refused() {
    replay("registration", targets::registration::check, 3000);
}

#[test]
fn a_driver_s_answer_of_any_bytes_stays_within_the_contract_and_tells_no_secret() {
    replay("csi_reply", targets::csi_reply::check, 3000);
}
