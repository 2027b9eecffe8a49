//! `[[tokens]]`: the files with service-account tokens. There is no API server to issue them, so others write them.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};

use super::values;

/// `[[tokens]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TokenConfig {
    /// Whose token it is.
    pub service_account: ServiceAccount,
    /// The audience that CSIDriver.tokenRequests names; empty: the API server's default.
    pub audience: String,
    /// The file with the token.
    #[serde(deserialize_with = "values::absolute")]
    pub file: PathBuf,
}

/// A service account, written `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct ServiceAccount {
    /// A DNS label.
    pub namespace: String,
    /// A DNS name.
    pub name: String,
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A text that names no service account.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a namespace and a service account such as \"default/robot\"")]
pub struct BadServiceAccount {
    text: String,
}

impl TryFrom<String> for ServiceAccount {
    type Error = BadServiceAccount;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bad = || BadServiceAccount { text: text.chars().take(80).collect() };
        let (namespace, name) = text.split_once('/').ok_or_else(bad)?;
        let names = is_label(namespace, 63) && name.len() <= 253 && name.split('.').all(|p| is_label(p, 253));
        if !names {
            return Err(bad());
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

fn is_label(text: &str, longest: usize) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= longest
        && text.starts_with(edge)
        && text.ends_with(edge)
        && text.chars().all(|c| edge(c) || c == '-')
}

/// Takes the list if it names each service account and audience once: which of two files counted would be a guess.
pub(super) fn without_duplicates<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<TokenConfig>, D::Error> {
    let given = Vec::<TokenConfig>::deserialize(from)?;
    let mut seen = BTreeSet::new();
    for token in &given {
        if !seen.insert((&token.service_account, &token.audience)) {
            return Err(serde::de::Error::custom(format!(
                "service account {} has two files for audience {:?}",
                token.service_account, token.audience
            )));
        }
    }
    Ok(given)
}
