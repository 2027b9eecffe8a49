//! Encryption at rest: what is intended with a device that gets a LUKS2 header, and under which name it is open.

use serde::{Deserialize, Serialize};

use super::{DiskIdentity, FsUuid};

/// What is to be made of a device: in the record, and synced, before the host is asked to encrypt it. The file system comes
/// later, on the open device, with an `Intent` of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LuksIntent {
    /// The UUID that the header is to get, chosen at random: by it one that was interrupted is known again.
    pub uuid: FsUuid,
    /// The disk that was looked at.
    pub identity: DiskIdentity,
    /// A device that has fewer bytes is not the one that was meant.
    pub least_bytes: u64,
    /// It may have been started with this very intent before, and what became of it is not known; nothing was ever recorded as
    /// encrypted, formatted or mounted.
    pub begun: bool,
}

/// The name of a device-mapper device: `/dev/mapper/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MapperName(String);

impl MapperName {
    /// Takes letters, digits and `_ . + -`, 100 of them at most (the kernel has 127, and its UUID names it once more); neither
    /// `control`, which is device mapper's own, nor a name that begins with a dot or a dash. Anything else becomes `None`.
    pub fn new(name: impl Into<String>) -> Option<Self> {
        const MOST: usize = 100;
        let name = name.into();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
        let good = !name.is_empty() && name.len() <= MOST && name.bytes().all(fits);
        (good && name != "control" && !name.starts_with(['.', '-'])).then_some(Self(name))
    }

    /// Returns it as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for MapperName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<MapperName> for String {
    fn from(name: MapperName) -> Self {
        name.0
    }
}

impl TryFrom<String> for MapperName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(text.clone()).ok_or_else(|| format!("{text:?} is no name of a device-mapper device"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_file_s_and_no_option_s() {
        for good in ["a", "volumed-0f1e2d3c", "x_1.2+3"] {
            assert!(MapperName::new(good).is_some(), "{good}");
        }
        for bad in ["", "control", ".", "..", "-a", "a/b", "a b", "a\n", "\u{e9}", &"x".repeat(101)] {
            assert!(MapperName::new(bad).is_none(), "{bad:?}");
        }
    }
}
