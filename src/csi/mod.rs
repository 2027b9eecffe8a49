//! CSI drivers: how they are called, found, and known to be alive.
//!
//! `Registry` finds drivers by the registration sockets in `plugins_registry` and by the configuration, one task for each
//! (`plugin`, `endpoint`). `connection` makes the one connection a driver is called through and knows when it ends; `Client`
//! makes the calls; `info` asks the driver what it is, `liveness` whether it is
//! ready and well. The result is a `DriverSet` in a `watch` channel.

mod client;
mod connection;
mod endpoint;
#[doc(hidden)]
pub mod fuzz;
mod info;
mod liveness;
mod never;
mod plugin;
mod registry;
mod text;
mod transitions;
mod turns;
mod watch;

pub use client::Client;
pub use registry::{Configured, PROBE_PERIOD, Registry, Settings, registry};
pub use text::readable;
pub use turns::{Turn, Turns};

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use crate::BoxFuture;
use crate::model::{DriverName, DriverState};
use crate::mutant::{self, Mutant};
use crate::proto::csi;

/// One driver's node calls, one method per RPC; those that need a capability of their own are answered here for drivers without. `Client` is the real one; the simulation has its own.
///
/// A method may be cancelled by dropping its future; the effect is then in doubt. Deadlines are the caller's
/// (`deadline`), who gives up; the implementation also sends it along as `grpc-timeout`.
pub trait Driver: Send + Sync + Debug {
    /// Returns how long each call may take (2 min unless configured).
    fn deadline(&self) -> Duration;

    /// `NodeStageVolume`
    fn stage(&self, request: csi::NodeStageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>>;

    /// `NodeUnstageVolume`
    fn unstage(&self, request: csi::NodeUnstageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>>;

    /// `NodePublishVolume`
    fn publish(&self, request: csi::NodePublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>>;

    /// `NodeUnpublishVolume`
    fn unpublish(&self, request: csi::NodeUnpublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>>;

    /// `NodeExpandVolume`; the size in the answer is not looked at, as by a kubelet (csi.md 6.4).
    fn expand(&self, _request: csi::NodeExpandVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        not_offered("NodeExpandVolume")
    }

    /// `NodeGetVolumeStats`
    fn volume_stats(
        &self,
        _request: csi::NodeGetVolumeStatsRequest,
    ) -> BoxFuture<'_, Result<csi::NodeGetVolumeStatsResponse, CallError>> {
        not_offered("NodeGetVolumeStats")
    }

    /// `NodeGetVolumeHealth` (1.13)
    fn volume_health(
        &self,
        _request: csi::NodeGetVolumeHealthRequest,
    ) -> BoxFuture<'_, Result<csi::NodeGetVolumeHealthResponse, CallError>> {
        not_offered("NodeGetVolumeHealth")
    }

    /// Returns the process that listens on the driver's socket, where the kernel told it.
    fn pid(&self) -> Option<u32> {
        None
    }
}

/// The answer to a call that needs a capability, of a driver without it.
fn not_offered<T: Send + 'static>(method: &'static str) -> BoxFuture<'static, Result<T, CallError>> {
    let message = "the driver does not have this call".to_owned();
    Box::pin(std::future::ready(Err(CallError { method, code: Code::UNIMPLEMENTED, message, sent: false })))
}

/// A call that did not end in OK.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{method}: {code}: {message}")]
pub struct CallError {
    /// `NodeStageVolume`, ...
    pub method: &'static str,
    /// The gRPC code (csi.md 2.2); UNKNOWN for answers that are not gRPC.
    pub code: Code,
    /// The driver's text, cut at 1 KiB, control characters replaced. May not hold secrets of ours: `csi::client` removes
    /// every secret value it sent from it.
    pub message: String,
    /// Whether the request may have reached the driver. `false` only when no connection could be made at all.
    pub sent: bool,
}

/// A gRPC status code by its canonical name and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub i32);

impl Code {
    /// 3
    pub const INVALID_ARGUMENT: Self = Self(3);
    /// 5
    pub const NOT_FOUND: Self = Self(5);
    /// 7
    pub const PERMISSION_DENIED: Self = Self(7);
    /// 9
    pub const FAILED_PRECONDITION: Self = Self(9);
    /// 11
    pub const OUT_OF_RANGE: Self = Self(11);
    /// 12
    pub const UNIMPLEMENTED: Self = Self(12);
    /// 16
    pub const UNAUTHENTICATED: Self = Self(16);
    /// 4
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    /// 14
    pub const UNAVAILABLE: Self = Self(14);

    /// Returns the canonical name, `UNAVAILABLE`.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; 17] = [
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        ];
        usize::try_from(self.0).ok().and_then(|i| NAMES.get(i)).copied().unwrap_or("UNKNOWN")
    }

    /// Returns whether the call is over for good, so that other arguments may be sent (csi.md 2.3): every code but
    /// CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED and UNAVAILABLE. An answer without a gRPC code is
    /// UNKNOWN(2) by the time it gets here and is told apart by `CallError::sent` and transport errors being UNAVAILABLE.
    pub fn is_final(self) -> bool {
        if mutant::is(Mutant::DeadlineIsFinal) && self == Self::DEADLINE_EXCEEDED {
            return true;
        }
        !matches!(self.0, 1 | 4 | 8 | 10 | 14)
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// All drivers known, as one value: replaced as a whole through a `watch` channel when any of them changes.
#[derive(Debug, Clone, Default)]
pub struct DriverSet {
    /// By name.
    pub drivers: BTreeMap<DriverName, DriverEntry>,
}

/// One driver: what is known of it, and how to call it.
#[derive(Debug, Clone)]
pub struct DriverEntry {
    /// For plan and status.
    pub state: DriverState,
    /// For execute. A new instance of the driver is a new client.
    pub client: Arc<dyn Driver>,
}
