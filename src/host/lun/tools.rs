//! The programs that connect: iscsiadm, multipath, multipathd, blockdev, each with a deadline and no longer than the child lives.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::HostError;
use super::super::exec::{Ended, Tools};
use super::error::{LunCause, Refusal};
use super::sysfs::Roots;
use crate::error::Chain;

/// Where a child works.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) roots: Roots,
    tools: Tools,
}

impl Host {
    pub(super) fn new(tools_in: &[OsString], roots: Roots) -> Self {
        let directories: Vec<PathBuf> = tools_in.iter().map(PathBuf::from).collect();
        Self { roots, tools: Tools::holding(Vec::new(), directories.into()) }
    }

    /// Runs a program to its end, whichever that is.
    ///
    /// # Errors
    /// `NoTool`, `Late`, `Other`.
    pub(super) async fn run(
        &self,
        name: &str,
        package: &'static str,
        arguments: &[&str],
        limit: Duration,
    ) -> Result<Ended, Refusal> {
        let tool = self.tools.tool(name, package).map_err(|_missing| {
            Refusal::new(LunCause::NoTool, format!("there is no {name} on this host; install {package}"))
        })?;
        let ended = self.tools.run("run", Path::new(name), &tool, arguments, limit).await;
        ended.map_err(|error| match error {
            HostError::Deadline { seconds, .. } => {
                Refusal::new(LunCause::Late, format!("{name}: no answer within {seconds} s"))
            }
            other => Refusal::new(LunCause::Other, Chain(&other).to_string()),
        })
    }
}

/// Says how a program ended that did not do what it was told.
pub(super) fn words(name: &str, ended: &Ended) -> String {
    if ended.said.is_empty() {
        format!("{name}: {}", ended.status)
    } else {
        format!("{name}: {}", ended.said)
    }
}
