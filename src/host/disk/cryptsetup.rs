//! cryptsetup(8): how it is run, and how it ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::DiskError;
use super::work::Key;
use crate::host::HostError;
use crate::host::exec::{Ended, Tools};

/// How long cryptsetup may take: a person may have added a key whose function costs a minute here.
pub(super) const LIMIT: Duration = Duration::from_secs(300);

/// "RETURN CODES": wrong parameters, which includes a device without a header.
pub(super) const WRONG: i32 = 1;
/// No key slot is opened by the key.
pub(super) const NO_PERMISSION: i32 = 2;
/// The name or the device is in use.
pub(super) const EXISTS: i32 = 5;

/// Finds it.
///
/// # Errors
/// `Io` with the package to install.
pub(super) fn tool(tools: &Tools) -> Result<PathBuf, HostError> {
    tools.tool("cryptsetup", "cryptsetup-bin")
}

/// Runs it, and lets it read the key. Neither its arguments nor its words have anything of that.
///
/// # Errors
/// When it is missing, cannot be run, or is late. How it ended is for the caller to judge.
pub(super) async fn run(
    tools: &Tools,
    doing: &'static str,
    about: &Path,
    arguments: &[&str],
    key: Option<&Key>,
) -> Result<Ended, DiskError> {
    let tool = tool(tools)?;
    let key = key.map(Key::reveal);
    Ok(tools.feed(doing, about, &tool, ["--batch-mode"].iter().chain(arguments), LIMIT, key).await?)
}

/// Returns the error for an end that nobody expected.
pub(super) fn unexpected(doing: &str, about: &Path, ended: &Ended) -> DiskError {
    let why = format!("cryptsetup: {}: {}", ended.status, ended.said);
    DiskError::Failed { doing: doing.to_owned(), path: about.to_owned(), why }
}
