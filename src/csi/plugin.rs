//! One registration socket: dial, GetInfo, check, ask the driver, tell the plugin what became of it (kubelet.md 7, csi.md 8.2).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::CallError;
use super::client::call;
use super::connection::{DialError, LONGEST_PATH, dial};
use super::endpoint::{DIAL, Endpoint, OpenError, Report, Reporter, Session};
use super::liveness::Probing;
use super::text::{Secrets, clean};
use crate::error::Chain;
use crate::model::{Ambient, DriverName};
use crate::proto::registration::registration_client::RegistrationClient;
use crate::proto::registration::{InfoRequest, PluginInfo, RegistrationStatus};

/// How long a plugin may take to say who it is.
const GET_INFO: Duration = Duration::from_secs(1);
/// How long it may take to hear what became of it.
const NOTIFY: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// What a registration is decided by.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// How long a driver's call may take.
    pub(super) deadline: Duration,
    /// Whose sockets are trusted besides root's.
    pub(super) uid: u32,
    /// Drivers that the configuration names: nobody registers for them.
    pub(super) configured: Arc<BTreeSet<DriverName>>,
    /// Chance, for the pauses.
    pub(super) ambient: Arc<Ambient>,
    /// How often its driver's Probe is called.
    pub(super) probing: Probing,
}

/// Why a plugin is not registered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the plugin's type is {0:?}; volumed takes CSIPlugin only")]
    Type(String),
    #[error("the plugin's name cannot be used")]
    Name(#[from] crate::model::InvalidName),
    #[error("the plugin supports the versions {0:?}; its highest must be a 1.x")]
    Version(Vec<String>),
    #[error("the plugin's endpoint {0:?} is not an absolute path of at most {LONGEST_PATH} bytes")]
    Endpoint(String),
    #[error("the driver {0} is set in volumed's configuration, which goes before a registration")]
    Configured(DriverName),
    #[error("the driver {name} at {} cannot be used", path.display())]
    Driver { name: DriverName, path: PathBuf, source: OpenError },
}

impl Refusal {
    /// Returns whether only another socket can help: the plugin said something that it will say again.
    fn stands(&self) -> bool {
        match self {
            Self::Type(_) | Self::Name(_) | Self::Version(_) | Self::Endpoint(_) | Self::Configured(_) => {
                true
            }
            Self::Dial(_) | Self::Call(_) | Self::Driver { .. } => false,
        }
    }
}

/// Registers the plugin behind a socket and then keeps its driver; ends only by being cancelled, when the socket goes.
pub(super) async fn run(socket: PathBuf, rules: Rules, report: Reporter) {
    let mut pause = FIRST_PAUSE;
    loop {
        match register(&socket, &rules, &report).await {
            Ok((endpoint, session)) => return endpoint.keep(Some(session), &report).await,
            Err(refusal) => {
                report.tell(Report::Refused { reason: said(&refusal) }).await;
                if refusal.stands() {
                    return std::future::pending().await;
                }
            }
        }
        tokio::time::sleep(pause.mul_f64(0.9 + jitter(&rules.ambient) / 5.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Returns a number from 0 to 1.
pub(super) fn jitter(ambient: &Ambient) -> f64 {
    f64::from(u32::try_from(ambient.random() >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

/// Returns a refusal as the plugin and the event tell it.
pub(super) fn said(refusal: &Refusal) -> String {
    clean(&Chain(refusal).to_string(), &Secrets::default())
}

/// One attempt. Whatever its end, the plugin hears of it exactly once if it answered at all.
async fn register(socket: &Path, rules: &Rules, report: &Reporter) -> Result<(Endpoint, Session), Refusal> {
    let connection = dial(socket, rules.uid, DIAL).await?;
    let mut plugin = RegistrationClient::new(connection.channel);
    let none = Secrets::default();
    let info = call("GetInfo", GET_INFO, &none, InfoRequest {}, |request| plugin.get_info(request)).await?;
    let outcome = accept(socket, info, rules, report).await;
    let status = match &outcome {
        Ok(_) => RegistrationStatus { plugin_registered: true, error: String::new() },
        Err(refusal) => RegistrationStatus { plugin_registered: false, error: said(refusal) },
    };
    let notified = call("NotifyRegistrationStatus", NOTIFY, &none, status, |request| {
        plugin.notify_registration_status(request)
    })
    .await;
    // A plugin that was refused may hang up; what counts then is why it was refused.
    let accepted = outcome?;
    notified?;
    Ok(accepted)
}

/// Checks what the plugin said and asks its driver.
async fn accept(
    socket: &Path,
    info: PluginInfo,
    rules: &Rules,
    report: &Reporter,
) -> Result<(Endpoint, Session), Refusal> {
    let (name, path) = checked(socket, info, &rules.configured)?;
    let endpoint = Endpoint {
        name,
        path,
        deadline: rules.deadline,
        uid: rules.uid,
        configured: false,
        probing: rules.probing.clone(),
    };
    match endpoint.open(report).await {
        Ok(session) => Ok((endpoint, session)),
        Err(source) => Err(Refusal::Driver { name: endpoint.name, path: endpoint.path, source }),
    }
}

/// Returns the driver's name and socket, if what the plugin said can be used.
pub(super) fn checked(
    socket: &Path,
    info: PluginInfo,
    configured: &BTreeSet<DriverName>,
) -> Result<(DriverName, PathBuf), Refusal> {
    if info.r#type != "CSIPlugin" {
        return Err(Refusal::Type(info.r#type.chars().take(80).collect()));
    }
    let name = DriverName::new(info.name)?;
    if !supported(&info.supported_versions) {
        let few = info.supported_versions.into_iter().take(8).map(|v| v.chars().take(40).collect());
        return Err(Refusal::Version(few.collect()));
    }
    let path = match info.endpoint.as_str() {
        "" => socket.to_owned(),
        path if path.starts_with('/') && path.len() <= LONGEST_PATH && !path.contains('\0') => path.into(),
        other => return Err(Refusal::Endpoint(other.chars().take(2 * LONGEST_PATH).collect())),
    };
    if configured.contains(&name) {
        return Err(Refusal::Configured(name));
    }
    Ok((name, path))
}

/// Returns whether the highest version that can be read and is not beyond 1 is a 1.x (kubelet.md 7).
fn supported(versions: &[String]) -> bool {
    let readable = versions.iter().filter_map(|version| major(version)).filter(|major| *major <= 1);
    readable.max() == Some(1)
}

/// Returns the first number of a version with at least two, `v1.0`, `1.2.3-rc1`.
fn major(version: &str) -> Option<u64> {
    let version = version.trim_start();
    let version = version.strip_prefix('v').unwrap_or(version);
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    let mut numbers = version.get(..end)?.trim_end_matches('.').split('.');
    let major = numbers.next()?;
    let rest: Vec<&str> = numbers.collect();
    let plain = |number: &str| !number.is_empty() && (number == "0" || !number.starts_with('0'));
    if rest.is_empty() || !plain(major) || !rest.iter().all(|number| plain(number)) {
        return None;
    }
    major.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_judged_as_a_kubelet_does() {
        let supported = |versions: &[&str]| {
            supported(&versions.iter().map(|version| (*version).to_owned()).collect::<Vec<_>>())
        };
        for good in [&["1.0.0"][..], &["v1.0"], &["0.3.0", "1.0.0"], &["1.2.0", "2.0.0"], &["x", "1.0-rc1"]] {
            assert!(supported(good), "{good:?}");
        }
        for bad in [&[][..], &["1"], &["0.3.0"], &["2.0.0"], &["0.9", "2.0"], &["one.two"], &["1..0"], &[""]]
        {
            assert!(!supported(bad), "{bad:?}");
        }
    }
}
