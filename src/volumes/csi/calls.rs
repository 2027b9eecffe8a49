//! How a driver is called: paced, given up, and what its answers mean (csi.md 2.2, 2.3).

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::BoxFuture;
use crate::csi::{CallError, Code, Driver};
use crate::model::{
    BlockedCause, Capability, DriverName, Effect, ExpansionState, Failure, GROWS_UNUSED, Lifecycle,
    RecordedVolume, Retry, VolumeMode,
};
use crate::proto::csi as wire;
use crate::volumes::{Answer, Call, ExpandError};

/// A call older than this no longer counts against its driver's limit (design 5).
const SLOT_AGE: Duration = Duration::from_secs(5);

/// A CSI volume and who to call for it.
pub(super) struct Target<'a> {
    pub(super) name: &'a DriverName,
    pub(super) handle: &'a str,
    pub(super) lifecycle: Lifecycle,
    pub(super) driver: &'a Arc<dyn Driver>,
    pub(super) slots: &'a Arc<Semaphore>,
}

impl<'a> Target<'a> {
    pub(super) fn of(call: &'a Call) -> Result<Self, Failure> {
        match (&call.volume, &call.driver) {
            (RecordedVolume::Csi { driver: name, handle, lifecycle }, Some(line)) => {
                Ok(Self { name, handle, lifecycle: *lifecycle, driver: &line.client, slots: &line.slots })
            }
            (
                RecordedVolume::Csi { .. }
                | RecordedVolume::EmptyDir
                | RecordedVolume::Local { .. }
                | RecordedVolume::Device { .. }
                | RecordedVolume::Nfs { .. },
                _,
            ) => Err(Failure::not_done(
                "no-driver",
                "there is no driver to call",
                "report this as a fault of volumed",
            )),
        }
    }

    /// Makes a call: waits for a slot, gives the slot back when the call is 5 s old, gives up at the driver's deadline.
    pub(super) async fn sent(&self, call: BoxFuture<'_, Result<(), CallError>>) -> Result<(), CallError> {
        let permit = self.slots.acquire().await;
        let deadline = self.driver.deadline();
        let timed = tokio::time::timeout(deadline, call);
        tokio::pin!(timed);
        let early = tokio::select! {
            biased;
            // Both are cancel-safe: `timed` is polled on below, the sleep is only a mark in time.
            answer = &mut timed => Some(answer),
            () = tokio::time::sleep(SLOT_AGE) => None,
        };
        drop(permit);
        let answer = match early {
            Some(answer) => answer,
            None => timed.await,
        };
        answer.unwrap_or_else(|_elapsed| {
            Err(CallError {
                method: "call",
                code: Code::DEADLINE_EXCEEDED,
                message: format!("no answer within {} s", deadline.as_secs()),
                sent: true,
            })
        })
    }
}

/// Puts a capability into the driver's words.
pub(super) fn capability(capability: &Capability) -> wire::VolumeCapability {
    use wire::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
    let access_type = match capability.volume_mode {
        VolumeMode::Block => AccessType::Block(BlockVolume {}),
        VolumeMode::Filesystem => AccessType::Mount(MountVolume {
            fs_type: capability.fs_type.clone(),
            mount_flags: capability.mount_flags.clone(),
            volume_mount_group: capability.mount_group.clone(),
        }),
    };
    wire::VolumeCapability {
        access_type: Some(access_type),
        access_mode: Some(AccessMode { mode: capability.access_mode.number() }),
    }
}

pub(super) fn undone(answer: Result<(), CallError>) -> Result<Answer, Failure> {
    match answer {
        Ok(()) => Ok(Answer::Done),
        Err(error) if error.code == Code::NOT_FOUND => Ok(Answer::NotFound),
        Err(error) => {
            let failure = failure(&error);
            // What came up must come down: nothing but success ends an undo (csi.md 2.3).
            let retry = match failure.retry {
                Retry::WhenChanged => Retry::Slow,
                Retry::Backoff | Retry::Soon | Retry::Slow => failure.retry,
            };
            Err(Failure { retry, ..failure })
        }
    }
}

/// Says what a failed call means (csi.md 2.2).
pub(super) fn failure(error: &CallError) -> Failure {
    let (retry, remedy) = match error.code {
        Code::INVALID_ARGUMENT | Code::OUT_OF_RANGE => (
            Retry::Slow,
            "the driver says that the request is wrong: look at the PV, its attributes and mountOptions",
        ),
        Code::UNIMPLEMENTED => {
            (Retry::Slow, "the driver does not have this call: look at its version and flags")
        }
        Code::PERMISSION_DENIED | Code::UNAUTHENTICATED => {
            (Retry::Backoff, "look at the Secret that the PV names: the driver refuses its content")
        }
        Code::NOT_FOUND => {
            (Retry::Backoff, "the driver does not know the volume: look at the PV's volumeHandle")
        }
        Code::UNAVAILABLE => (Retry::Backoff, "look whether the driver runs, and at its log"),
        _ => (Retry::Backoff, "look at the driver's log"),
    };
    Failure {
        effect: if error.sent { Effect::MayBeDone } else { Effect::NotDone },
        settled: error.code.is_final(),
        retry,
        cause: BlockedCause::new(error.code.name(), format!("{}: {}", error.method, error.message)),
        remedy: remedy.to_owned(),
    }
}

/// Says what a failed growth means (kubelet.md 8).
pub(super) fn not_grown(error: &CallError) -> ExpandError {
    let failure = failure(error);
    match error.code {
        Code::FAILED_PRECONDITION => ExpandError {
            state: ExpansionState::InUse,
            failure: Failure {
                retry: Retry::WhenChanged,
                remedy: GROWS_UNUSED.to_owned(),
                ..failure
            },
        },
        // Infeasible: the size itself is refused.
        Code::INVALID_ARGUMENT | Code::OUT_OF_RANGE | Code::NOT_FOUND => ExpandError {
            state: ExpansionState::Refused,
            failure: Failure {
                retry: Retry::Slow,
                remedy: "the driver cannot make the volume that large: look at the PV's capacity and the driver's log"
                    .to_owned(),
                ..failure
            },
        },
        code if code.is_final() => ExpandError { state: ExpansionState::Refused, failure },
        _ => ExpandError { state: ExpansionState::Open, failure },
    }
}
