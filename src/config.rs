//! Settings: `/etc/volumed/volumed.toml`, and the flags that beat it. Every key has a default.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::model::DriverName;

/// Where the settings are unless `--config` says otherwise; there it may be missing.
pub const DEFAULT_FILE: &str = "/etc/volumed/volumed.toml";

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// The directories that are watched for manifests.
    #[serde(deserialize_with = "directories")]
    pub manifest_dir: Vec<PathBuf>,
    /// The kubelet's root directory, below which everything is mounted.
    #[serde(deserialize_with = "absolute")]
    pub root_dir: PathBuf,
    /// Where the records are.
    #[serde(deserialize_with = "absolute")]
    pub state_dir: PathBuf,
    /// The control socket; unused when systemd passes one.
    #[serde(deserialize_with = "absolute")]
    pub socket: PathBuf,
    /// This node's name; `None`: the host's.
    #[serde(deserialize_with = "node_name")]
    pub node_name: Option<String>,
    /// The group, by name or number, that may use the read-only calls of the control socket.
    pub group: Option<String>,
    /// Between the two complete readings that must both lack a thing before it is taken down.
    #[serde(deserialize_with = "span")]
    pub removal_grace: Duration,
    /// How long the mass-delete brake holds; `None`: until `volumectl approve`.
    #[serde(deserialize_with = "maybe_span")]
    pub brake_release_after: Option<Duration>,
    /// How long a driver may take to answer a call.
    #[serde(deserialize_with = "positive_span")]
    pub rpc_timeout: Duration,
    /// What is logged.
    pub log_level: LogLevel,
    /// Drivers without a registrar; they beat a registration of the same name.
    pub drivers: BTreeMap<DriverName, DriverConfig>,
}

/// `[drivers."name"]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DriverConfig {
    /// The driver's socket.
    #[serde(deserialize_with = "endpoint")]
    pub endpoint: PathBuf,
    /// In place of `rpc-timeout`.
    #[serde(default, deserialize_with = "maybe_positive_span")]
    pub timeout: Option<Duration>,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// A human is needed.
    Error,
    /// And: it is tried again.
    Warn,
    /// And: something changed.
    #[default]
    Info,
    /// And what led there.
    Debug,
    /// And everything.
    Trace,
}

/// What the command line says; it beats the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--manifest-dir`; any replace all of the file's.
    pub manifest_dir: Vec<PathBuf>,
    /// `--root-dir`
    pub root_dir: Option<PathBuf>,
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
    /// `--socket`
    pub socket: Option<PathBuf>,
    /// `--node-name`
    pub node_name: Option<String>,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Something in the file is wrong.
    #[error("{}:{line}:{column}: {}{problem} ({remedy})", file.display(), prefixed(key))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// The key; empty when the text is no TOML.
        key: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A flag is wrong.
    #[error("--{flag}: {problem}")]
    Flag {
        /// Which.
        flag: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The host's name is needed and cannot be read.
    #[error("cannot find out this host's name; give --node-name")]
    HostName {
        /// The kernel's reason.
        source: io::Error,
    },
}

fn prefixed(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("{key}: ") }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            manifest_dir: vec![PathBuf::from("/etc/volumed/manifests")],
            root_dir: PathBuf::from("/var/lib/kubelet"),
            state_dir: PathBuf::from("/var/lib/volumed"),
            socket: PathBuf::from("/run/volumed/control.sock"),
            node_name: None,
            group: None,
            removal_grace: Duration::from_secs(1),
            brake_release_after: None,
            rpc_timeout: Duration::from_secs(120),
            log_level: LogLevel::Info,
            drivers: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Reads the settings: flags, then the file, then defaults. A missing file is an error only if it was named.
    ///
    /// # Errors
    /// When something in them cannot be used; all of them are then unusable.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let config = match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text)?,
            Err(source) if source.kind() == io::ErrorKind::NotFound && file.is_none() => Self::default(),
            Err(source) => return Err(ConfigError::Read { file: path.to_owned(), source }),
        };
        config.with(flags)
    }

    /// Reads the text of a settings file; `file` is only for the message.
    ///
    /// # Errors
    /// When a key is unknown or a value cannot be used.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let invalid = |error: &toml::de::Error, key: String| {
            let start = error.span().map_or(0, |span| span.start).min(text.len());
            let before = text.get(..start).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            ConfigError::Invalid {
                file: file.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
                problem: error.message().replace('\n', "; "),
                remedy: remedy(&key, error.message()),
                key,
            }
        };
        let document = toml::Deserializer::parse(text).map_err(|error| invalid(&error, String::new()))?;
        serde_path_to_error::deserialize(document).map_err(|error| {
            let key = error.path().to_string();
            invalid(error.inner(), if key == "." { String::new() } else { key })
        })
    }

    fn with(mut self, flags: &Flags) -> Result<Self, ConfigError> {
        if !flags.manifest_dir.is_empty() {
            self.manifest_dir = (flags.manifest_dir.iter())
                .map(|path| from_here("manifest-dir", path))
                .collect::<Result<_, _>>()?;
        }
        for (flag, given, setting) in [
            ("root-dir", &flags.root_dir, &mut self.root_dir),
            ("state-dir", &flags.state_dir, &mut self.state_dir),
            ("socket", &flags.socket, &mut self.socket),
        ] {
            if let Some(path) = given {
                *setting = from_here(flag, path)?;
            }
        }
        if let Some(name) = &flags.node_name {
            check_node_name(name).map_err(|problem| ConfigError::Flag { flag: "node-name", problem })?;
            self.node_name = Some(name.clone());
        }
        Ok(self)
    }

    /// Returns this node's name: as set, else the host's.
    ///
    /// # Errors
    /// When it is not set and the kernel does not say it.
    pub fn node(&self) -> Result<String, ConfigError> {
        match &self.node_name {
            Some(name) => Ok(name.clone()),
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map(|name| name.trim().to_lowercase())
                .map_err(|source| ConfigError::HostName { source }),
        }
    }
}

/// Takes `500ms`, `1s`, `2m`, `1h 30m`.
fn duration(text: &str) -> Result<Duration, BadDuration> {
    let bad = || BadDuration { text: text.chars().take(40).collect() };
    let span: jiff::SignedDuration = text.trim().parse().map_err(|_error| bad())?;
    Duration::try_from(span).map_err(|_negative| bad())
}

/// A text that is no time span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a time span such as \"500ms\", \"1s\" or \"2m\"")]
struct BadDuration {
    text: String,
}

/// A path on the command line is relative to where the command was given.
fn from_here(flag: &'static str, path: &Path) -> Result<PathBuf, ConfigError> {
    let problem = |problem: String| ConfigError::Flag { flag, problem };
    let path = std::path::absolute(path).map_err(|error| problem(error.to_string()))?;
    check_path(&path).map_err(problem)?;
    Ok(path)
}

fn check_path(path: &Path) -> Result<(), String> {
    if !path.is_absolute() {
        return Err(format!("{} is not an absolute path", path.display()));
    }
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(format!("{} has a `..`", path.display()));
    }
    Ok(())
}

fn check_node_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.is_empty() || name.len() > 253 || !name.chars().all(plain) {
        return Err(format!("{name:?} is not a host name"));
    }
    Ok(())
}

/// Returns what to do about a wrong value.
fn remedy(key: &str, problem: &str) -> &'static str {
    if problem.starts_with("unknown field") {
        return "remove it, or see README.md for the keys there are";
    }
    match key.rsplit('.').next().unwrap_or_default() {
        "manifest-dir" => "give a list of directories, such as [\"/etc/volumed/manifests\"]",
        "root-dir" | "state-dir" | "socket" => "give an absolute path",
        "endpoint" => "give the driver's socket, such as \"/run/csi/nfs.sock\"",
        "node-name" => "give a host name, or remove the key to use the host's own",
        "group" => "give a group's name, or remove the key",
        "removal-grace" | "brake-release-after" | "rpc-timeout" | "timeout" => {
            "give a time span, such as \"500ms\", \"1s\" or \"2m\""
        }
        "log-level" => "give one of error, warn, info, debug, trace",
        _ if key.starts_with("drivers") => {
            "write [drivers.\"NAME\"] and below it endpoint = \"/run/csi/x.sock\""
        }
        _ => "see README.md for the keys and their forms",
    }
}

fn checked<'de, D: Deserializer<'de>>(path: PathBuf) -> Result<PathBuf, D::Error> {
    check_path(&path).map_err(serde::de::Error::custom)?;
    Ok(path)
}

fn absolute<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    checked::<D>(PathBuf::deserialize(from)?)
}

fn directories<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "not a directory or a list of directories")]
    enum OneOrMore {
        One(PathBuf),
        More(Vec<PathBuf>),
    }
    let given = match OneOrMore::deserialize(from)? {
        OneOrMore::One(path) => vec![path],
        OneOrMore::More(paths) => paths,
    };
    if given.is_empty() {
        return Err(serde::de::Error::custom("the list is empty"));
    }
    given.into_iter().map(checked::<D>).collect()
}

/// Takes a path, or gRPC's `unix:///path`.
fn endpoint<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(from)?;
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(&text);
    checked::<D>(PathBuf::from(path))
}

fn node_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(from)?;
    check_node_name(&name).map_err(serde::de::Error::custom)?;
    Ok(Some(name))
}

fn span<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

fn maybe_span<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    span(from).map(Some)
}

fn positive_span<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let given = span(from)?;
    if given.is_zero() {
        return Err(serde::de::Error::custom("is no time at all"));
    }
    Ok(given)
}

fn maybe_positive_span<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    positive_span(from).map(Some)
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
