//! Asking a portal which targets it has.
//!
//! open-iscsi keeps one record for each portal that is asked, whatever the target: who asks has the turn of that portal, also among
//! the child processes of several volumes. What somebody else wrote about the portal is put back afterwards.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tokio::time::Instant;

use super::database;
use super::error::{LunCause, Refusal};
use super::iscsi::INTERFACE;
use super::login::{LOCAL, iscsiadm};
use super::sysfs::Roots;
use super::tools::Host;
use crate::model::{Portal, TargetName};

/// How long a portal may take to say which targets it has: a try and another one of 15 s each.
const DISCOVERY: Duration = Duration::from_secs(40);

/// How long somebody else who asks the same portal is waited for.
const TURN: Duration = Duration::from_secs(45);

const TICK: Duration = Duration::from_millis(50);

/// How much a portal may answer, in bytes.
const MOST: usize = 1 << 20;

/// How many of a portal's targets are told of.
const TOLD: usize = 10;

/// How long a target's name is at most, in bytes.
const NAME: usize = 223;

/// Asks a portal which targets it has; returns iscsiadm's lines.
///
/// # Errors
/// `Late` where somebody else keeps asking it, or it does not answer; iscsiadm's; `Other` where the answer is too long.
pub(super) async fn discover(
    host: &Host,
    portal: &Portal,
    values: &database::Values,
) -> Result<String, Refusal> {
    let until = Instant::now() + TURN;
    let _turn = loop {
        match turn(&host.roots, portal)? {
            Some(turn) => break turn,
            None if Instant::now() >= until => {
                let said = format!("another volume has been asking it for {} s", TURN.as_secs());
                return Err(Refusal::new(LunCause::Late, said));
            }
            None => tokio::time::sleep(TICK).await,
        }
    };
    database::remove_discovery_of_ours(&host.roots, portal)?;
    let before = database::discovery(&host.roots, portal).ok();
    let before = before.and_then(|file| std::fs::read_to_string(file).ok());
    // Also where this is given up halfway.
    let _put_back = PutBack { roots: &host.roots, portal, before };
    let at = portal.to_string();
    let about = ["-m", "discoverydb", "-t", "sendtargets", "-p", &at, "-I", INTERFACE];
    iscsiadm(host, &[&about[..], &["-o", "new"]].concat(), LOCAL).await?;
    database::write_discovery(&database::discovery(&host.roots, portal)?, values)?;
    // Nothing is written about the targets that it names: others' would be logged in to at the next boot.
    let ask = [&about[..], &["--discover", "-o", "nonpersistent"]].concat();
    let said = iscsiadm(host, &ask, DISCOVERY).await?;
    if said.len() > MOST {
        let said = format!("it answers with more than {MOST} bytes of targets, and is not believed");
        return Err(Refusal::new(LunCause::Other, said));
    }
    Ok(said)
}

/// Removes what a killed child left about a portal, which may have a password. Who asks the portal at this moment does it too.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn sweep(roots: &Roots, portal: &Portal) -> Result<(), Refusal> {
    if database::discovery(roots, portal).is_err() {
        return Ok(());
    }
    match turn(roots, portal)? {
        Some(_turn) => database::remove_discovery_of_ours(roots, portal),
        None => Ok(()),
    }
}

/// Puts a portal's record back as it was.
struct PutBack<'a> {
    roots: &'a Roots,
    portal: &'a Portal,
    before: Option<String>,
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        let Ok(file) = database::discovery(self.roots, self.portal) else { return };
        // If that cannot be written, who wrote it has to do it again; the volume does not need it.
        let _done = match &self.before {
            Some(text) => database::replace(&file, text),
            None => database::remove(&file),
        };
    }
}

/// Takes the turn of a portal, if nobody has it. The kernel ends it with the process, whatever becomes of that.
fn turn(roots: &Roots, portal: &Portal) -> Result<Option<OwnedFd>, Refusal> {
    let directory = roots.run.join("volumed");
    // A portal's host has no `/` in it.
    let file: PathBuf = directory.join(format!("iscsi-{},{}.lock", portal.host(), portal.port()));
    let failed = |e: std::io::Error| Refusal::failed(format!("lock {}", file.display()), e);
    std::fs::create_dir_all(&directory).map_err(failed)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&file, flags, Mode::from_raw_mode(0o600)).map_err(|e| failed(e.into()))?;
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(fd)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(failed(e.into())),
    }
}

/// Finds the target among those that a portal named (`10.0.0.1:3260,1 iqn....`), and returns the portal with its group. A portal
/// that the target does not list itself (behind a translated address) has none.
///
/// # Errors
/// `NoTarget`, with some of those that it named.
pub(super) fn group_of(said: &str, target: &TargetName, portal: &Portal) -> Result<String, Refusal> {
    let mut names = Vec::new();
    let mut is_there = false;
    for line in said.lines() {
        let Some((address, name)) = line.trim().split_once(' ') else { continue };
        if !name.trim().eq_ignore_ascii_case(target.as_str()) {
            names.push(name.trim());
            continue;
        }
        is_there = true;
        let Some((address, group)) = address.rsplit_once(',') else { continue };
        if Portal::new(address).as_ref() == Ok(portal) && group.parse::<u16>().is_ok() {
            return Ok(format!("{portal},{group}"));
        }
    }
    if is_there {
        return Ok(portal.to_string());
    }
    Err(Refusal::new(LunCause::NoTarget, format!("the portal has no such target; it names {}", told(names))))
}

/// Says which names these are. A portal says what it likes: not more than fits a message, and nothing that a terminal obeys.
fn told(mut names: Vec<&str>) -> String {
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return "none".to_owned();
    }
    let shown: Vec<String> = names
        .iter()
        .take(TOLD)
        .map(|name| {
            let end = (0..=NAME).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
            name.get(..end.min(name.len())).unwrap_or_default().replace(char::is_control, "?")
        })
        .collect();
    let shown = shown.join(", ");
    match names.len().saturating_sub(TOLD) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::*;

    #[test]
    fn what_a_portal_names_is_told_in_short_and_without_control_characters() {
        let portal = Portal::new("10.0.0.1").unwrap();
        let target = TargetName::new("iqn.2026-11.io.volumed:one").unwrap();
        let refused = |said: &str| group_of(said, &target, &portal).unwrap_err().said;
        assert!(refused("").ends_with("it names none"));
        let many: String = (10..32).map(|i| format!("10.0.0.1:3260,1 iqn.x:{i}\n")).collect();
        let said = refused(&many);
        assert!(said.contains("iqn.x:10, iqn.x:11") && said.ends_with("iqn.x:19 and 12 more"), "{said}");
        let said = refused(&format!("10.0.0.1:3260,1 \u{1b}[2J{}\n", "é".repeat(300)));
        assert!(said.contains("names ?[2J") && !said.contains(char::is_control), "{said}");
        let name = said.rsplit(' ').next().unwrap();
        assert_eq!(name.len(), 222, "{said}");
    }

    #[test]
    fn a_portal_is_asked_by_one_at_a_time_and_others_beside() {
        let tree = Tree::new();
        let roots = tree.roots();
        let (one, other) = (Portal::new("10.0.0.1").unwrap(), Portal::new("[fd00::1]:7").unwrap());
        let held = turn(&roots, &one).unwrap();
        assert!(held.is_some());
        assert!(turn(&roots, &one).unwrap().is_none());
        assert!(turn(&roots, &other).unwrap().is_some());
        drop(held);
        assert!(turn(&roots, &one).unwrap().is_some());
    }
}
