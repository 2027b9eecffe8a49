//! The questions about one volume: to its driver, one call at a time, each with a deadline.

use std::sync::Arc;
use std::time::Duration;

use super::reply;
use crate::csi::{CallError, Code, Driver};
use crate::model::{DriverInfo, Ill, Space};
use crate::proto::csi;

/// How long a call may take, if the driver's other calls may not take less.
const DEADLINE: Duration = Duration::from_secs(10);

/// What a driver has, by what it said and by what it answered since.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Offers {
    /// NodeGetVolumeStats tells the usage.
    pub(super) usage: bool,
    /// NodeGetVolumeStats tells the condition (1.12).
    pub(super) condition: bool,
    /// NodeGetVolumeHealth (1.13).
    pub(super) health: bool,
}

impl Offers {
    pub(super) fn of(info: &DriverInfo) -> Self {
        let condition = info.capabilities.iter().any(|capability| capability == "node/VOLUME_CONDITION");
        let usage = info.capabilities.iter().any(|capability| capability == "node/GET_VOLUME_STATS");
        Self {
            usage: info.volume_stats && usage,
            condition: info.volume_stats && condition,
            health: info.volume_health,
        }
    }

    /// Returns whether there is anything to ask the driver.
    pub(super) fn anything(self) -> bool {
        self.usage || self.condition || self.health
    }
}

/// What a driver is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) handle: String,
    /// Where the volume is published; of a block volume the file on which it is bound (kubelet.md 5.7).
    pub(super) path: String,
    /// Empty when it is not staged.
    pub(super) staging: String,
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Bytes and inodes, if they were told.
    pub(super) usage: Option<(Space, Space)>,
    /// What is wrong, if the driver was asked and said.
    pub(super) ills: Option<Vec<Ill>>,
    /// Why an answer is missing.
    pub(super) error: Option<String>,
    /// The driver does not have what it said it has.
    pub(super) no_stats: bool,
    pub(super) no_health: bool,
}

/// Asks a driver what it offers.
pub(super) async fn driver(client: Arc<dyn Driver>, offers: Offers, question: Question) -> Answer {
    let mut answer = Answer::default();
    if offers.usage || offers.condition {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: question.handle.clone(),
            volume_path: question.path.clone(),
            // A kubelet leaves it out, and so drivers do not expect it (kubelet.md 5.7).
            staging_target_path: String::new(),
        };
        match timely("NodeGetVolumeStats", &*client, client.volume_stats(request)).await {
            Ok(stats) => {
                if offers.usage {
                    match reply::usage(&stats.usage) {
                        Ok(usage) => answer.usage = Some(usage),
                        Err(problem) => answer.error = Some(problem),
                    }
                }
                if offers.condition {
                    answer.ills = Some(reply::condition(stats.volume_condition.as_ref()));
                }
            }
            Err(error) if error.code == Code::UNIMPLEMENTED => answer.no_stats = true,
            Err(error) => answer.error = Some(error.to_string()),
        }
    }
    if offers.health {
        let request = csi::NodeGetVolumeHealthRequest {
            volume_id: question.handle.clone(),
            volume_publish_path: question.path,
            staging_target_path: question.staging,
        };
        match timely("NodeGetVolumeHealth", &*client, client.volume_health(request)).await {
            Ok(health) => match reply::health(&question.handle, health.volume_health.as_ref()) {
                // It replaces the condition, which nobody has beside it.
                Ok(ills) => answer.ills.get_or_insert_default().extend(ills),
                Err(problem) => answer.error = answer.error.or(Some(problem)),
            },
            Err(error) if error.code == Code::UNIMPLEMENTED => answer.no_health = true,
            Err(error) => answer.error = answer.error.or(Some(error.to_string())),
        }
    }
    answer
}

async fn timely<T>(
    method: &'static str,
    client: &dyn Driver,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let deadline = client.deadline().min(DEADLINE);
    tokio::time::timeout(deadline, call).await.unwrap_or_else(|_late| {
        let message = format!("no answer within {deadline:?}");
        Err(CallError { method, code: Code::DEADLINE_EXCEEDED, message, sent: true })
    })
}
