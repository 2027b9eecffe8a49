//! Disks of iSCSI targets, by open-iscsi (kubelet.md 4.8).
//!
//! A session that is made here is made with an interface record of volumed's own, which says nothing but a name, and with a limit
//! for resets that nobody has by default. The kernel keeps both with the session: by them it is known again, and nobody else's is
//! ever ended. The name alone would not do: iscsiadm uses every interface record that there is for the targets that somebody
//! discovers without naming one. The limit comes from our record of the target, again at each start of iscsid; where such a
//! discovery overwrote that, our session becomes somebody else's with the next start, and is left. Who still needs a session is what
//! has a disk in it: only disks that were asked for appear in ours (`node.session.scan = manual`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::away::take_away;
use super::error::{LunCause, Refusal};
use super::login::{ensure_interface, ensure_transport, forget, log_in, log_out};
use super::sysfs::{Disk, Session};
use super::tools::Host;
use super::{LunAttached, database, discovery, is_same_device};
use crate::model::{IscsiLun, Portal};

/// The interface record of our sessions.
pub(super) const INTERFACE: &str = "volumed";

/// How long a disk of our sessions may take to be reset, s. It is 30 where nobody chose; that it is 33 says that it is ours.
pub(super) const RESET_TIMEOUT: &str = "33";

/// How long the disk is waited for (kubelet.md 4.8).
const APPEARS: Duration = Duration::from_secs(30);

/// How long the disks of other portals are waited for once there is one.
const OTHERS: Duration = Duration::from_secs(5);

/// How long the logins at other portals are waited for once there is a session.
const OTHERS_LOG_IN: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// How long udev is waited for, which makes the name that lasts.
const NAMED: Duration = Duration::from_secs(5);

const TICK: Duration = Duration::from_millis(50);

/// Logs in where there is no session yet, and finds the disk.
pub(super) async fn attach(
    host: &Host,
    lun: &IscsiLun,
    passwords: &BTreeMap<String, String>,
) -> Result<LunAttached, Refusal> {
    let failed = connect(host, lun, passwords).await?;
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
    host.roots.one_disk(disks.iter().map(|(session, disk)| (session.name.as_str(), disk)))?;
    let mut paths = Vec::new();
    for (session, disk) in disks {
        paths.push((named(host, lun, session, &disk).await, disk));
    }
    let (node, note) = host.join(&paths).await?;
    notes.extend(note);
    Ok(LunAttached { node, notes })
}

/// Makes a session for each portal without one; returns those where that failed. One of our sessions that has lost its target and
/// has no disk is nobody's: it is made anew, since the password may be another by now.
async fn connect(
    host: &Host,
    lun: &IscsiLun,
    passwords: &BTreeMap<String, String>,
) -> Result<Vec<(Portal, Refusal)>, Refusal> {
    let mut there = sessions_of(host, lun)?;
    let mut spent = Vec::new();
    for session in &there {
        if session.is_ours && !session.is_up() && host.roots.devices(session)? == 0 {
            spent.push(session.clone());
        }
    }
    there.retain(|session| !spent.contains(session));
    let missing = lun.portals.iter().filter(|portal| !there.iter().any(|session| session.is_with(portal)));
    let mut missing: Vec<Portal> = missing.cloned().collect();
    let mut failed = Vec::new();
    if missing.is_empty() {
        return Ok(failed);
    }
    ensure_transport(host).await?;
    ensure_interface(host).await?;
    // All at once: a portal that does not answer keeps none of the others waiting, nor, once there is a session, the disk.
    let mut until = there.iter().any(Session::is_up).then(|| Instant::now() + OTHERS_LOG_IN);
    let mut logins = JoinSet::new();
    for portal in missing.clone() {
        let (host, lun, passwords) = (host.clone(), lun.clone(), passwords.clone());
        let spent: Vec<Session> = spent.iter().filter(|one| one.is_with(&portal)).cloned().collect();
        logins.spawn(async move {
            let done = async {
                for session in &spent {
                    log_out(&host, session).await?;
                }
                log_in(&host, &lun, &portal, &passwords).await
            };
            let done = done.await;
            (portal, done)
        });
    }
    while !logins.is_empty() {
        let next = logins.join_next();
        let ended = match until {
            // Whoever ended is not lost when the time is up: the next call returns it.
            Some(until) => tokio::time::timeout_at(until, next).await,
            None => Ok(next.await),
        };
        match ended {
            Ok(Some(Ok((portal, done)))) => {
                missing.retain(|one| *one != portal);
                match done {
                    Ok(()) => until = until.or_else(|| Some(Instant::now() + OTHERS_LOG_IN)),
                    Err(refusal) => failed.push((portal, refusal)),
                }
            }
            Ok(Some(Err(panic))) => return Err(Refusal::failed("log in", panic)),
            Ok(None) | Err(_) => break,
        }
    }
    logins.shutdown().await;
    for portal in missing {
        // A login that iscsid still succeeds with is found by the next attach, and ended by the detach.
        forget(host, &lun.iqn, &portal).await;
        let said = format!("no session within {} s, while another portal has one", OTHERS_LOG_IN.as_secs());
        failed.push((portal, Refusal::new(LunCause::Late, said)));
    }
    failed.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(failed)
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
    if paths.is_empty() {
        return Err(no_lun(lun));
    }
    host.roots.one_disk(paths.iter().map(|(_, disk)| (disk.name.as_str(), disk)))?;
    host.chosen(&paths, rescan).await
}

/// Takes the disk away from our sessions, and ends those that have no other.
pub(super) async fn detach(host: &Host, lun: &IscsiLun) -> Result<(), Refusal> {
    let ours: Vec<Session> = sessions_of(host, lun)?.into_iter().filter(|session| session.is_ours).collect();
    let mut disks = Vec::new();
    for session in &ours {
        disks.extend(host.roots.disks(session, Some(u32::from(lun.lun)))?);
    }
    take_away(host, &disks).await?;
    let mut logouts = JoinSet::new();
    for session in &ours {
        if host.roots.devices(session)? == 0 {
            let (host, session) = (host.clone(), session.clone());
            logouts.spawn(async move { log_out(&host, &session).await });
        }
    }
    let mut done = Ok(());
    while let Some(ended) = logouts.join_next().await {
        done = done.and(ended.unwrap_or_else(|panic| Err(Refusal::failed("log out", panic))));
    }
    forget_all(host, lun).await?;
    done
}

/// Removes what has passwords and belongs to no session of ours: also what a child left that was killed.
async fn forget_all(host: &Host, lun: &IscsiLun) -> Result<(), Refusal> {
    let left = sessions_of(host, lun)?;
    let is_needed = |portal: &Portal| left.iter().any(|session| session.is_ours && session.is_with(portal));
    for portal in &lun.portals {
        if !is_needed(portal) {
            forget(host, &lun.iqn, portal).await;
        }
        discovery::sweep(&host.roots, portal)?;
    }
    database::sweep(&host.roots)
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
