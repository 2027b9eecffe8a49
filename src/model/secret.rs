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

/// One secret value: the key of an encrypted disk. Not serialisable, and Debug shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the value, every byte of which counts: a line's end too.
    pub fn new(value: impl Into<Vec<u8>>) -> Self {
        Self(value.into())
    }

    /// Returns the value: for the one program it is meant for.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_secret_is_shown() {
        assert_eq!(format!("{:?}", Some(Secret::new("hush"))), "Some(***)");
        let map = SecretMap::new([("key".to_owned(), "hush".to_owned())].into());
        assert_eq!(format!("{map:?}"), "{\"key\": \"***\"}");
    }
}
