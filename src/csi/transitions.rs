//! How what is known of a driver changes, and what of that is worth telling.

use std::sync::Arc;

use super::DriverEntry;
use crate::model::{Connection, DriverName, DriverState, EventKind, Millis};

/// Changes how a driver answers, since now if it was otherwise; what its last Probe said counts no more.
pub(super) fn change(state: &mut DriverState, connection: Connection, now: Millis) {
    if !is_as(&state.connection, &connection) {
        state.since = now;
    }
    state.connection = connection;
    state.unwell = None;
}

/// Whether they are the same but for the reason.
pub(super) fn is_as(one: &Connection, other: &Connection) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

pub(super) fn same(old: &DriverEntry, new: &DriverEntry) -> bool {
    old.state == new.state && Arc::ptr_eq(&old.client, &new.client)
}

/// Returns what is worth telling: that it is ready, that another process is, that it is not or not well, that it is gone.
pub(super) fn transitions(name: &DriverName, old: Option<&DriverEntry>, new: &DriverEntry) -> Vec<EventKind> {
    let driver = || name.clone();
    let was = old.map(|old| &old.state.connection);
    let was_ready = was == Some(&Connection::Ready);
    let was_starting = matches!(was, Some(Connection::Starting { .. }));
    let mut kinds = Vec::new();
    match &new.state.connection {
        Connection::Ready => {
            let stays = was_ready && old.is_some_and(|old| Arc::ptr_eq(&old.client, &new.client));
            if !stays {
                kinds.push(EventKind::DriverReady { driver: driver(), endpoint: new.state.endpoint.clone() });
            }
            // Once, whatever other reason it gives afterwards.
            match (old.filter(|_| stays).and_then(|old| old.state.unwell.as_ref()), &new.state.unwell) {
                (None, Some(reason)) => {
                    kinds.push(EventKind::DriverUnwell { driver: driver(), reason: reason.clone() });
                }
                (Some(_), None) => kinds.push(EventKind::DriverWell { driver: driver() }),
                (None, None) | (Some(_), Some(_)) => {}
            }
        }
        Connection::Starting { reason } if !was_starting => {
            kinds.push(EventKind::DriverUnwell { driver: driver(), reason: reason.clone() });
        }
        Connection::Disconnected { reason } if was_ready || was_starting => {
            kinds.push(EventKind::DriverGone { driver: driver(), reason: reason.clone() });
        }
        Connection::Starting { .. } | Connection::Disconnected { .. } => {}
    }
    kinds
}
