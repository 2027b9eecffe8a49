//! Several paths to one disk, joined by multipathd into one device.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::error::{LunCause, Refusal};
use super::sysfs::{Disk, Map, read};
use super::tools::{Host, words};

/// How long multipathd is waited for (kubelet.md 4.8).
const JOINED: Duration = Duration::from_secs(10);

/// How long each of its programs may take.
const LIMIT: Duration = Duration::from_secs(30);

const PACKAGE: &str = "multipath-tools";

impl Host {
    /// Returns whether multipathd runs. Its socket says nothing: systemd has that.
    pub(super) fn has_multipathd(&self) -> bool {
        let pid = read(&self.roots.run.join("multipathd.pid"));
        let name = pid.and_then(|pid| read(&self.roots.proc.join(pid).join("comm")));
        name.as_deref() == Some("multipathd")
    }

    /// Returns the node to use of a disk with these paths, and what is to be told of it: that of the multipath device, if there is
    /// or will soon be one.
    pub(super) async fn join(&self, paths: &[(PathBuf, Disk)]) -> Result<(PathBuf, Option<String>), Refusal> {
        let Some((first, _)) = paths.first() else {
            return Err(Refusal::new(LunCause::NoLun, "it has no path"));
        };
        let several = paths.len() > 1;
        let until = Instant::now() + JOINED;
        loop {
            let map = self.map_over(paths);
            let late = Instant::now() >= until;
            match map {
                // udev makes its node a moment after the kernel has it.
                Some(map) if late || map.paths >= paths.len() && self.has_node(&map) => {
                    return Ok((self.roots.dev.join("mapper").join(map.name), None));
                }
                None if !several => return Ok((first.clone(), None)),
                None if !self.has_multipathd() => {
                    let note = format!(
                        "it has {} paths, and only the first is used: install multipath-tools and start multipathd, or it is \
                         lost with that path",
                        paths.len()
                    );
                    return Ok((first.clone(), Some(note)));
                }
                None if late => {
                    let note = format!(
                        "it has {} paths, which multipathd did not join within {} s; only the first is used: look at \
                         find_multipaths in multipath.conf(5)",
                        paths.len(),
                        JOINED.as_secs()
                    );
                    return Ok((first.clone(), Some(note)));
                }
                Some(_) | None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Returns the node to use of a disk that is connected, without waiting for anything. The multipath device, if there is one,
    /// takes over how large its paths are by now, if `resize`.
    ///
    /// # Errors
    /// `NoLun` without a path; as `resize`.
    pub(super) async fn chosen(&self, paths: &[(PathBuf, Disk)], resize: bool) -> Result<PathBuf, Refusal> {
        let Some((first, _)) = paths.first() else {
            return Err(Refusal::new(LunCause::NoLun, "it has no path"));
        };
        let Some(map) = self.map_over(paths) else { return Ok(first.clone()) };
        if resize {
            self.resize(&map).await?;
        }
        Ok(self.roots.dev.join("mapper").join(map.name))
    }

    /// Returns the multipath device over these paths: that with most of them, should there be several.
    fn map_over(&self, paths: &[(PathBuf, Disk)]) -> Option<Map> {
        paths.iter().filter_map(|(_, disk)| self.roots.map_of(disk)).max_by_key(|map| map.paths)
    }

    fn has_node(&self, map: &Map) -> bool {
        matches!(self.roots.dev.join("mapper").join(&map.name).try_exists(), Ok(true))
    }

    /// Lets a multipath device take what its paths have by now.
    ///
    /// # Errors
    /// When multipathd does not do it.
    pub(super) async fn resize(&self, map: &Map) -> Result<(), Refusal> {
        if !self.has_multipathd() {
            return Ok(());
        }
        let ended = self.run("multipathd", PACKAGE, &["resize", "map", &map.name], LIMIT).await?;
        // It says "fail" and ends well.
        if ended.status.success() && !ended.said.contains("fail") {
            return Ok(());
        }
        Err(Refusal::new(LunCause::Other, words("multipathd resize map", &ended)))
    }

    /// Takes a multipath device apart, once nobody has it; its paths stay.
    ///
    /// # Errors
    /// `InUse`
    pub(super) async fn part(&self, map: &Map, paths: &[Disk]) -> Result<(), Refusal> {
        let ended = self.run("multipath", PACKAGE, &["-f", &map.name], LIMIT).await?;
        let until = Instant::now() + Duration::from_secs(5);
        while paths.iter().any(|disk| self.roots.map_of(disk).is_some()) {
            if Instant::now() >= until {
                let said =
                    format!("the multipath device {} stays: {}", map.name, words("multipath -f", &ended));
                return Err(Refusal::new(LunCause::InUse, said));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}
