//! Settings: a file, and the flags that beat it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::desired::quantity;
use crate::model::DriverName;

/// Where the settings are unless `--config` says otherwise; there they may be missing.
pub const DEFAULT_FILE: &str = "/etc/volumed/csi-loop.toml";

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The driver's name.
    pub name: DriverName,
    /// The directory of the images.
    pub dir: PathBuf,
    /// The driver's socket.
    pub endpoint: PathBuf,
    /// This node's id.
    pub node_id: String,
    /// The kubelet's `plugins_registry`; `None`: the driver does not register itself.
    pub plugins_registry: Option<PathBuf>,
    /// How many bytes of the directory's file system are not given to volumes; when less is free, volumes that may need more
    /// are in an abnormal condition. `None`: a twentieth of the file system, at most 1 GiB.
    pub reserve: Option<u64>,
    /// How much thin volumes may promise for each byte that is free.
    pub overcommit: f64,
    /// How long the file system of a volume may stay frozen while a snapshot is taken.
    pub freeze_limit: Duration,
}

/// What the command line says; it beats the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--name`
    pub name: Option<String>,
    /// `--dir`
    pub dir: Option<PathBuf>,
    /// `--endpoint`
    pub endpoint: Option<String>,
    /// `--node-id`
    pub node_id: Option<String>,
    /// `--plugins-registry`
    pub plugins_registry: Option<PathBuf>,
}

/// The file, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    name: Option<String>,
    dir: Option<PathBuf>,
    endpoint: Option<String>,
    node_id: Option<String>,
    plugins_registry: Option<PathBuf>,
    reserve: Option<String>,
    overcommit: Option<f64>,
    freeze_limit_seconds: Option<u64>,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no such file.
    #[error("{} cannot be understood", file.display())]
    Syntax {
        /// Which.
        file: PathBuf,
        /// Where, and why.
        source: Box<toml::de::Error>,
    },
    /// A value cannot be used.
    #[error("{key}: {problem}")]
    Value {
        /// The key, which is also the flag.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl Config {
    /// Reads the settings: flags, then the file, then defaults. A missing file is an error only if it was named.
    ///
    /// # Errors
    /// When something in them cannot be used.
    pub fn load(file: Option<&Path>, flags: Flags) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let found = match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text)
                .map_err(|source| ConfigError::Syntax { file: path.to_owned(), source: Box::new(source) })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound && file.is_none() => File::default(),
            Err(source) => return Err(ConfigError::Read { file: path.to_owned(), source }),
        };
        Self::of(found, flags)
    }

    fn of(file: File, flags: Flags) -> Result<Self, ConfigError> {
        let name = flags.name.or(file.name).unwrap_or_else(|| "loop.csi.volumed.io".to_owned());
        let name = DriverName::new(name).map_err(|e| value("name", e.to_string()))?;
        let default = |directory: &str, rest: &str| format!("{directory}/volumed-csi-loop/{name}{rest}");
        let dir = flags.dir.or(file.dir).unwrap_or_else(|| default("/var/lib", "").into());
        let endpoint = flags.endpoint.or(file.endpoint).unwrap_or_else(|| default("/run", "/csi.sock"));
        let endpoint =
            endpoint.strip_prefix("unix://").or(endpoint.strip_prefix("unix:")).unwrap_or(&endpoint);
        let node_id = match flags.node_id.or(file.node_id) {
            Some(node_id) => node_id,
            None => host_name()?,
        };
        check_node_id(&node_id)?;
        let reserve = file.reserve.map(|text| quantity::bytes(&text)).transpose();
        let reserve = reserve.map_err(|e| value("reserve", e.to_string()))?;
        let overcommit = file.overcommit.unwrap_or(1.0);
        if !(1.0..=1000.0).contains(&overcommit) {
            return Err(value("overcommit", "give a factor from 1.0 to 1000.0".to_owned()));
        }
        let plugins_registry = (flags.plugins_registry.or(file.plugins_registry))
            .map(|path| absolute("plugins-registry", &path))
            .transpose()?;
        if let Some(registry) = &plugins_registry {
            socket("plugins-registry", &registration_socket(registry, &name))?;
        }
        Ok(Self {
            dir: absolute("dir", &dir)?,
            endpoint: socket("endpoint", Path::new(endpoint))?,
            plugins_registry,
            node_id,
            name,
            reserve,
            overcommit,
            freeze_limit: Duration::from_secs(file.freeze_limit_seconds.unwrap_or(60).clamp(1, 600)),
        })
    }

    /// Returns the key and the value of the one topology segment that this node has (csi.md 2.1).
    pub fn topology(&self) -> (String, String) {
        (format!("{}/node", self.name), self.node_id.clone())
    }
}

/// Returns where a driver of a name is registered in a directory (kubelet.md 7).
pub(super) fn registration_socket(registry: &Path, name: &DriverName) -> PathBuf {
    registry.join(format!("{name}-reg.sock"))
}

fn value(key: &'static str, problem: String) -> ConfigError {
    ConfigError::Value { key, problem }
}

fn host_name() -> Result<String, ConfigError> {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let name = read.map_err(|e| value("node-id", format!("this host has no name to take: {e}")))?;
    Ok(name.trim().to_lowercase())
}

/// It is also the value of a topology segment: at most 63 characters (csi.md 2.1).
fn check_node_id(id: &str) -> Result<(), ConfigError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let fine = id.len() <= 63 && id.chars().all(plain) && ends(id.chars().next()) && ends(id.chars().last());
    let problem = || {
        format!(
            "{id:?} is not 1 to 63 letters, digits, `-`, `_` or `.` that begin and end with a letter or digit"
        )
    };
    if fine { Ok(()) } else { Err(value("node-id", problem())) }
}

/// A path on the command line is relative to where the command was given.
fn absolute(key: &'static str, path: &Path) -> Result<PathBuf, ConfigError> {
    let path = std::path::absolute(path).map_err(|e| value(key, e.to_string()))?;
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(value(key, format!("{} has a `..`", path.display())));
    }
    Ok(path)
}

/// A unix socket's address has 108 bytes, its end included; kubelet.md 7 and csi.md 1.3 say to stay at 104.
fn socket(key: &'static str, path: &Path) -> Result<PathBuf, ConfigError> {
    let path = absolute(key, path)?;
    if path.as_os_str().len() > 104 {
        return Err(value(
            key,
            format!("{} is longer than the 104 bytes of a socket's path", path.display()),
        ));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, flags: Flags) -> Result<Config, ConfigError> {
        Config::of(toml::from_str(text).unwrap(), flags)
    }

    #[test]
    fn two_instances_share_no_path_by_default() {
        let named = |name: &str| {
            of("node-id = 'n'", Flags { name: Some(name.to_owned()), ..Flags::default() }).unwrap()
        };
        let (a, b) = (named("a.example.com"), named("b.example.com"));
        assert!(a.dir != b.dir && a.endpoint != b.endpoint && a.topology().0 != b.topology().0);
    }

    #[test]
    fn a_flag_beats_its_key() {
        let flags = Flags { node_id: Some("flag".to_owned()), ..Flags::default() };
        let config = of("node-id = 'file'\nendpoint = 'unix:///run/x.sock'", flags).unwrap();
        assert_eq!((config.node_id.as_str(), config.endpoint), ("flag", "/run/x.sock".into()));
    }

    #[test]
    fn every_setting_has_a_key() {
        let text = "name = 'a.example.com'\ndir = '/srv/a'\nendpoint = '/run/a.sock'\nnode-id = 'n'\n\
                    plugins-registry = '/srv/registry'\nreserve = '1Gi'\novercommit = 2.0\nfreeze-limit-seconds = 5";
        let config = of(text, Flags::default()).unwrap();
        assert_eq!(config.name.as_str(), "a.example.com");
        assert_eq!((config.dir, config.endpoint), ("/srv/a".into(), "/run/a.sock".into()));
        assert_eq!(config.plugins_registry, Some("/srv/registry".into()));
        assert_eq!((config.node_id.as_str(), config.reserve), ("n", Some(1 << 30)));
        assert_eq!(config.freeze_limit, Duration::from_secs(5));
        assert!((config.overcommit - 2.0).abs() < f64::EPSILON);
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        let long_registry = format!("plugins-registry = '/{}'", "a".repeat(80));
        let long = format!("endpoint = '/{}'", "a".repeat(104));
        for (text, key) in [
            ("name = 'a b'", "name"),
            ("node-id = '-'", "node-id"),
            ("overcommit = 0.5", "overcommit"),
            ("reserve = 'much'", "reserve"),
            (long.as_str(), "endpoint"),
            (long_registry.as_str(), "plugins-registry"),
            ("dir = '/a/../b'", "dir"),
        ] {
            let refused = of(text, Flags::default());
            assert!(matches!(&refused, Err(ConfigError::Value { key: k, .. }) if *k == key), "{refused:?}");
        }
        assert!(toml::from_str::<File>("nonsense = 1").is_err());
    }
}
