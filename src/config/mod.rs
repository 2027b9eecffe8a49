//! Settings: `/etc/volumed/volumed.toml`, and the flags that beat it. Every key has a default.

mod tokens;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::model::DriverName;
use values::{check_node_name, check_path};

pub use tokens::{ServiceAccount, TokenConfig};

/// Where the settings are unless `--config` says otherwise; there it may be missing.
pub const DEFAULT_FILE: &str = "/etc/volumed/volumed.toml";

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// The directories that are watched for manifests.
    #[serde(deserialize_with = "values::directories")]
    pub manifest_dir: Vec<PathBuf>,
    /// The kubelet's root directory, below which everything is mounted.
    #[serde(deserialize_with = "values::absolute")]
    pub root_dir: PathBuf,
    /// Where the records are.
    #[serde(deserialize_with = "values::absolute")]
    pub state_dir: PathBuf,
    /// The control socket; unused when systemd passes one.
    #[serde(deserialize_with = "values::absolute")]
    pub socket: PathBuf,
    /// This node's name; `None`: the host's.
    #[serde(deserialize_with = "values::node_name")]
    pub node_name: Option<String>,
    /// This node's labels, for the nodeAffinity of PersistentVolumes.
    pub node_labels: BTreeMap<String, String>,
    /// The group, by name or number, that may use the read-only calls of the control socket.
    pub group: Option<String>,
    /// Between the two complete readings that must both lack a thing before it is taken down.
    #[serde(deserialize_with = "values::span")]
    pub removal_grace: Duration,
    /// How long the mass-delete brake holds; `None`: until `volumectl approve`.
    #[serde(deserialize_with = "values::maybe_span")]
    pub brake_release_after: Option<Duration>,
    /// How long a driver may take to answer a call.
    #[serde(deserialize_with = "values::positive_span")]
    pub rpc_timeout: Duration,
    /// What is logged.
    pub log_level: LogLevel,
    /// Drivers without a registrar; they beat a registration of the same name.
    pub drivers: BTreeMap<DriverName, DriverConfig>,
    /// Where the service-account tokens are that drivers ask for.
    #[serde(deserialize_with = "tokens::without_duplicates")]
    pub tokens: Vec<TokenConfig>,
}

/// `[drivers."name"]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DriverConfig {
    /// The driver's socket.
    #[serde(deserialize_with = "values::endpoint")]
    pub endpoint: PathBuf,
    /// In place of `rpc-timeout`.
    #[serde(default, deserialize_with = "values::maybe_positive_span")]
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
            node_labels: BTreeMap::new(),
            group: None,
            removal_grace: Duration::from_secs(1),
            brake_release_after: None,
            rpc_timeout: Duration::from_secs(120),
            log_level: LogLevel::Info,
            drivers: BTreeMap::new(),
            tokens: Vec::new(),
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

/// A path on the command line is relative to where the command was given.
fn from_here(flag: &'static str, path: &Path) -> Result<PathBuf, ConfigError> {
    let problem = |problem: String| ConfigError::Flag { flag, problem };
    let path = std::path::absolute(path).map_err(|error| problem(error.to_string()))?;
    check_path(&path).map_err(problem)?;
    Ok(path)
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
        "service-account" => "give namespace and name, such as \"default/robot\"",
        "audience" => "give the audience that the CSIDriver asks for, \"\" for the API server's",
        "file" => "give the absolute path of the file with the token",
        "log-level" => "give one of error, warn, info, debug, trace",
        _ if key.starts_with("tokens") => {
            "write [[tokens]] for each service account and audience, and below it service-account = \"NAMESPACE/NAME\", \
             audience = \"...\" and file = \"/path\""
        }
        _ if key.starts_with("drivers") => {
            "write [drivers.\"NAME\"] and below it endpoint = \"/run/csi/x.sock\""
        }
        _ => "see README.md for the keys and their forms",
    }
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
mod tests;
