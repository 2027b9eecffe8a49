//! What an operator names.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{DriverName, ObjectRef};

/// The volumes that `volumectl pause` and `resume` are about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Every volume.
    All,
    /// Those of one pod or claim.
    Object(ObjectRef),
    /// Those of one driver.
    Driver(DriverName),
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("everything"),
            Self::Object(object) => object.fmt(f),
            Self::Driver(driver) => write!(f, "driver {driver}"),
        }
    }
}

/// What `volumectl release` and `adopt` are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handover {
    /// The volumes of one pod or claim.
    Object(ObjectRef),
    /// A volume on disk that volumed did not make, by its directory or the path its driver was told.
    Path(PathBuf),
}
