//! What to do wrong: the faults file, and which of its faults a call meets.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use tokio::time::Instant;
use volumed::proto::csi;
use volumed::proto::csi::VolumeHealthErrorType;
use volumed::proto::csi::volume_health::VolumeHealthEntry;

/// One fault; see the program's documentation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    method: String,
    volume: Option<String>,
    nth: Option<u64>,
    from: Option<u64>,
    to: Option<u64>,
    until_ms: Option<u128>,
    #[serde(default)]
    when: When,
    pub(crate) action: Action,
}

/// Before or after the effect of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum When {
    #[default]
    Before,
    After,
}

/// What happens.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Action {
    Plain(Plain),
    Code {
        code: String,
        #[serde(default)]
        message: String,
    },
    Delay {
        delay_ms: u64,
    },
    Leak {
        leak: String,
    },
    Ready {
        ready: bool,
    },
    Abnormal {
        abnormal: String,
    },
    Health {
        health: Vec<Health>,
    },
    Usage {
        usage: Vec<Usage>,
    },
}

/// One entry of a volume's health.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Health {
    /// `DEGRADED`, ..., or a number.
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl Health {
    pub(crate) fn entry(&self) -> VolumeHealthEntry {
        let known = VolumeHealthErrorType::from_str_name(&self.status).map(i32::from);
        VolumeHealthEntry {
            status: known.or_else(|| self.status.parse().ok()).unwrap_or_default(),
            reason: self.reason.clone(),
            message: self.message.clone(),
        }
    }
}

/// One entry of a volume's usage.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Usage {
    /// `BYTES`, `INODES`, or a number.
    unit: String,
    #[serde(default)]
    total: i64,
    #[serde(default)]
    used: i64,
    #[serde(default)]
    available: i64,
}

impl Usage {
    pub(crate) fn entry(&self) -> csi::VolumeUsage {
        let known = csi::volume_usage::Unit::from_str_name(&self.unit).map(i32::from);
        csi::VolumeUsage {
            unit: known.or_else(|| self.unit.parse().ok()).unwrap_or_default(),
            total: self.total,
            used: self.used,
            available: self.available,
        }
    }
}

/// What a call is told to answer in place of the truth.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    /// Probe.
    pub(crate) ready: Option<bool>,
    /// Probe says nothing of it.
    pub(crate) silent: bool,
    /// The message of an abnormal condition.
    pub(crate) abnormal: Option<String>,
    /// NodeGetVolumeHealth.
    pub(crate) health: Option<Vec<Health>>,
    /// NodeGetVolumeStats.
    pub(crate) usage: Option<Vec<Usage>>,
}

impl Script {
    /// Takes the answers among a call's faults; of two for one thing the last counts.
    pub(crate) fn new(faults: &[(When, Action)]) -> Self {
        let mut script = Self::default();
        for (_, action) in faults {
            match action {
                Action::Ready { ready } => script.ready = Some(*ready),
                Action::Plain(Plain::ReadyUnset) => script.silent = true,
                Action::Abnormal { abnormal } => script.abnormal = Some(abnormal.clone()),
                Action::Health { health } => script.health = Some(health.clone()),
                Action::Usage { usage } => script.usage = Some(usage.clone()),
                Action::Plain(_) | Action::Code { .. } | Action::Delay { .. } | Action::Leak { .. } => {}
            }
        }
        script
    }
}

/// What happens, without arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Plain {
    Hang,
    Crash,
    Oversize,
    Garbage,
    Lost,
    NoMount,
    ReadyUnset,
}

/// The file, and how often each method was called.
#[derive(Debug)]
pub(crate) struct Faults {
    file: Option<PathBuf>,
    started: Instant,
    counts: Mutex<BTreeMap<(String, Option<String>), u64>>,
}

impl Faults {
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        Self { file, started: Instant::now(), counts: Mutex::default() }
    }

    /// Counts a call and returns its faults in the order of the file.
    pub(crate) fn of(&self, method: &str, volume: &str) -> Result<Vec<(When, Action)>, String> {
        let counts = self.count(method, volume);
        let text = match self.file.as_ref().map(std::fs::read_to_string) {
            None => return Ok(Vec::new()),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Some(Err(error)) => return Err(format!("faults file: {error}")),
            Some(Ok(text)) if text.trim().is_empty() => return Ok(Vec::new()),
            Some(Ok(text)) => text,
        };
        let faults: Vec<Fault> =
            serde_json::from_str(&text).map_err(|error| format!("faults file: {error}"))?;
        Ok(faults
            .into_iter()
            .filter(|fault| fault.meets(method, volume, &counts))
            .filter(|fault| fault.until_ms.is_none_or(|until| self.started.elapsed().as_millis() < until))
            .map(|fault| (fault.when, fault.action))
            .collect())
    }

    fn count(&self, method: &str, volume: &str) -> Counts {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut add = |method: &str, volume: Option<&str>| {
            let count = counts.entry((method.to_owned(), volume.map(str::to_owned))).or_default();
            *count += 1;
            *count
        };
        Counts {
            all: add("*", None),
            all_of_volume: add("*", Some(volume)),
            method: add(method, None),
            both: add(method, Some(volume)),
        }
    }
}

/// Which call this is, counted in each way.
struct Counts {
    all: u64,
    all_of_volume: u64,
    method: u64,
    both: u64,
}

impl Fault {
    fn meets(&self, method: &str, volume: &str, counts: &Counts) -> bool {
        let any = self.method == "*";
        if !any && self.method != method || self.volume.as_deref().is_some_and(|wanted| wanted != volume) {
            return false;
        }
        let count = match (any, &self.volume) {
            (true, None) => counts.all,
            (true, Some(_)) => counts.all_of_volume,
            (false, None) => counts.method,
            (false, Some(_)) => counts.both,
        };
        self.nth.is_none_or(|nth| nth == count)
            && self.from.is_none_or(|from| count >= from)
            && self.to.is_none_or(|to| count <= to)
    }
}
