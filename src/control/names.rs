//! How an operator names an object: `pod/[NAMESPACE/]NAME` or `[pvc/][NAMESPACE/]NAME`; and what else can be named besides: a
//! driver, a path.

use std::fmt;
use std::path::{Component, PathBuf};
use std::str::FromStr;

use crate::model::{DriverName, Handover, ObjectRef, Scope};

/// A pod or claim as named on volumectl's command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName {
    /// Pod or claim.
    pub kind: Kind,
    /// `default` when none was given.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// The namespace of pods of which only the UID is known: their volumes were adopted.
const FOREIGN: &str = "foreign";

/// Whether this is a pod's UID: a UUID, or the hash that a kubelet gives to a static pod, both in hexadecimal digits.
fn is_uid(name: &str) -> bool {
    let digits = name.chars().filter(char::is_ascii_hexdigit).count();
    let dashes = name.chars().filter(|c| *c == '-').count();
    digits == 32 && digits + dashes == name.len() && matches!(dashes, 0 | 4)
}

/// The kinds of objects that can be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `pod/`
    Pod,
    /// `pvc/`, or no prefix.
    Claim,
}

/// A name that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {problem}; an object is named pod/[NAMESPACE/]NAME or [pvc/][NAMESPACE/]NAME")]
pub struct BadName {
    /// As given, cut to 80 characters.
    pub text: String,
    /// What is wrong.
    pub problem: &'static str,
}

impl ObjectName {
    /// Returns the object as the model names it.
    pub fn object(&self) -> ObjectRef {
        let kind = match self.kind {
            Kind::Pod => "Pod",
            Kind::Claim => "PersistentVolumeClaim",
        };
        ObjectRef::new(kind, &self.namespace, &self.name)
    }
}

impl FromStr for ObjectName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let bad = |problem| BadName { text: text.chars().take(80).collect(), problem };
        let (kind, rest) = match text.split_once('/') {
            Some(("pod" | "pods", rest)) => (Kind::Pod, rest),
            Some(("pvc" | "persistentvolumeclaim", rest)) => (Kind::Claim, rest),
            Some(_) | None => (Kind::Claim, text),
        };
        let (namespace, name) = rest.split_once('/').unwrap_or(("default", rest));
        // So are the pods called whose volumes were adopted; a claim of that name is `pvc/foreign/...`.
        let adopted = rest == text && namespace == FOREIGN && is_uid(name);
        let kind = if adopted { Kind::Pod } else { kind };
        if namespace.is_empty() || name.is_empty() {
            return Err(bad("has an empty part"));
        }
        if name.contains('/') {
            return Err(bad("has too many parts"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        let edge = |text: &str| text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !namespace.chars().all(plain) || !name.chars().all(plain) {
            return Err(bad("has a character that no Kubernetes name has"));
        }
        if !edge(namespace) || !edge(name) {
            return Err(bad("does not begin with a letter or digit"));
        }
        Ok(Self { kind, namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// What `pause` and `resume` take: an object, or `driver/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScopeName {
    /// A pod or claim.
    Object(ObjectName),
    /// All volumes of a driver.
    Driver(DriverName),
}

/// A scope that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadScope {
    /// Neither a driver nor an object.
    #[error("{0}, a driver is named driver/NAME")]
    Object(BadName),
    /// No driver can be called so.
    #[error("{text:?} names no driver: {problem}")]
    Driver {
        /// As given, cut to 80 characters.
        text: String,
        /// What is wrong.
        problem: &'static str,
    },
}

impl ScopeName {
    /// Returns the scope as the model names it.
    pub fn scope(&self) -> Scope {
        match self {
            Self::Object(object) => Scope::Object(object.object()),
            Self::Driver(driver) => Scope::Driver(driver.clone()),
        }
    }
}

impl FromStr for ScopeName {
    type Err = BadScope;

    fn from_str(text: &str) -> Result<Self, BadScope> {
        match text.strip_prefix("driver/") {
            None => text.parse().map(Self::Object).map_err(BadScope::Object),
            Some(name) => DriverName::new(name).map(Self::Driver).map_err(|bad| BadScope::Driver {
                text: text.chars().take(80).collect(),
                problem: bad.problem,
            }),
        }
    }
}

impl fmt::Display for ScopeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(object) => object.fmt(f),
            Self::Driver(driver) => write!(f, "driver/{driver}"),
        }
    }
}

/// What `release` takes: an object, or an absolute path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HandoverName {
    /// A pod or claim.
    Object(ObjectName),
    /// A volume's directory or target, without `.`, `..` and needless slashes.
    Path(PathBuf),
}

/// What can neither be an object nor a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHandover {
    /// Not an object.
    #[error("{0}, a path begins with /")]
    Object(BadName),
    /// A path that could mean more than one place.
    #[error("{path:?} has .. in it: give the path without")]
    Path {
        /// As given.
        path: PathBuf,
    },
}

impl HandoverName {
    /// Returns it as the model names it.
    pub fn handover(&self) -> Handover {
        match self {
            Self::Object(object) => Handover::Object(object.object()),
            Self::Path(path) => Handover::Path(path.clone()),
        }
    }
}

impl FromStr for HandoverName {
    type Err = BadHandover;

    fn from_str(text: &str) -> Result<Self, BadHandover> {
        if !text.starts_with('/') {
            return text.parse().map(Self::Object).map_err(BadHandover::Object);
        }
        let path = PathBuf::from(text);
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(BadHandover::Path { path });
        }
        Ok(Self::Path(path.components().collect()))
    }
}

impl fmt::Display for HandoverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(object) => object.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Pod => "pod",
            Kind::Claim => "pvc",
        };
        write!(f, "{kind}/{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_prefix_is_a_claim_and_without_namespace_in_default() {
        for (given, meant) in [
            ("data", "pvc/default/data"),
            ("db/data", "pvc/db/data"),
            ("pvc/data", "pvc/default/data"),
            ("pvc/db/data", "pvc/db/data"),
            ("pod/web", "pod/default/web"),
            ("pod/shop/web-0", "pod/shop/web-0"),
            ("pvc/pod/data", "pvc/pod/data"),
        ] {
            assert_eq!(given.parse::<ObjectName>().map(|n| n.to_string()), Ok(meant.to_owned()), "{given}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_is_refused_with_the_form_to_use() {
        for given in ["", "pod/", "/x", "a/b/c", "pod/a/b/c", "a b", "../etc", "x\u{1b}[31m"] {
            let error = given.parse::<ObjectName>().unwrap_err();
            assert!(error.to_string().contains("pod/[NAMESPACE/]NAME"), "{error}");
        }
    }

    #[test]
    fn the_pod_of_an_adopted_volume_is_named_by_its_uid() {
        let uid = "1f7b8f2e-6c0e-4c4e-9d0a-0a1b2c3d4e5f";
        for (given, meant) in [
            (format!("foreign/{uid}"), format!("pod/foreign/{uid}")),
            (format!("pod/foreign/{uid}"), format!("pod/foreign/{uid}")),
            (format!("pvc/foreign/{uid}"), format!("pvc/foreign/{uid}")),
            (format!("foreign/{}", "a0".repeat(16)), format!("pod/foreign/{}", "a0".repeat(16))),
            (format!("db/{uid}"), format!("pvc/db/{uid}")),
            ("foreign/data".to_owned(), "pvc/foreign/data".to_owned()),
        ] {
            assert_eq!(given.parse::<ObjectName>().map(|n| n.to_string()), Ok(meant), "{given}");
        }
    }

    #[test]
    fn a_scope_is_a_driver_or_an_object() {
        for (given, meant) in [
            ("driver/nfs.csi.k8s.io", "driver/nfs.csi.k8s.io"),
            ("data", "pvc/default/data"),
            ("pod/web", "pod/default/web"),
        ] {
            assert_eq!(given.parse::<ScopeName>().map(|n| n.to_string()), Ok(meant.to_owned()), "{given}");
        }
        for given in ["driver/", "driver/a b", "a/b/c", "pod/"] {
            let error = given.parse::<ScopeName>().unwrap_err().to_string();
            assert!(error.contains("driver"), "{given}: {error}");
        }
    }

    #[test]
    fn what_begins_with_a_slash_is_a_path() {
        for (given, meant) in [("/r/pods//x/./y/", "/r/pods/x/y"), ("pod/web", "pod/default/web")] {
            let name = given.parse::<HandoverName>().map(|name| name.to_string());
            assert_eq!(name, Ok(meant.to_owned()), "{given}");
        }
        for given in ["/r/../etc", "r/pods/x", ""] {
            assert!(given.parse::<HandoverName>().is_err(), "{given}");
        }
    }
}
