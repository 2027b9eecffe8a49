//! What systemd is told: READY, STATUS, the watchdog, RELOADING, STOPPING. Everywhere else these do nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::control::views;
use crate::manifest;
use crate::model::Status;
use crate::reconcile::Command;

/// At most one STATUS in this time.
const STATUS_PERIOD: Duration = Duration::from_secs(1);

/// Tells READY once every directory was tried and the state is reconstructed, and STATUS when it changed.
pub(super) async fn tell(mut status: watch::Receiver<Status>, stop: CancellationToken) {
    let mut ready = false;
    let mut told = String::new();
    loop {
        let line = {
            let now = status.borrow_and_update();
            views::is_ready(&now).then(|| summary(&now))
        };
        if let Some(line) = line {
            if !ready {
                ready = true;
                info!("ready: {line}");
                notify(&[NotifyState::Ready, NotifyState::Status(&line)]);
            } else if line != told {
                notify(&[NotifyState::Status(&line)]);
            }
            told = line;
        }
        // Both arms may be dropped: a change that is not seen here is seen by the next borrow.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = async {
                if ready {
                    tokio::time::sleep(STATUS_PERIOD).await;
                }
                status.changed().await
            } => if changed.is_err() { return },
        }
    }
}

/// Returns the STATUS text: `42 published, 1 waiting (driver nfs.csi.k8s.io), 0 failed`.
pub(super) fn summary(status: &Status) -> String {
    let (mut published, mut waiting, mut failed) = (0_usize, 0_usize, 0_usize);
    let mut first_reason = None;
    for row in views::rows(status) {
        match (row.state(), row.is_published()) {
            ("good", true) => published += 1,
            ("failed", _) => failed += 1,
            ("good", false) => {}
            _ => waiting += 1,
        }
        if first_reason.is_none() && row.state() != "good" {
            first_reason = row.hold().map(|hold| hold.code.as_str().to_owned());
            let step =
                || row.blocked().next().map(|blocked| format!("{} {}", blocked.step, blocked.cause.code));
            first_reason = first_reason.or_else(step);
        }
    }
    let why = first_reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let (on_waiting, on_failed) = if waiting > 0 { (why.as_str(), "") } else { ("", why.as_str()) };
    let on_failed = if failed > 0 { on_failed } else { "" };
    format!("{published} published, {waiting} waiting{on_waiting}, {failed} failed{on_failed}")
}

/// Feeds the watchdog while the reconcile and manifest tasks move. Begins when systemd does: at READY.
pub(super) async fn watchdog(
    mut status: watch::Receiver<Status>,
    commands: mpsc::Sender<Command>,
    manifests: manifest::Handle,
    stop: CancellationToken,
) {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else { return };
    if status.wait_for(views::is_ready).await.is_err() {
        return;
    }
    // Three chances within the limit, so that one slow answer does not cost the daemon its life.
    let period = limit / 3;
    while !stop.is_cancelled() {
        match tokio::time::timeout(period, both_move(&commands, &manifests)).await {
            Ok(true) => notify(&[NotifyState::Watchdog]),
            Ok(false) => return,
            Err(_late) => {
                warn!(
                    "the reconcile or the manifest task did not answer within {period:?}: the watchdog is not fed"
                );
                continue;
            }
        }
        // Dropping the sleep loses nothing.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(period) => {}
        }
    }
}

/// Asks both tasks; false when one is gone.
async fn both_move(commands: &mpsc::Sender<Command>, manifests: &manifest::Handle) -> bool {
    let loop_moves = async {
        let (reply, answer) = oneshot::channel();
        commands.send(Command::Ping { reply }).await.is_ok() && answer.await.is_ok()
    };
    let (reconcile, manifest) = tokio::join!(loop_moves, manifests.ping());
    reconcile && manifest
}

/// RELOADING=1; READY=1 has to follow.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => warn!("cannot read the clock for RELOADING=1: {error}"),
    }
}

/// READY=1 at the end of a reload.
pub(super) fn reloaded() {
    notify(&[NotifyState::Ready]);
}

/// STOPPING=1.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping; mounts stay")]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("cannot tell systemd {state:?}: {error}");
    }
}
