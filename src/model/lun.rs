//! Disks: by a path of this host, or by which of a storage system's disks it is (a LUN), that the host has to be connected with
//! first (kubelet.md 4.8, 4.9).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The port of an iSCSI portal that names none.
const ISCSI_PORT: u16 = 3260;

/// What the disk behind a volume is found by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskSource {
    /// A path of this host: absolute, without `..`.
    Path(PathBuf),
    /// A disk of a storage system.
    Lun(Lun),
}

impl DiskSource {
    /// Returns the disk of a storage system.
    pub fn lun(&self) -> Option<&Lun> {
        match self {
            Self::Path(_) => None,
            Self::Lun(lun) => Some(lun),
        }
    }
}

impl fmt::Display for DiskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Lun(lun) => lun.fmt(f),
        }
    }
}

/// A disk of a storage system, by its transport.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lun {
    /// Through TCP.
    Iscsi(IscsiLun),
    /// Through Fibre Channel.
    Fc(FcLun),
}

impl fmt::Display for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iscsi(IscsiLun { iqn, lun, .. }) => write!(f, "LUN {lun} of iSCSI target {iqn}"),
            Self::Fc(FcLun::Port { targets, lun }) => {
                write!(f, "LUN {lun} of Fibre Channel target {}", targets.join(" or "))
            }
            Self::Fc(FcLun::Wwids(wwids)) => write!(f, "the Fibre Channel disk {}", wwids.join(" or ")),
        }
    }
}

/// A disk of an iSCSI target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct IscsiLun {
    /// Where the target is; the first is `targetPortal`, by which the volume is named. Never empty.
    pub portals: Vec<Portal>,
    /// The target's name.
    pub iqn: TargetName,
    /// Which of its disks.
    pub lun: u8,
    /// This host has a password for the question which targets there are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discovery_chap: bool,
    /// It has one for the target.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub session_chap: bool,
}

impl IscsiLun {
    /// Returns the name that a kubelet gives its directory: `<portal>-<iqn>-lun-<n>`.
    pub fn directory(&self) -> String {
        let portal = self.portals.first().map(Portal::to_string).unwrap_or_default();
        format!("{portal}-{}-lun-{}", self.iqn, self.lun)
    }
}

/// A disk of a Fibre Channel target: by the target's ports or by its own world-wide names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum FcLun {
    /// `targetWWNs` and `lun`.
    Port {
        /// Sixteen hexadecimal digits each, in lower case; never empty.
        targets: Vec<String>,
        /// Which of their disks.
        lun: u32,
    },
    /// `wwids`, as `/dev/disk/by-id/scsi-` has them; never empty.
    Wwids(Vec<String>),
}

impl FcLun {
    /// Returns the name that a kubelet gives its directory: `<wwn1>-<wwn2>-lun-<n>`, or the WWIDs with dashes between them.
    pub fn directory(&self) -> String {
        match self {
            Self::Port { targets, lun } => format!("{}-lun-{lun}", targets.join("-")),
            Self::Wwids(wwids) => wwids.join("-"),
        }
    }
}

/// Where an iSCSI target listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Portal {
    host: String,
    port: u16,
}

impl Portal {
    /// Takes `host`, `host:port`, `[IPv6]` or `[IPv6]:port`.
    ///
    /// # Errors
    /// In words, when it is none of these.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((host, rest))) => {
                if host.parse::<Ipv6Addr>().is_err() {
                    return Err("has brackets and no IPv6 address in them");
                }
                match rest.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if rest.is_empty() => (host, None),
                    None => return Err("has something other than a port after its bracket"),
                }
            }
            Some(None) => return Err("has a bracket that does not end"),
            None => match text.split_once(':') {
                Some((_, rest)) if rest.contains(':') => return Err("is an IPv6 address without brackets"),
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.starts_with(['-', '.']) || host.len() > 200 || !host.chars().all(fits) {
            return Err("has no host name or address");
        }
        let port = match port {
            None => ISCSI_PORT,
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err("has no port number"),
                Ok(port) => port,
            },
        };
        // One address has one text.
        let host = host.parse::<IpAddr>().map_or_else(|_| host.to_ascii_lowercase(), |ip| ip.to_string());
        Ok(Self { host, port })
    }

    /// Returns the host name or address, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl TryFrom<String> for Portal {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text).map_err(|problem| format!("portal {text:?} {problem}"))
    }
}

impl From<Portal> for String {
    fn from(portal: Portal) -> Self {
        portal.to_string()
    }
}

/// The name of an iSCSI target, in one of the three forms that there are; it becomes part of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetName(String);

impl TargetName {
    /// Takes `iqn.YYYY-MM.domain:name`, `eui.` and 16 hexadecimal digits, or `naa.` and 16 or 32 of them. Letters become small, as
    /// iSCSI compares them.
    ///
    /// # Errors
    /// In words, when it is none of these.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        const MOST: usize = 223;
        let name = text.to_lowercase();
        if name.len() > MOST {
            return Err("is longer than 223 bytes");
        }
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let good = match name.split_once('.') {
            Some(("iqn", rest)) => is_iqn(rest),
            Some(("eui", rest)) => rest.len() == 16 && digits(rest),
            Some(("naa", rest)) => matches!(rest.len(), 16 | 32) && digits(rest),
            Some(_) | None => false,
        };
        if good { Ok(Self(name)) } else { Err("is no iqn., eui. or naa. name") }
    }

    /// Returns it as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether this, after `iqn.`, is `YYYY-MM.domain` with or without `:name`.
fn is_iqn(rest: &str) -> bool {
    let (authority, name) =
        rest.split_once(':').map_or((rest, None), |(authority, name)| (authority, Some(name)));
    let Some((date, domain)) = authority.split_once('.') else { return false };
    let is_date = date.len() == 7
        && date
            .bytes()
            .enumerate()
            .all(|(i, byte)| if i == 4 { byte == b'-' } else { byte.is_ascii_digit() });
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let odd = |c: char| c.is_whitespace() || c.is_control() || "/,;*&$|'\"\\".contains(c);
    is_date
        && !domain.is_empty()
        && domain.chars().all(fits)
        && name.is_none_or(|name| !name.is_empty() && !name.contains(odd))
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TargetName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text).map_err(|problem| format!("target {text:?} {problem}"))
    }
}

impl From<TargetName> for String {
    fn from(name: TargetName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portal_is_written_in_one_way() {
        for (text, shown) in [
            ("10.0.0.1", "10.0.0.1:3260"),
            ("10.0.0.1:3261", "10.0.0.1:3261"),
            ("NAS.example", "nas.example:3260"),
            ("[fd00:0::1]", "[fd00::1]:3260"),
            ("[fd00::1]:860", "[fd00::1]:860"),
        ] {
            let portal = Portal::new(text).unwrap();
            assert_eq!(portal.to_string(), shown);
            assert_eq!(Portal::new(shown), Ok(portal));
        }
        for bad in [
            "", ":3260", "fd00::1", "[fd00::1", "[nas]", "[::1]x", "a:0", "a:x", "a:70000", "a/b", "-a",
            "../a", "a b",
        ] {
            assert!(Portal::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_target_has_one_of_three_names() {
        for good in [
            "iqn.2026-11.io.volumed:one",
            "iqn.2001-04.com.example",
            "iqn.2001-04.com.example:storage:disk2.sys1",
            "eui.02004567A425678D",
            "naa.52004567BA64678D",
            "naa.62004567BA64678D0123456789ABCDEF",
        ] {
            assert_eq!(TargetName::new(good).unwrap().as_str(), good.to_lowercase());
        }
        let long = format!("iqn.2026-11.io.volumed:{}", "x".repeat(220));
        for bad in [
            "",
            "iqn",
            "iqn.",
            "iqn.2026.io:x",
            "iqn.2026-11:x",
            "iqn.2026-11.io:",
            "iqn.2026-11.io:a/b",
            "eui.02",
            "naa.52004567BA64678",
            "iqn.2026-11.io:a b",
            "x.2026-11.io",
            "iqn.2026-11.io:a\n",
            "iqn.2026-11./..:x",
            &long,
        ] {
            assert!(TargetName::new(bad).is_err(), "{bad}");
        }
    }
}
