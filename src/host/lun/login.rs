//! Logging in to iSCSI targets and out again, by iscsiadm.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::database;
use super::discovery::{discover, group_of};
use super::error::{LunCause, Refusal};
use super::iscsi::INTERFACE;
use super::sysfs::Session;
use super::tools::{Host, words};
use crate::model::{IscsiLun, Portal, TargetName};

const PACKAGE: &str = "open-iscsi";

/// How long iscsiadm may take for what concerns this host alone.
pub(super) const LOCAL: Duration = Duration::from_secs(15);

/// What fails sooner is tried once more.
const SOON: Duration = Duration::from_secs(10);

/// After this pause.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a login may take: two tries of 15 s, and iscsid's own waiting.
const LOGIN: Duration = Duration::from_secs(50);

/// How long a logout may take.
const LOGOUT: Duration = Duration::from_secs(50);

/// How long iscsid may go on with a logout after that: it answers nobody any more, but ends the session.
const STILL: Duration = Duration::from_secs(60);

/// How long the kernel may take to show that a session has ended.
const SETTLED: Duration = Duration::from_secs(5);

const TICK: Duration = Duration::from_millis(50);

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
        // Made above, so it is ours, whether or not it says so by now.
        delete_record(host, &lun.iqn, portal).await;
    }
    done
}

/// Ends a session; one that is gone already is fine. Where iscsiadm was late iscsid goes on with it: it is waited for then,
/// so that nobody uses a session that is about to end.
///
/// # Errors
/// `Late` when it is there after that time too; iscsiadm's.
pub(super) async fn log_out(host: &Host, session: &Session) -> Result<(), Refusal> {
    const NO_SESSION: i32 = 2;
    const NO_RECORDS: i32 = 21;
    let Some(number) = session.name.strip_prefix("session") else { return Ok(()) };
    // iscsiadm ends no session whose interface record somebody removed.
    ensure_interface(host).await?;
    let arguments = ["-m", "session", "-r", number, "--logout"];
    let (limit, said) = match host.run("iscsiadm", PACKAGE, &arguments, LOGOUT).await {
        Ok(ended) => match ended.status.code() {
            Some(0 | NO_SESSION | NO_RECORDS) => {
                (SETTLED, Refusal::new(LunCause::Other, "iscsiadm ended it, and it is there"))
            }
            code => return Err(Refusal::new(cause_of(code, &ended.said), words("iscsiadm", &ended))),
        },
        Err(late) if late.cause == LunCause::Late => (STILL, late),
        Err(refusal) => return Err(refusal),
    };
    let until = Instant::now() + limit;
    while host.roots.sessions(&session.target)?.iter().any(|one| one.name == session.name) {
        if Instant::now() >= until {
            return Err(Refusal::new(
                said.cause,
                format!("the {} does not end: {}", session.name, said.said),
            ));
        }
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

/// Removes our record of a target at a portal, which may have a password, where there is one. One that somebody else's discovery
/// made with our interface stays, unless a login wrote into it.
pub(super) async fn forget(host: &Host, target: &TargetName, portal: &Portal) {
    let record = database::node(&host.roots, target, portal, INTERFACE);
    if record.is_ok_and(|record| database::is_written_here(&record)) {
        delete_record(host, target, portal).await;
    }
}

async fn delete_record(host: &Host, target: &TargetName, portal: &Portal) {
    let at = portal.to_string();
    let arguments = ["-m", "node", "-T", target.as_str(), "-p", &at, "-I", INTERFACE, "-o", "delete"];
    // What is left is written anew by the next login, and read by nobody until then; a detach tries again.
    let _left = host.run("iscsiadm", PACKAGE, &arguments, LOCAL).await;
}

/// Runs iscsiadm, which has to do what it is told; returns what it wrote. A session that is there already is fine.
pub(super) async fn iscsiadm(host: &Host, arguments: &[&str], limit: Duration) -> Result<String, Refusal> {
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
