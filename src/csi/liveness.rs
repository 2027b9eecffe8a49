//! Probe: whether a driver process that is connected is also ready and well (csi.md 2.5, 8.3). A kubelet does not ask; volumed
//! asks to know when calls are of use, and to show what is wrong.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::endpoint::{Endpoint, Report, Reporter, Session};
use super::plugin::jitter;
use super::{CallError, Client, Code, Driver as _};
use crate::model::Ambient;
use crate::proto::csi::ProbeResponse;

/// How long a Probe may take, if the driver's other calls may not take less.
const DEADLINE: Duration = Duration::from_secs(5);
/// A driver that has not answered its first Probe by then is shown as starting.
const SILENCE: Duration = Duration::from_millis(250);
const NOT_READY: &str = "it says that it is not ready yet";
/// The pauses before a driver that is starting is asked again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often Probe is called, and the chance by which that varies.
#[derive(Debug, Clone)]
pub(super) struct Probing {
    /// While the driver is ready; a fifth more or less.
    pub(super) period: Duration,
    pub(super) ambient: Arc<Ambient>,
}

/// What a driver's Probe says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Life {
    /// It is ready, or has no Probe.
    Well,
    /// It can be called, and something is wrong.
    Unwell(String),
    /// It is not ready yet: calls wait.
    Starting(String),
}

/// What is to be made of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Ask again later.
    Life(Life),
    /// It has no Probe: this process is never asked again.
    NoProbe,
    /// The connection is over, which is not told here.
    Ended,
}

/// Waits until a driver says that it is ready that nobody registered: before that it is asked for nothing (csi.md 8.3). A Probe
/// that fails keeps nobody waiting; `watch` shows it. Ends with an error when the connection does.
pub(super) async fn until_ready(
    client: &Client,
    closed: &CancellationToken,
    report: &Reporter,
) -> Result<(), CallError> {
    let mut pause = FIRST_PAUSE;
    loop {
        match client.probe(client.deadline().min(DEADLINE)).await {
            Ok(ProbeResponse { ready: Some(false) }) => {
                report.tell(Report::Starting { reason: NOT_READY.to_owned() }).await;
            }
            Err(error) if !error.sent => return Err(error),
            Ok(_) | Err(_) => return Ok(()),
        }
        tokio::select! {
            biased;
            // The next Probe fails at once then.
            () = closed.cancelled() => {}
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
        }
    }
}

/// Reports what Probe says of a session for as long as it is polled: to be dropped when the connection is over.
pub(super) async fn watch(endpoint: &Endpoint, session: &Session, report: &Reporter) -> Infallible {
    let Probing { period, ambient } = &endpoint.probing;
    let mut told = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let probe = session.client.probe(endpoint.deadline.min(DEADLINE));
        tokio::pin!(probe);
        let early = if told.is_none() { tokio::time::timeout(SILENCE, &mut probe).await.ok() } else { None };
        let answer = match early {
            Some(answer) => answer,
            None => {
                if told.is_none() {
                    let life = Life::Starting("it has not answered its first Probe yet".to_owned());
                    tell(endpoint, session, report, &mut told, life).await;
                }
                probe.await
            }
        };
        match next(answer) {
            Next::Ended => return std::future::pending().await,
            // An answer that the end of the connection cut off says nothing of the driver's health.
            Next::Life(Life::Unwell(_)) if session.closed.is_cancelled() => {
                return std::future::pending().await;
            }
            Next::NoProbe => {
                tell(endpoint, session, report, &mut told, Life::Well).await;
                return std::future::pending().await;
            }
            Next::Life(life) => {
                let starting = matches!(life, Life::Starting(_));
                tell(endpoint, session, report, &mut told, life).await;
                if starting {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                } else {
                    pause = FIRST_PAUSE;
                    tokio::time::sleep(period.mul_f64(0.8 + jitter(ambient) * 0.4)).await;
                }
            }
        }
    }
}

async fn tell(
    endpoint: &Endpoint,
    session: &Session,
    report: &Reporter,
    told: &mut Option<Life>,
    life: Life,
) {
    if told.as_ref() == Some(&life) {
        return;
    }
    let answers = Report::Answers {
        endpoint: endpoint.clone(),
        client: Arc::clone(&session.client),
        info: session.info.clone(),
        life: life.clone(),
    };
    report.tell(answers).await;
    *told = Some(life);
}

fn next(answer: Result<ProbeResponse, CallError>) -> Next {
    let error = match answer {
        Ok(ProbeResponse { ready: Some(false) }) => return Next::Life(Life::Starting(NOT_READY.to_owned())),
        // Not to say it is to be ready (csi.md 2.5).
        Ok(ProbeResponse { ready: Some(true) | None }) => return Next::Life(Life::Well),
        Err(error) => error,
    };
    match error.code {
        Code::UNIMPLEMENTED => Next::NoProbe,
        _ if !error.sent => Next::Ended,
        Code::FAILED_PRECONDITION => {
            Next::Life(Life::Unwell(format!("it lacks something that it depends on: {}", error.message)))
        }
        _ => Next::Life(Life::Unwell(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(code: Code, sent: bool) -> Result<ProbeResponse, CallError> {
        Err(CallError { method: "Probe", code, message: "no backend".to_owned(), sent })
    }

    #[test]
    fn only_an_explicit_no_means_not_ready() {
        assert_eq!(next(Ok(ProbeResponse { ready: None })), Next::Life(Life::Well));
        assert_eq!(next(Ok(ProbeResponse { ready: Some(true) })), Next::Life(Life::Well));
        assert_eq!(
            next(Ok(ProbeResponse { ready: Some(false) })),
            Next::Life(Life::Starting(NOT_READY.to_owned()))
        );
    }

    #[test]
    fn every_failure_but_a_missing_probe_is_shown_with_its_reason() {
        assert_eq!(next(failed(Code::UNIMPLEMENTED, true)), Next::NoProbe);
        assert_eq!(next(failed(Code::UNAVAILABLE, false)), Next::Ended);
        let Next::Life(Life::Unwell(reason)) = next(failed(Code::FAILED_PRECONDITION, true)) else {
            unreachable!()
        };
        assert_eq!(reason, "it lacks something that it depends on: no backend");
        for code in [Code::UNAVAILABLE, Code::DEADLINE_EXCEEDED, Code(2), Code(13)] {
            let Next::Life(Life::Unwell(reason)) = next(failed(code, true)) else { unreachable!() };
            assert_eq!(reason, format!("Probe: {code}: no backend"));
        }
    }
}
