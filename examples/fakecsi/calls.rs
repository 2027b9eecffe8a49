//! Around each call: the log, and the faults before and after it.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::faults::{Action, Faults, Plain, Script, When};

/// The header by which `spoil` is told to replace an answer's bytes, and with what.
pub(crate) const SPOIL: &str = "x-fakecsi-spoil";

/// All calls of the process.
#[derive(Debug)]
pub(crate) struct Calls {
    log: Option<Mutex<File>>,
    faults: Faults,
    last: AtomicU64,
}

impl Calls {
    pub(crate) fn new(log: Option<&Path>, faults: Option<PathBuf>) -> std::io::Result<Self> {
        let open = |path| File::options().create(true).append(true).open(path);
        let log = log.map(open).transpose()?.map(Mutex::new);
        Ok(Self { log, faults: Faults::new(faults), last: AtomicU64::new(0) })
    }

    /// Runs one call: logs it, does what the faults say, and `effect` in between.
    pub(crate) async fn run<A: Default>(
        &self,
        method: &'static str,
        volume: &str,
        request: Value,
        effect: impl FnOnce() -> Result<A, Status>,
    ) -> Result<tonic::Response<A>, Status> {
        self.run_scripted(method, volume, request, |_| effect()).await
    }

    /// As `run`, with what the faults say that the answer is to be.
    pub(crate) async fn run_scripted<A: Default>(
        &self,
        method: &'static str,
        volume: &str,
        request: Value,
        effect: impl FnOnce(&Script) -> Result<A, Status>,
    ) -> Result<tonic::Response<A>, Status> {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let whole = request.to_string();
        self.write(&json!({
            "at": now(), "id": id, "event": "begin", "method": method, "volume": volume, "request": request,
            "process": std::process::id(),
        }));
        let mut end = End { calls: self, id, method, volume, code: "DROPPED", message: String::new() };
        let result = self.faulty(method, volume, &whole, effect).await;
        match &result {
            Ok(_) => end.code = "OK",
            Err(status) => {
                end.code = name(status.code());
                end.message = status.message().to_owned();
            }
        }
        result
    }

    async fn faulty<A: Default>(
        &self,
        method: &str,
        volume: &str,
        whole: &str,
        effect: impl FnOnce(&Script) -> Result<A, Status>,
    ) -> Result<tonic::Response<A>, Status> {
        let faults = self.faults.of(method, volume).map_err(Status::internal)?;
        let mut effect = Some(effect);
        let mut answer = A::default();
        let mut spoil = None;
        for now in [When::Before, When::After] {
            if now == When::After
                && let Some(effect) = effect.take()
            {
                answer = effect(&Script::new(&faults))?;
            }
            for (_, action) in faults.iter().filter(|(when, _)| *when == now) {
                match action {
                    Action::Code { code, message } => {
                        return Err(Status::new(number(code)?, message.clone()));
                    }
                    Action::Delay { delay_ms } => tokio::time::sleep(Duration::from_millis(*delay_ms)).await,
                    Action::Leak { leak } => return Err(Status::internal(format!("{leak}: {whole}"))),
                    Action::Plain(Plain::Hang) => std::future::pending().await,
                    Action::Plain(Plain::Crash) => {
                        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).ok();
                    }
                    Action::Plain(Plain::Oversize) => spoil = Some("oversize"),
                    Action::Plain(Plain::Garbage) => spoil = Some("garbage"),
                    Action::Plain(Plain::Lost) => spoil = Some("lost"),
                    Action::Plain(Plain::NoMount) => drop(effect.take()),
                    // `Script` has taken these.
                    Action::Plain(Plain::ReadyUnset)
                    | Action::Ready { .. }
                    | Action::Abnormal { .. }
                    | Action::Health { .. }
                    | Action::Usage { .. } => {}
                }
            }
        }
        let mut response = tonic::Response::new(answer);
        if let Some(spoil) = spoil {
            response.metadata_mut().insert(SPOIL, MetadataValue::from_static(spoil));
        }
        Ok(response)
    }

    fn write(&self, line: &Value) {
        let Some(log) = &self.log else { return };
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        // One write per line, so that a crash leaves no half one.
        log.write_all(format!("{line}\n").as_bytes()).ok();
    }
}

/// Logs the end of a call, also of one that the caller gave up.
struct End<'a> {
    calls: &'a Calls,
    id: u64,
    method: &'static str,
    volume: &'a str,
    code: &'static str,
    message: String,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let message: String = self.message.chars().take(4096).collect();
        self.calls.write(&json!({
            "at": now(), "id": self.id, "event": "end", "method": self.method, "volume": self.volume,
            "code": self.code, "message": message,
        }));
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

const CODES: [(&str, Code); 17] = [
    ("OK", Code::Ok),
    ("CANCELLED", Code::Cancelled),
    ("UNKNOWN", Code::Unknown),
    ("INVALID_ARGUMENT", Code::InvalidArgument),
    ("DEADLINE_EXCEEDED", Code::DeadlineExceeded),
    ("NOT_FOUND", Code::NotFound),
    ("ALREADY_EXISTS", Code::AlreadyExists),
    ("PERMISSION_DENIED", Code::PermissionDenied),
    ("RESOURCE_EXHAUSTED", Code::ResourceExhausted),
    ("FAILED_PRECONDITION", Code::FailedPrecondition),
    ("ABORTED", Code::Aborted),
    ("OUT_OF_RANGE", Code::OutOfRange),
    ("UNIMPLEMENTED", Code::Unimplemented),
    ("INTERNAL", Code::Internal),
    ("UNAVAILABLE", Code::Unavailable),
    ("DATA_LOSS", Code::DataLoss),
    ("UNAUTHENTICATED", Code::Unauthenticated),
];

fn name(code: Code) -> &'static str {
    CODES.iter().find(|(_, known)| *known == code).map_or("UNKNOWN", |(name, _)| name)
}

fn number(name: &str) -> Result<Code, Status> {
    let known = CODES.iter().find(|(known, _)| *known == name).map(|(_, code)| *code);
    known.ok_or_else(|| Status::internal(format!("faults file: there is no code {name}")))
}
