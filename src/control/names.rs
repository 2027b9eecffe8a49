//! How an operator names an object: `pod/[NAMESPACE/]NAME` or `[pvc/][NAMESPACE/]NAME`.

use std::fmt;
use std::str::FromStr;

use crate::model::ObjectRef;

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
}
