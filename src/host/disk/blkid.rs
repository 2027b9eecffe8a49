//! What blkid says of a device: the first of two opinions (dependencies.md 6).
//!
//! Its exit 2 means "nothing found" as well as "could not look", so what it finds counts, and that it finds nothing never counts
//! alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::super::exec::Tools;
use super::error::DiskError;
use crate::model::FsUuid;

/// How long a probe may take.
const LIMIT: Duration = Duration::from_secs(60);

/// blkid(8): nothing was found, or the device could not be read.
const NOTHING: i32 = 2;

/// blkid(8): more than one thing was found.
const AMBIVALENT: i32 = 8;

/// What blkid says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// It found nothing.
    Nothing,
    /// It found one thing, or a partition table.
    Found(Signature),
    /// It cannot be understood: several things, an error, words that nobody knows.
    Unclear(String),
}

/// A signature that blkid knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Signature {
    /// `ext4`, `LVM2_member`, ...
    pub(super) kind: Option<String>,
    /// `gpt`, `dos`, ...
    pub(super) table: Option<String>,
    /// Where it is one of a file system here.
    pub(super) uuid: Option<FsUuid>,
}

/// Asks blkid about an open device, by the path that names the descriptor in blkid's own process.
///
/// # Errors
/// When it is missing or cannot be run.
pub(super) async fn ask(tools: &Tools, shown: &Path, device: &Path) -> Result<Said, DiskError> {
    const ARGUMENTS: [&str; 9] = ["-p", "-s", "TYPE", "-s", "PTTYPE", "-s", "UUID", "-o", "export"];
    let tool = tools.tool("blkid", "util-linux")?;
    let arguments = ARGUMENTS.iter().map(AsRef::as_ref).chain([device.as_os_str()]);
    let ended = tools.run("probe", shown, &tool, arguments, LIMIT).await?;
    Ok(understand(ended.status.code(), &ended.stdout, &ended.said))
}

/// Understands how blkid ended; `said` is what it said on both streams, for people.
pub(super) fn understand(code: Option<i32>, stdout: &[u8], said: &str) -> Said {
    match code {
        Some(NOTHING) if stdout.is_empty() => Said::Nothing,
        Some(0) => match parse(stdout) {
            Ok(found) if found.kind.is_some() || found.table.is_some() => Said::Found(found),
            Ok(_) => Said::Unclear(format!("blkid names neither type nor partition table: {said}")),
            Err(why) => Said::Unclear(format!("blkid said what cannot be understood: {why}")),
        },
        Some(AMBIVALENT) => Said::Unclear(format!("blkid finds more than one thing: {said}")),
        Some(code) => Said::Unclear(format!("blkid ended with {code}: {said}")),
        None => Said::Unclear(format!("blkid was killed: {said}")),
    }
}

/// Reads lines of `KEY=value`. Every line must be one, and no key may be there twice.
///
/// # Errors
/// Says what is wrong.
fn parse(stdout: &[u8]) -> Result<Signature, String> {
    let text = std::str::from_utf8(stdout).map_err(|_not_text| "it is not UTF-8".to_owned())?;
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let (key, value) = line.split_once('=').ok_or_else(|| format!("{line:?} is no KEY=value"))?;
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
            return Err(format!("{key:?} is no key"));
        }
        // Values are escaped for a shell; none that is compared has anything to escape.
        if found.insert(key, value).is_some() {
            return Err(format!("{key} is there twice"));
        }
    }
    let of = |key: &str| found.get(key).filter(|value| !value.is_empty());
    Ok(Signature {
        kind: of("TYPE").map(|&value| value.to_owned()),
        table: of("PTTYPE").map(|&value| value.to_owned()),
        uuid: of("UUID").and_then(|value| FsUuid::new(value)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_blkid_says_is_understood() {
        let uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
        let ext4 = format!("DEVNAME=/proc/self/fd/5\nUUID={uuid}\nTYPE=ext4\n");
        let found = |kind: Option<&str>, table: Option<&str>, uuid| {
            let text = |text: Option<&str>| text.map(str::to_owned);
            Said::Found(Signature { kind: text(kind), table: text(table), uuid })
        };
        assert_eq!(understand(Some(0), ext4.as_bytes(), ""), found(Some("ext4"), None, FsUuid::new(uuid)));
        assert_eq!(understand(Some(0), b"PTTYPE=gpt\n", ""), found(None, Some("gpt"), None));
        assert_eq!(understand(Some(0), b"UUID=A1B2-C3D4\nTYPE=vfat\n", ""), found(Some("vfat"), None, None));
        assert_eq!(understand(Some(2), b"", ""), Said::Nothing);
        for (code, stdout) in [
            // What is not clear is never nothing.
            (Some(0), &b""[..]),
            (Some(0), b"DEVNAME=x\n"),
            (Some(0), b"TYPE=\n"),
            (Some(0), b"TYPE=ext4\nTYPE=xfs\n"),
            (Some(0), b"TYPE=ext4\nnonsense\n"),
            (Some(0), b"TYPE=\xff\n"),
            (Some(2), b"TYPE=ext4\n"),
            (Some(8), b""),
            (Some(4), b""),
            (Some(1), b""),
            (None, b""),
        ] {
            let said = understand(code, stdout, "words");
            assert!(matches!(&said, Said::Unclear(_)), "{code:?} {stdout:?}: {said:?}");
        }
    }

    proptest! {
        #[test]
        fn only_an_empty_answer_with_exit_2_is_nothing(
            code in proptest::option::of(-1..260_i32), stdout in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let nothing = understand(code, &stdout, "") == Said::Nothing;
            prop_assert_eq!(nothing, code == Some(2) && stdout.is_empty());
        }

        #[test]
        fn nothing_in_a_line_makes_another_type_of_it(
            values in proptest::collection::btree_map("[A-Z_]{1,8}", "[^\\n\\r]{0,20}", 0..6)
        ) {
            let text: String = values.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
            match understand(Some(0), text.as_bytes(), "") {
                Said::Found(found) => {
                    let of = |key: &str| values.get(key).filter(|value| !value.is_empty()).cloned();
                    prop_assert_eq!(found.kind, of("TYPE"));
                    prop_assert_eq!(found.table, of("PTTYPE"));
                }
                Said::Unclear(_) => {
                    let empty = |key: &str| values.get(key).is_none_or(String::is_empty);
                    prop_assert!(empty("TYPE") && empty("PTTYPE"));
                }
                Said::Nothing => prop_assert!(false, "it ended with 0"),
            }
        }
    }
}
