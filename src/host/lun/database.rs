//! The records that iscsiadm and iscsid read: a text file for each portal of a target, and for each portal that is asked for its
//! targets.
//!
//! iscsiadm makes them (`-o new`) and could change them too, but takes a value only as an argument, which every process of the
//! host may read. So a password is written into the file that iscsiadm made, which only root can read, as open-iscsi itself keeps it
//! there. iscsid reads it again when it is started anew while the session is there; with the session the file goes.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::error::{LunCause, Refusal};
use super::sysfs::{Roots, names};
use crate::model::{Portal, TargetName};

/// What a Secret of the type `kubernetes.io/iscsi-chap` has of how targets are asked for.
const DISCOVERY: [&str; 4] = [
    "discovery.sendtargets.auth.username",
    "discovery.sendtargets.auth.password",
    "discovery.sendtargets.auth.username_in",
    "discovery.sendtargets.auth.password_in",
];

/// What it has for a target.
const SESSION: [&str; 4] = [
    "node.session.auth.username",
    "node.session.auth.password",
    "node.session.auth.username_in",
    "node.session.auth.password_in",
];

/// The last line of a record.
const END: &str = "# END RECORD";

/// What is written into a record, in order.
pub(super) type Values = Vec<(&'static str, String)>;

/// Whether a value of a Secret is one of those that are read here.
pub(super) fn is_password(name: &str) -> bool {
    DISCOVERY.contains(&name) || SESSION.contains(&name)
}

/// Returns what the record for a portal that is asked for its targets has: it is given up soon, because it is tried again anyway.
///
/// # Errors
/// `NoPassword`
pub(super) fn of_discovery(chap: bool, passwords: &BTreeMap<String, String>) -> Result<Values, Refusal> {
    let mut values = vec![("discovery.sendtargets.reopen_max", "1".to_owned())];
    if chap {
        values.push(("discovery.sendtargets.auth.authmethod", "CHAP".to_owned()));
        add(&mut values, &DISCOVERY, passwords)?;
    }
    Ok(values)
}

/// Returns what the record of a target has: no disk but the one that is asked for appears, nobody logs in at boot, and iscsid gives
/// up soon.
///
/// # Errors
/// `NoPassword`
pub(super) fn of_session(chap: bool, passwords: &BTreeMap<String, String>) -> Result<Values, Refusal> {
    let mut values = vec![
        ("node.startup", "manual".to_owned()),
        ("node.conn[0].startup", "manual".to_owned()),
        ("node.session.scan", "manual".to_owned()),
        ("node.session.initial_login_retry_max", "2".to_owned()),
    ];
    if chap {
        values.push(("node.session.auth.authmethod", "CHAP".to_owned()));
        add(&mut values, &SESSION, passwords)?;
    }
    Ok(values)
}

fn add(
    values: &mut Values,
    names: &[&'static str; 4],
    passwords: &BTreeMap<String, String>,
) -> Result<(), Refusal> {
    for (index, name) in names.iter().enumerate() {
        match passwords.get(*name).filter(|value| !value.is_empty()) {
            Some(value) if value.contains(char::is_control) => {
                let said =
                    format!("the Secret's value {name:?} has a control character, such as the end of a line");
                return Err(Refusal::new(LunCause::NoPassword, said));
            }
            Some(value) => values.push((name, value.clone())),
            // The target is asked for its own password only where there is one.
            None if index >= 2 => {}
            None => {
                let said = format!("the Secret has no value {name:?}, which CHAP needs");
                return Err(Refusal::new(LunCause::NoPassword, said));
            }
        }
    }
    Ok(())
}

/// Returns the file of a portal that is asked for its targets.
///
/// # Errors
/// When iscsiadm has made none that is found.
pub(super) fn discovery(roots: &Roots, portal: &Portal) -> Result<PathBuf, Refusal> {
    let name = format!("{},{}", portal.host(), portal.port());
    let files = roots.databases.iter().map(|base| base.join("send_targets").join(&name).join("st_config"));
    found(files, portal)
}

/// Returns the file of a target at a portal, made with this interface.
///
/// # Errors
/// As `discovery`.
pub(super) fn node(
    roots: &Roots,
    target: &TargetName,
    portal: &Portal,
    interface: &str,
) -> Result<PathBuf, Refusal> {
    let prefix = format!("{},{}", portal.host(), portal.port());
    let mut files = Vec::new();
    for base in &roots.databases {
        let of_target = base.join("nodes").join(target.as_str());
        for name in names(&of_target)? {
            let is_it =
                name.strip_prefix(&prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(','));
            if is_it {
                files.push(of_target.join(name).join(interface));
            }
        }
    }
    found(files.into_iter(), portal)
}

fn found(mut files: impl Iterator<Item = PathBuf>, portal: &Portal) -> Result<PathBuf, Refusal> {
    files.find(|file| file.is_file()).ok_or_else(|| {
        let said = format!("iscsiadm made no record of portal {portal} below /etc/iscsi or /var/lib/iscsi");
        Refusal::new(LunCause::Other, said)
    })
}

/// Writes values into a record, which only root can read afterwards, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(file: &Path, values: &Values) -> Result<(), Refusal> {
    let failed = |e: io::Error| Refusal::failed(format!("write {}", file.display()), e);
    let text = std::fs::read_to_string(file).map_err(failed)?;
    replace(file, &changed(&text, values)).map_err(failed)
}

/// Puts a whole record in the place of another.
///
/// # Errors
/// The kernel's.
pub(super) fn replace(file: &Path, text: &str) -> io::Result<()> {
    // open-iscsi takes every file in the directory of a target for a record: the new one is made outside.
    let Some(base) =
        file.ancestors().find(|above| above.ends_with("nodes") || above.ends_with("send_targets"))
    else {
        return Err(io::Error::other("it is no record of open-iscsi"));
    };
    let new = base.with_file_name(format!(".volumed-{}", std::process::id()));
    let _left = std::fs::remove_file(&new);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    let written = written.and_then(|mut new| new.write_all(text.as_bytes()));
    let done = written.and_then(|()| std::fs::rename(&new, file));
    if done.is_err() {
        let _left = std::fs::remove_file(&new);
    }
    done
}

/// Returns a record with these values in it.
fn changed(text: &str, values: &Values) -> String {
    let is_set = |line: &str| {
        let name = line.split('=').next().unwrap_or_default().trim();
        values.iter().any(|(set, _)| *set == name)
    };
    let mut changed: Vec<String> =
        text.lines().filter(|line| line.trim() != END && !is_set(line)).map(str::to_owned).collect();
    changed.extend(values.iter().map(|(name, value)| format!("{name} = {value}")));
    changed.push(END.to_owned());
    changed.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn passwords(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_value_is_there_once_and_the_rest_stays() {
        let text = "# BEGIN RECORD 2.1.8\nnode.startup = automatic\nnode.session.scan = auto\nnode.tpgt = 1\n# END RECORD\n";
        let secret =
            passwords(&[("node.session.auth.username", "me"), ("node.session.auth.password", "a = b")]);
        let once = changed(text, &of_session(true, &secret).unwrap());
        assert_eq!(once.matches("node.session.scan").count(), 1, "{once}");
        for line in [
            "# BEGIN RECORD 2.1.8",
            "node.tpgt = 1",
            "node.session.scan = manual",
            "node.startup = manual",
            "node.session.auth.authmethod = CHAP",
            "node.session.auth.password = a = b",
        ] {
            assert!(once.lines().any(|one| one == line), "{line}: {once}");
        }
        assert!(once.ends_with("\n# END RECORD\n"), "{once}");
        assert_eq!(changed(&once, &of_session(true, &secret).unwrap()), once);
    }

    #[test]
    fn chap_needs_a_name_and_a_password_of_one_line() {
        let cause = |refusal: Result<Values, Refusal>| refusal.map(drop).map_err(|refusal| refusal.cause);
        assert_eq!(cause(of_session(true, &passwords(&[]))), Err(LunCause::NoPassword));
        let of_discovery_alone =
            passwords(&[(DISCOVERY[0], "me"), (DISCOVERY[1], "secret"), (SESSION[0], "me")]);
        assert_eq!(cause(of_discovery(true, &of_discovery_alone)), Ok(()));
        let refused = of_session(true, &of_discovery_alone).unwrap_err();
        assert!(refused.said.contains(SESSION[1]), "{refused:?}");
        let injected = passwords(&[(SESSION[0], "me"), (SESSION[1], "x\nnode.startup = automatic")]);
        let refused = of_session(true, &injected).unwrap_err();
        assert!(!refused.said.contains("automatic"), "{refused:?}");
        // Who has no password for it asks without one.
        assert!(of_session(false, &injected).unwrap().iter().all(|(name, _)| !name.contains("auth")));
    }

    #[test]
    fn a_record_is_found_and_only_root_reads_it() {
        let base = tempfile::tempdir().unwrap();
        let (target, portal) =
            (TargetName::new("iqn.2026-11.io.volumed:one").unwrap(), Portal::new("[fd00::1]").unwrap());
        let roots =
            Roots { databases: vec![base.path().join("no"), base.path().to_owned()], ..Roots::real() };
        let directory = base.path().join("nodes/iqn.2026-11.io.volumed:one/fd00::1,3260,7");
        std::fs::create_dir_all(&directory).unwrap();
        assert!(node(&roots, &target, &portal, "volumed").is_err());
        std::fs::write(directory.join("volumed"), "node.startup = automatic\n# END RECORD\n").unwrap();
        let file = node(&roots, &target, &portal, "volumed").unwrap();
        write(&file, &of_session(false, &passwords(&[])).unwrap()).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(std::fs::read_to_string(&file).unwrap().contains("node.startup = manual"));
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 1, "something is left");
        // Another portal's, whose name begins the same.
        let other = Portal::new("[fd00::1]:326").unwrap();
        assert!(node(&roots, &target, &other, "volumed").is_err());
    }
}
