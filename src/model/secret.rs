//! Secret values, which never reach a log, an event, an error text, a metric or a record (design rule 5).

use std::collections::BTreeMap;
use std::fmt;

/// A Secret's data as strings (CSI secrets must be UTF-8, csi.md 2.1). Not serialisable, and Debug shows keys only.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SecretMap(BTreeMap<String, String>);

impl SecretMap {
    /// Takes the values.
    pub fn new(values: BTreeMap<String, String>) -> Self {
        Self(values)
    }

    /// Returns the values: for the one RPC they are meant for.
    pub fn reveal(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for SecretMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|k| (k, "***"))).finish()
    }
}
