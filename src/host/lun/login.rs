//! Logging in to iSCSI targets and out again, by iscsiadm.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::database;
use super::error::{LunCause, Refusal};
use super::iscsi::INTERFACE;
use super::sysfs::Session;
use super::tools::{Host, words};
use crate::model::{IscsiLun, Portal, TargetName};

const PACKAGE: &str = "open-iscsi";

/// How long iscsiadm may take for what concerns this host alone.
const LOCAL: Duration = Duration::from_secs(15);

/// How long a portal may take to say which targets it has: a try and another one of 15 s each.
const DISCOVERY: Duration = Duration::from_secs(40);

/// What fails sooner is tried once more.
const SOON: Duration = Duration::from_secs(10);

/// After this pause.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a login or logout may take: two tries of 15 s, and iscsid's own waiting.
const LOGIN: Duration = Duration::from_secs(50);

/// Has the module for iSCSI through TCP loaded. iscsiadm would load it, but may not where volumed's unit takes that right away, as
/// its own does; systemd may.
pub(super) async fn ensure_transport(host: &Host) -> Result<(), Refusal> {
    let transport = host.roots.sys.join("class/iscsi_transport/tcp");
    let is_there = || matches!(transport.try_exists(), Ok(true));
    if is_there() {
        return Ok(());
    }
    let tries: [(&str, &'static str, &[&str]); 2] = [
        ("systemctl", "systemd", &["start", "modprobe@iscsi_tcp.service"]),
        ("modprobe", "kmod", &["iscsi_tcp"]),
    ];
    let mut said = Vec::new();
    for (name, package, arguments) in tries {
        match host.run(name, package, arguments, LOCAL * 2).await {
            Ok(ended) if ended.status.success() => said.push(format!("{name} was of no use")),
            Ok(ended) => said.push(words(name, &ended)),
            Err(refusal) => said.push(refusal.said),
        }
        if is_there() {
            return Ok(());
        }
    }
    let said =
        format!("the kernel has no iSCSI through TCP, and its module is not loaded: {}", said.join("; "));
    Err(Refusal::new(LunCause::NoKernel, said))
}

/// Makes the interface record of our sessions, where there is none.
pub(super) async fn ensure_interface(host: &Host) -> Result<(), Refusal> {
    let show = ["-m", "iface", "-I", INTERFACE, "-o", "show"];
    if host.run("iscsiadm", PACKAGE, &show, LOCAL).await?.status.success() {
        return Ok(());
    }
    let new = ["-m", "iface", "-I", INTERFACE, "-o", "new"];
    iscsiadm(host, &new, LOCAL).await.map(drop)
}

/// Asks a portal for the target, and logs in there: once more where that failed at once. A target that is asked through several portals
/// in one moment was seen to drop one of them.
pub(super) async fn log_in(
    host: &Host,
    lun: &IscsiLun,
    portal: &Portal,
    passwords: &BTreeMap<String, String>,
) -> Result<(), Refusal> {
    let began = Instant::now();
    match log_in_once(host, lun, portal, passwords).await {
        Err(refusal) if refusal.cause == LunCause::Unreachable && began.elapsed() < SOON => {
            tokio::time::sleep(AGAIN).await;
            log_in_once(host, lun, portal, passwords).await
        }
        done => done,
    }
}

async fn log_in_once(
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
pub(super) async fn log_out(host: &Host, lun: &IscsiLun, session: &Session) -> Result<(), Refusal> {
    const NO_SESSION: i32 = 2;
    const NO_RECORDS: i32 = 21;
    let target = lun.iqn.as_str();
    for portal in lun.portals.iter().filter(|portal| session.is_with(portal)) {
        let at = portal.to_string();
        let arguments = ["-m", "node", "-T", target, "-p", &at, "-I", INTERFACE, "--logout"];
        let ended = host.run("iscsiadm", PACKAGE, &arguments, LOGIN).await?;
        match ended.status.code() {
            Some(0 | NO_SESSION | NO_RECORDS) => {}
            _ => {
                return Err(Refusal::new(
                    cause_of(ended.status.code(), &ended.said),
                    words("iscsiadm", &ended),
                ));
            }
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
    const UNREACHABLE: [&str; 4] =
        ["cannot make connection", "unreachable", "No route to host", "connection login retries"];
    match code {
        Some(24) => LunCause::Refused,
        // The connection failed, the login did, or nobody answered.
        Some(4 | 8 | 11) => LunCause::Unreachable,
        Some(18 | 20) => LunCause::NoDaemon,
        Some(21) if said.contains("o records found") => LunCause::NoTarget,
        Some(_) if said.contains("resolve") || said.contains("Name or service not known") => {
            LunCause::NoSuchHost
        }
        Some(_) if said.contains("authorization") || said.contains("authenticate") => LunCause::Refused,
        Some(_) if UNREACHABLE.iter().any(|words| said.contains(words)) => LunCause::Unreachable,
        Some(_) | None => LunCause::Other,
    }
}
