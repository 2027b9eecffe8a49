//! What to do wrong: the faults file, and which of its faults a call meets.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

/// One fault; see the program's documentation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    method: String,
    volume: Option<String>,
    nth: Option<u64>,
    from: Option<u64>,
    to: Option<u64>,
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
}

/// What happens, without arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Plain {
    Hang,
    Crash,
    Oversize,
    Garbage,
    NoMount,
}

/// The file, and how often each method was called.
#[derive(Debug)]
pub(crate) struct Faults {
    file: Option<PathBuf>,
    counts: Mutex<BTreeMap<(String, Option<String>), u64>>,
}

impl Faults {
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        Self { file, counts: Mutex::default() }
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
