//! What the file systems' own tools say of an image that nobody has mounted.

use std::path::Path;
use std::process::{Command, Output};

use super::path;

/// Asserts that a file system has no fault, and nothing in its journal that a mount would replay.
#[track_caller]
pub fn clean(fs_type: &str, image: &Path) {
    let (program, arguments): (_, &[&str]) = match fs_type {
        "ext4" => ("e2fsck", &["-f", "-n"]),
        "xfs" => ("xfs_repair", &["-n", "-f"]),
        "btrfs" => ("btrfs", &["check", "--readonly"]),
        other => panic!("no tool for {other}"),
    };
    let (sound, said) = ask(program, arguments, image);
    let replay = ["journal recovery", "changes in a log", "Fix?"];
    assert!(sound && !replay.iter().any(|words| said.contains(words)), "{program}: {said}");
}

/// Asserts that the file system in a copy was frozen when it was copied: nothing is left in its journal.
///
/// Of xfs nothing can be said: its freeze writes a record to the log, so that a crash meanwhile is noticed.
#[track_caller]
pub fn frozen(fs_type: &str, image: &Path) {
    match fs_type {
        "ext4" => {
            clean(fs_type, image);
            let (_, said) = ask("dumpe2fs", &["-h"], image);
            assert!(said.contains("has_journal") && !said.contains("needs_recovery"), "{said}");
        }
        "btrfs" => {
            clean(fs_type, image);
            let (_, said) = ask("btrfs", &["inspect-internal", "dump-super"], image);
            let log = said.lines().find_map(|line| line.strip_prefix("log_root\t"));
            assert_eq!(log.map(str::trim), Some("0"), "{said}");
        }
        _ => {}
    }
}

/// Asks a tool about an image; returns whether it was content, and what it said.
fn ask(program: &str, arguments: &[&str], image: &Path) -> (bool, String) {
    let output = Command::new(program).args(arguments).arg(path(image)).output();
    let Output { status, stdout, stderr } = output.expect("the tool can be run");
    (status.success(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}
