//! Disks of iSCSI targets, by open-iscsi (kubelet.md 4.8).
//!
//! A session that is made here is made with an interface record of volumed's own, which says nothing but a name. The kernel keeps
//! that name with the session: by it the session is known again, after any restart, and nobody else's is ever ended. Who still needs a
//! session is what has a disk in it: only disks that were asked for appear in ours (`node.session.scan = manual`).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::device_users;
use super::error::{LunCause, Refusal};
use super::sysfs::{Disk, Session};
use super::tools::{Host, words};
use super::{LunAttached, database, is_same_device};
use crate::model::{IscsiLun, Portal, TargetName};

/// The interface record of our sessions.
const INTERFACE: &str = "volumed";

const PACKAGE: &str = "open-iscsi";

/// How long iscsiadm may take for what concerns this host alone.
const LOCAL: Duration = Duration::from_secs(15);

/// How long a portal may take to say which targets it has: a try and another one of 15 s each.
const DISCOVERY: Duration = Duration::from_secs(40);

/// How long a login or logout may take: two tries of 15 s, and iscsid's own waiting.
const LOGIN: Duration = Duration::from_secs(50);

/// How long the disk is waited for (kubelet.md 4.8).
const APPEARS: Duration = Duration::from_secs(30);

/// How long the disks of other portals are waited for once there is one.
const OTHERS: Duration = Duration::from_secs(5);

/// How long udev is waited for, which makes the name that lasts.
const NAMED: Duration = Duration::from_secs(5);

/// How long somebody may have the disk open who looks only: udev.
const PASSING: Duration = Duration::from_secs(2);

const TICK: Duration = Duration::from_millis(50);

/// Logs in where there is no session yet, and finds the disk.
pub(super) async fn attach(
    host: &Host,
    lun: &IscsiLun,
    passwords: &BTreeMap<String, String>,
) -> Result<LunAttached, Refusal> {
    let there = host.roots.sessions(lun.iqn.as_str())?;
    let missing = lun.portals.iter().filter(|portal| !there.iter().any(|session| session.is_with(portal)));
    let missing: Vec<Portal> = missing.cloned().collect();
    let mut failed = Vec::new();
    if !missing.is_empty() {
        ensure_interface(host).await?;
        // All at once: a portal that does not answer keeps none of the others waiting.
        let mut logins = JoinSet::new();
        for portal in missing {
            let (host, lun, passwords) = (host.clone(), lun.clone(), passwords.clone());
            logins.spawn(async move {
                let done = log_in(&host, &lun, &portal, &passwords).await;
                (portal, done)
            });
        }
        while let Some(ended) = logins.join_next().await {
            match ended {
                Ok((_, Ok(()))) => {}
                Ok((portal, Err(refusal))) => failed.push((portal, refusal)),
                Err(panic) => return Err(Refusal::failed("log in", panic)),
            }
        }
        failed.sort_by(|(one, _), (other, _)| one.cmp(other));
    }
    let sessions = sessions_of(host, lun)?;
    let up: Vec<&Session> = sessions.iter().filter(|session| session.is_up()).collect();
    if up.is_empty() {
        return Err(match failed.into_iter().next() {
            Some((portal, refusal)) => {
                Refusal::new(refusal.cause, format!("portal {portal}: {}", refusal.said))
            }
            None => lost(&sessions),
        });
    }
    let mut notes: Vec<String> = failed
        .iter()
        .map(|(portal, refusal)| format!("portal {portal} is not used: {}", refusal.said))
        .collect();
    notes.extend(sessions.iter().filter(|session| !session.is_up()).map(|session| {
        format!("the {} has lost its target (state {}), and is not used", session.name, session.state)
    }));
    for session in &up {
        let before = host.roots.disks(session, Some(u32::from(lun.lun)))?;
        for disk in &before {
            host.roots.rescan(disk)?;
        }
        if before.is_empty() {
            host.roots.scan(session, lun.lun)?;
        }
    }
    let disks = wait_for(host, lun, &up).await?;
    one_disk(host, &disks)?;
    let mut paths = Vec::new();
    for (session, disk) in disks {
        paths.push((named(host, lun, session, &disk).await, disk));
    }
    let (node, note) = host.join(&paths).await?;
    notes.extend(note);
    Ok(LunAttached { node, notes })
}

/// Finds the node of a disk that is connected.
pub(super) async fn find(host: &Host, lun: &IscsiLun, rescan: bool) -> Result<PathBuf, Refusal> {
    let sessions = sessions_of(host, lun)?;
    if sessions.is_empty() {
        let said = "there is no session with the target: somebody has ended it";
        return Err(Refusal::new(LunCause::NotConnected, said));
    }
    let up: Vec<&Session> = sessions.iter().filter(|session| session.is_up()).collect();
    if up.is_empty() {
        return Err(lost(&sessions));
    }
    let mut paths = Vec::new();
    for session in up {
        for disk in host.roots.disks(session, Some(u32::from(lun.lun)))? {
            if rescan {
                host.roots.rescan(&disk)?;
            }
            paths.push((named(host, lun, session, &disk).await, disk));
        }
    }
    let Some((node, _)) = paths.first() else { return Err(no_lun(lun)) };
    match paths.iter().find_map(|(_, disk)| host.roots.map_of(disk)) {
        Some(map) => {
            if rescan {
                host.resize(&map).await?;
            }
            Ok(host.roots.dev.join("mapper").join(map.name))
        }
        None => Ok(node.clone()),
    }
}

/// Takes the disk away from our sessions, and ends those that have no other.
pub(super) async fn detach(host: &Host, lun: &IscsiLun) -> Result<(), Refusal> {
    let ours: Vec<Session> =
        sessions_of(host, lun)?.into_iter().filter(|session| session.interface == INTERFACE).collect();
    let mut disks = Vec::new();
    for session in &ours {
        disks.extend(host.roots.disks(session, Some(u32::from(lun.lun)))?);
    }
    take_away(host, &disks).await?;
    for session in &ours {
        if host.roots.devices(session)? == 0 {
            log_out(host, lun, session).await?;
        }
    }
    Ok(())
}

/// Takes disks away, all of them paths of one: first from multipathd, then from the kernel.
pub(super) async fn take_away(host: &Host, disks: &[Disk]) -> Result<(), Refusal> {
    while let Some(map) = disks.iter().find_map(|disk| host.roots.map_of(disk)) {
        host.part(&map, disks).await?;
    }
    let mut claimed = Vec::new();
    for disk in disks {
        claimed.extend(claim(host, disk).await?);
    }
    for disk in disks {
        let node = host.roots.node(disk).display().to_string();
        // What cannot be written any more is lost with its session, and nobody is left who could be told.
        let _flushed = host.run("blockdev", "util-linux", &["--flushbufs", &node], LOCAL * 2).await;
    }
    drop(claimed);
    disks.iter().try_for_each(|disk| host.roots.delete(disk))
}

/// Makes sure that nobody has a disk. As long as what is returned is open nobody else can mount it.
async fn claim(host: &Host, disk: &Disk) -> Result<Option<OwnedFd>, Refusal> {
    let node = host.roots.node(disk);
    let in_use = |who: &str| Refusal::new(LunCause::InUse, format!("{} is in use by {who}", node.display()));
    let until = Instant::now() + PASSING;
    loop {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let number = match rustix::fs::stat(&node) {
            Ok(stat) => (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            // Gone.
            Err(_) => return Ok(None),
        };
        let who = match rustix::fs::open(&node, flags, Mode::empty()) {
            Ok(fd) => match device_users::first(number, None, Some(std::process::id())) {
                Ok(None) => return Ok(Some(fd)),
                Ok(Some(who)) => who,
                Err(e) => return Err(Refusal::failed(format!("look who has {}", node.display()), e)),
            },
            Err(Errno::BUSY) => match host.roots.built_on(disk) {
                Some(holder) => format!("/dev/{holder}, which is built on it"),
                None => "the kernel (a mount, swap, RAID)".to_owned(),
            },
            // Its session is lost: nobody can have it for long.
            Err(_) => return Ok(None),
        };
        if Instant::now() >= until {
            return Err(in_use(&who));
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Returns the sessions with the portals of a volume.
fn sessions_of(host: &Host, lun: &IscsiLun) -> Result<Vec<Session>, Refusal> {
    let mut sessions = host.roots.sessions(lun.iqn.as_str())?;
    sessions.retain(|session| lun.portals.iter().any(|portal| session.is_with(portal)));
    // In the order of the portals: the first is the one to be used alone.
    sessions.sort_by_key(|session| lun.portals.iter().position(|portal| session.is_with(portal)));
    Ok(sessions)
}

/// Waits for the disk: as soon as there is one, a moment only for those of the other portals.
async fn wait_for<'a>(
    host: &Host,
    lun: &IscsiLun,
    sessions: &[&'a Session],
) -> Result<Vec<(&'a Session, Disk)>, Refusal> {
    let mut until = Instant::now() + APPEARS;
    let mut had_one = false;
    loop {
        let mut disks = Vec::new();
        for session in sessions {
            let found = host.roots.disks(session, Some(u32::from(lun.lun)))?;
            disks.extend(found.into_iter().map(|disk| (*session, disk)));
        }
        let late = Instant::now() >= until;
        if disks.len() >= sessions.len() || late && !disks.is_empty() {
            return Ok(disks);
        }
        if late {
            return Err(no_lun(lun));
        }
        if !disks.is_empty() && !had_one {
            had_one = true;
            until = Instant::now() + OTHERS;
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Refuses disks that are not one: portals that were put together by mistake.
fn one_disk(host: &Host, disks: &[(&Session, Disk)]) -> Result<(), Refusal> {
    let mut wwids: Vec<(String, &str)> = disks
        .iter()
        .filter_map(|(session, disk)| Some((host.roots.wwid(disk)?, session.name.as_str())))
        .collect();
    wwids.sort();
    match (wwids.first(), wwids.last()) {
        (Some((one, here)), Some((other, there))) if one != other => Err(Refusal::new(
            LunCause::Other,
            format!("its portals lead to different disks: {one} ({here}) and {other} ({there})"),
        )),
        _ => Ok(()),
    }
}

/// Returns the name of a disk that lasts; where udev makes none, the kernel's.
async fn named(host: &Host, lun: &IscsiLun, session: &Session, disk: &Disk) -> PathBuf {
    let node = host.roots.node(disk);
    let links: Vec<PathBuf> = session
        .portals
        .iter()
        .map(|(address, port)| {
            let name = format!("ip-{address}:{port}-iscsi-{}-lun-{}", session.target, lun.lun);
            host.roots.dev.join("disk/by-path").join(name)
        })
        .collect();
    let until = Instant::now() + NAMED;
    loop {
        if let Some(link) = links.iter().find(|link| is_same_device(link, &node)) {
            return link.clone();
        }
        if Instant::now() >= until || !has_udev(host) {
            return node;
        }
        tokio::time::sleep(TICK).await;
    }
}

fn has_udev(host: &Host) -> bool {
    matches!(host.roots.run.join("udev/control").try_exists(), Ok(true))
}

fn lost(sessions: &[Session]) -> Refusal {
    let states: Vec<String> =
        sessions.iter().map(|session| format!("{}: {}", session.name, session.state)).collect();
    let said = match states.as_slice() {
        [] => "there is no session with the target, although iscsiadm made one".to_owned(),
        states => format!("the session has lost its target ({})", states.join(", ")),
    };
    Refusal::new(LunCause::Lost, said)
}

fn no_lun(lun: &IscsiLun) -> Refusal {
    Refusal::new(LunCause::NoLun, format!("the target shows this host no LUN {}", lun.lun))
}

// --- iscsiadm

/// Makes the interface record of our sessions, where there is none.
async fn ensure_interface(host: &Host) -> Result<(), Refusal> {
    let show = ["-m", "iface", "-I", INTERFACE, "-o", "show"];
    if host.run("iscsiadm", PACKAGE, &show, LOCAL).await?.status.success() {
        return Ok(());
    }
    let new = ["-m", "iface", "-I", INTERFACE, "-o", "new"];
    iscsiadm(host, &new, LOCAL).await.map(drop)
}

/// Asks a portal for the target, and logs in there.
async fn log_in(
    host: &Host,
    lun: &IscsiLun,
    portal: &Portal,
    passwords: &BTreeMap<String, String>,
) -> Result<(), Refusal> {
    let of_discovery = database::of_discovery(lun.discovery_chap, passwords)?;
    let of_session = database::of_session(lun.session_chap, passwords)?;
    let said = discover(host, portal, &of_discovery).await?;
    let at = group_of(&said, &lun.iqn, portal)?;
    let target = lun.iqn.as_str();
    let new = ["-m", "node", "-T", target, "-p", &at, "-I", INTERFACE, "-o", "new"];
    iscsiadm(host, &new, LOCAL).await?;
    let plain = portal.to_string();
    let written = match database::node(&host.roots, &lun.iqn, portal, INTERFACE) {
        Ok(file) => database::write(&file, &of_session),
        Err(refusal) => Err(refusal),
    };
    let done = match written {
        Ok(()) => {
            let login = ["-m", "node", "-T", target, "-p", &plain, "-I", INTERFACE, "--login"];
            iscsiadm(host, &login, LOGIN).await.map(drop)
        }
        Err(refusal) => Err(refusal),
    };
    if done.is_err() {
        forget(host, target, &plain).await;
    }
    done
}

/// Asks a portal which targets it has. What somebody else wrote about that portal is put back afterwards.
async fn discover(host: &Host, portal: &Portal, values: &database::Values) -> Result<String, Refusal> {
    let at = portal.to_string();
    let about = ["-m", "discoverydb", "-t", "sendtargets", "-p", &at, "-I", INTERFACE];
    let with = |more: &[&'static str]| -> Vec<String> {
        about.iter().copied().chain(more.iter().copied()).map(str::to_owned).collect()
    };
    let before = database::discovery(&host.roots, portal).ok();
    let before = before.and_then(|file| std::fs::read_to_string(file).ok());
    let new = with(&["-o", "new"]);
    iscsiadm(host, &new.iter().map(String::as_str).collect::<Vec<_>>(), LOCAL).await?;
    let file = database::discovery(&host.roots, portal)?;
    let asked = match database::write(&file, values) {
        Ok(()) => {
            // Nothing is written about the targets that it names: others' would be logged in to at the next boot.
            let ask = with(&["--discover", "-o", "nonpersistent"]);
            iscsiadm(host, &ask.iter().map(String::as_str).collect::<Vec<_>>(), DISCOVERY).await
        }
        Err(refusal) => Err(refusal),
    };
    match before {
        // If that cannot be written, who wrote it has to do it again; the volume does not need it.
        Some(text) => drop(database::replace(&file, &text)),
        None => {
            let delete = with(&["-o", "delete"]);
            let delete: Vec<&str> = delete.iter().map(String::as_str).collect();
            let _left = host.run("iscsiadm", PACKAGE, &delete, LOCAL).await;
        }
    }
    asked
}

/// Finds the target among those that a portal named (`10.0.0.1:3260,1 iqn....`), and returns the portal with its group. A portal
/// that the target does not list itself (behind a translated address) has none.
fn group_of(said: &str, target: &TargetName, portal: &Portal) -> Result<String, Refusal> {
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
    names.dedup();
    let named = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(Refusal::new(LunCause::NoTarget, format!("the portal has no such target; it names {named}")))
}

/// Ends a session and removes its record, which has the passwords. Where it is gone already that is fine.
async fn log_out(host: &Host, lun: &IscsiLun, session: &Session) -> Result<(), Refusal> {
    const NO_SESSION: i32 = 2;
    const NO_RECORDS: i32 = 21;
    let target = lun.iqn.as_str();
    for portal in lun.portals.iter().filter(|portal| session.is_with(portal)) {
        let at = portal.to_string();
        let arguments = ["-m", "node", "-T", target, "-p", &at, "-I", INTERFACE, "--logout"];
        let ended = host.run("iscsiadm", PACKAGE, &arguments, LOGIN).await?;
        match ended.status.code() {
            Some(0 | NO_SESSION | NO_RECORDS) => {}
            _ => return Err(Refusal::new(cause_of(ended.status.code(), &ended.said), words("iscsiadm", &ended))),
        }
        // Without its record (somebody removed it) iscsiadm ends nothing: the session itself is named then.
        let still = host.roots.sessions(target)?.into_iter().any(|one| one.name == session.name);
        if still && let Some(number) = session.name.strip_prefix("session") {
            iscsiadm(host, &["-m", "session", "-r", number, "--logout"], LOGIN).await?;
        }
        forget(host, target, &at).await;
    }
    Ok(())
}

/// Removes the record of a target at a portal.
async fn forget(host: &Host, target: &str, portal: &str) {
    let arguments = ["-m", "node", "-T", target, "-p", portal, "-I", INTERFACE, "-o", "delete"];
    // What is left is written anew by the next login, and read by nobody until then.
    let _left = host.run("iscsiadm", PACKAGE, &arguments, LOCAL).await;
}

/// Runs iscsiadm, which has to do what it is told; returns what it wrote. A session that is there already is fine.
async fn iscsiadm(host: &Host, arguments: &[&str], limit: Duration) -> Result<String, Refusal> {
    const SESSION_EXISTS: i32 = 15;
    let ended = host.run("iscsiadm", PACKAGE, arguments, limit).await?;
    match ended.status.code() {
        Some(0 | SESSION_EXISTS) => Ok(String::from_utf8_lossy(&ended.stdout).into_owned()),
        code => Err(Refusal::new(cause_of(code, &ended.said), words("iscsiadm", &ended))),
    }
}

/// Tells from iscsiadm's exit code (iscsiadm(8), "EXIT STATUS"), and where that says little from its words, what the cause is.
fn cause_of(code: Option<i32>, said: &str) -> LunCause {
    match code {
        Some(24) => LunCause::Refused,
        // The connection failed, the login did, or nobody answered.
        Some(4 | 8 | 11) => LunCause::Unreachable,
        Some(18 | 20) => LunCause::NoDaemon,
        Some(21) => LunCause::NoTarget,
        Some(_) if said.contains("resolve") || said.contains("Name or service not known") => LunCause::NoSuchHost,
        Some(_) if said.contains("authorization") || said.contains("authenticate") => LunCause::Refused,
        Some(_) if said.contains("cannot make connection") => LunCause::Unreachable,
        Some(_) | None => LunCause::Other,
    }
}
