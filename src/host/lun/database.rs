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
use super::iscsi::RESET_TIMEOUT;
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

/// The value by which a session, and the record of a target, is known as made here.
const MARK: &str = "node.session.err_timeo.lu_reset_timeout";

/// The last line of a record.
const END: &str = "# END RECORD";

/// The line by which a record of a portal is known that was written here.
const OURS: &str = "# of volumed, and removed by it";

/// A record that is being written.
const NEW: &str = ".volumed-new";

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

/// Returns what the record of a target has: no disk but the one that is asked for appears, nobody logs in at boot, iscsid gives
/// up soon, and the session is known as ours.
///
/// # Errors
/// `NoPassword`
pub(super) fn of_session(chap: bool, passwords: &BTreeMap<String, String>) -> Result<Values, Refusal> {
    let mut values = vec![
        ("node.startup", "manual".to_owned()),
        ("node.conn[0].startup", "manual".to_owned()),
        ("node.session.scan", "manual".to_owned()),
        ("node.session.initial_login_retry_max", "2".to_owned()),
        (MARK, RESET_TIMEOUT.to_owned()),
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

/// As `write`, into the record of a portal that is asked for its targets, which is known as written here afterwards.
///
/// # Errors
/// As `write`.
pub(super) fn write_discovery(file: &Path, values: &Values) -> Result<(), Refusal> {
    let failed = |e: io::Error| Refusal::failed(format!("write {}", file.display()), e);
    let text = std::fs::read_to_string(file).map_err(failed)?;
    replace(file, &format!("{OURS}\n{}", changed(&text, values))).map_err(failed)
}

/// Removes the record of a portal that is asked for its targets, if it was written here: a child that was killed left it.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn remove_discovery_of_ours(roots: &Roots, portal: &Portal) -> Result<(), Refusal> {
    let Ok(file) = discovery(roots, portal) else { return Ok(()) };
    let failed = |e: io::Error| Refusal::failed(format!("remove {}", file.display()), e);
    let text = std::fs::read_to_string(&file).map_err(failed)?;
    if text.lines().any(|line| line == OURS) { remove(&file).map_err(failed) } else { Ok(()) }
}

/// Whether the record of a target was written here. One that cannot be read counts as written: it may have a password.
pub(super) fn is_written_here(file: &Path) -> bool {
    let is_mark = |line: &str| {
        line.split_once('=').is_some_and(|(name, value)| name.trim() == MARK && value.trim() == RESET_TIMEOUT)
    };
    // Somebody's password may be in any encoding.
    std::fs::read(file).map_or(true, |text| String::from_utf8_lossy(&text).lines().any(is_mark))
}

/// Removes a record, and its directory if nothing else is in it.
///
/// # Errors
/// The kernel's.
pub(super) fn remove(file: &Path) -> io::Result<()> {
    std::fs::remove_file(file)?;
    // Something of somebody else's is in it.
    let _stays = file.parent().map(std::fs::remove_dir);
    Ok(())
}

/// Puts a whole record in the place of another.
///
/// # Errors
/// The kernel's.
pub(super) fn replace(file: &Path, text: &str) -> io::Result<()> {
    // open-iscsi takes every file in the directory of a target for a record: the new one is made outside.
    let base = file.ancestors().find(|above| above.ends_with("nodes") || above.ends_with("send_targets"));
    let Some(base) = base.and_then(Path::parent) else {
        return Err(io::Error::other("it is no record of open-iscsi"));
    };
    let new = base.join(NEW);
    let _alone = alone(base)?;
    let _left = std::fs::remove_file(&new);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    let written = written.and_then(|mut new| new.write_all(text.as_bytes()));
    let done = written.and_then(|()| std::fs::rename(&new, file));
    if done.is_err() {
        let _left = std::fs::remove_file(&new);
    }
    done
}

/// Removes what a child left that was killed while it wrote a record: it may have a password.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn sweep(roots: &Roots) -> Result<(), Refusal> {
    for base in &roots.databases {
        let new = base.join(NEW);
        if matches!(new.try_exists(), Ok(false)) {
            continue;
        }
        let done = alone(base).and_then(|_alone| std::fs::remove_file(&new));
        match done {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Refusal::failed(format!("remove {}", new.display()), e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Keeps the other children from writing, for as long as what is returned is open: all use one name, so that what a killed one
/// left is found.
fn alone(base: &Path) -> io::Result<std::fs::File> {
    let directory = std::fs::File::open(base)?;
    rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(directory)
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
    fn what_a_killed_child_left_is_removed_and_nothing_of_others() {
        let base = tempfile::tempdir().unwrap();
        let portal = Portal::new("10.0.0.1").unwrap();
        let roots = Roots { databases: vec![base.path().to_owned()], ..Roots::real() };
        let directory = base.path().join("send_targets/10.0.0.1,3260");
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("st_config");
        std::fs::write(&file, "# BEGIN RECORD\n# END RECORD\n").unwrap();
        remove_discovery_of_ours(&roots, &portal).unwrap();
        assert!(file.is_file());
        let secret = passwords(&[(DISCOVERY[0], "me"), (DISCOVERY[1], "hush")]);
        write_discovery(&file, &of_discovery(true, &secret).unwrap()).unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("hush"));
        remove_discovery_of_ours(&roots, &portal).unwrap();
        assert!(!directory.try_exists().unwrap(), "the password is left");
        std::fs::write(base.path().join(NEW), "hush").unwrap();
        sweep(&roots).unwrap();
        assert!(!base.path().join(NEW).try_exists().unwrap(), "the password is left");
        sweep(&roots).unwrap();
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
