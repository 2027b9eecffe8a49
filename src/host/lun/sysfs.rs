//! What the kernel tells of iSCSI sessions, SCSI disks and multipath devices. Where `/sys`, `/dev` and `/run` are is told, so that a
//! test makes its own.

use std::io;
use std::path::{Path, PathBuf};

use super::error::{LunCause, Refusal};
use super::iscsi::{INTERFACE, RESET_TIMEOUT};
use crate::model::Portal;

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Roots {
    pub(super) sys: PathBuf,
    pub(super) dev: PathBuf,
    pub(super) run: PathBuf,
    pub(super) proc: PathBuf,
    /// Where open-iscsi may keep its records: Debian's place, and that of others.
    pub(super) databases: Vec<PathBuf>,
}

/// An iSCSI session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    /// `session3`
    pub(super) name: String,
    pub(super) target: String,
    /// It was made here.
    pub(super) is_ours: bool,
    /// `LOGGED_IN`, `FAILED`, `FREE`.
    pub(super) state: String,
    /// Host and port as the record has them, then as they are connected with.
    pub(super) portals: Vec<(String, u16)>,
    /// The number of its SCSI host.
    host: u32,
    /// Where its disks are.
    directory: PathBuf,
}

/// A path to a disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Disk {
    /// `2:0:0:1`
    pub(super) address: String,
    /// `sdb`
    pub(super) name: String,
    /// The directory of the SCSI device.
    directory: PathBuf,
}

/// A multipath device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    /// As it is below `/dev/mapper`.
    pub(super) name: String,
    /// How many paths it has.
    pub(super) paths: usize,
}

impl Roots {
    /// Those of this host.
    pub(super) fn real() -> Self {
        Self {
            sys: "/sys".into(),
            dev: "/dev".into(),
            run: "/run".into(),
            proc: "/proc".into(),
            databases: ["/etc/iscsi", "/var/lib/iscsi"].map(PathBuf::from).into(),
        }
    }

    /// Lists the sessions with a target.
    ///
    /// # Errors
    /// When sysfs cannot be read. A session that ends meanwhile is left out.
    pub(super) fn sessions(&self, target: &str) -> Result<Vec<Session>, Refusal> {
        let class = self.sys.join("class/iscsi_session");
        let mut sessions = Vec::new();
        for name in names(&class)? {
            let of_class = class.join(&name);
            let tell = |file: &str| read(&of_class.join(file)).unwrap_or_default();
            let is_it = tell("targetname").eq_ignore_ascii_case(target);
            let (true, Some(number), Some(host)) = (is_it, name.strip_prefix("session"), host_of(&of_class))
            else {
                continue;
            };
            let connection = self.sys.join(format!("class/iscsi_connection/connection{number}:0"));
            let portal = |prefix: &str| {
                let of = |what| read(&connection.join(format!("{prefix}{what}")));
                Some((of("address")?, of("port")?.parse().ok()?))
            };
            let portals = [portal("persistent_"), portal("")].into_iter().flatten().collect();
            sessions.push(Session {
                target: target.to_owned(),
                is_ours: tell("ifacename") == INTERFACE && tell("lu_reset_tmo") == RESET_TIMEOUT,
                state: tell("state"),
                portals,
                host,
                directory: of_class.join("device"),
                name,
            });
        }
        Ok(sessions)
    }

    /// Lists the disks of a session: all, or the one with this number.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub(super) fn disks(&self, session: &Session, lun: Option<u32>) -> Result<Vec<Disk>, Refusal> {
        let mut disks = Vec::new();
        for target in names(&session.directory)?.iter().filter(|name| name.starts_with("target")) {
            let directory = session.directory.join(target);
            for address in names(&directory)? {
                let number = address.rsplit_once(':').and_then(|(_, number)| number.parse::<u32>().ok());
                let Some(number) = number else { continue };
                if lun.is_none_or(|lun| lun == number) {
                    disks.extend(self.disk(directory.join(&address), address));
                }
            }
        }
        Ok(disks)
    }

    /// Counts what a session has, disks or not.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub(super) fn devices(&self, session: &Session) -> Result<usize, Refusal> {
        let targets = names(&session.directory)?;
        let targets = targets.iter().filter(|name| name.starts_with("target"));
        targets.map(|target| names(&session.directory.join(target))).try_fold(0, |sum, names| {
            Ok(sum + names?.iter().filter(|name| name.split(':').count() == 4).count())
        })
    }

    /// Takes the directory of a SCSI device for a disk's, if it is one.
    fn disk(&self, directory: PathBuf, address: String) -> Option<Disk> {
        let name = names(&directory.join("block")).ok()?.into_iter().next()?;
        Some(Disk { address, name, directory })
    }

    /// Returns the disk of a node's name.
    pub(super) fn disk_named(&self, name: &str) -> Option<Disk> {
        let block = self.sys.join("class/block").join(name);
        let device = std::fs::read_link(block.join("device")).ok()?;
        let address = device.file_name()?.to_str()?.to_owned();
        self.disk(block.join("device"), address).filter(|disk| disk.name == name)
    }

    /// Lists the disks that a multipath device joins.
    pub(super) fn disks_below(&self, map: &str) -> Vec<Disk> {
        let slaves = names(&self.sys.join("class/block").join(map).join("slaves")).unwrap_or_default();
        let disks = slaves.iter().filter_map(|name| self.disk_named(name));
        disks.filter(|disk| self.map_of(disk).is_some()).collect()
    }

    /// Has the kernel look for one disk of a session.
    ///
    /// # Errors
    /// When it refuses.
    pub(super) fn scan(&self, session: &Session, lun: u8) -> Result<(), Refusal> {
        // Channel and target are always 0. Not all of them: a disk that nobody asked for would be nobody's to take away.
        write(&self.sys.join(format!("class/scsi_host/host{}/scan", session.host)), &format!("0 0 {lun}"))
    }

    /// Has the kernel look for all disks of all Fibre Channel adapters; one of them is enough. Not of other SCSI hosts: an iSCSI
    /// session would show disks that nobody asked for, and who looks for its own is nobody's to disturb.
    ///
    /// # Errors
    /// `NoLun` where there is no adapter; `Other` when all refuse.
    pub(super) fn scan_fibre_channel(&self) -> Result<(), Refusal> {
        let class = self.sys.join("class/scsi_host");
        let adapters = names(&self.sys.join("class/fc_host"))?;
        let done: Vec<Result<(), Refusal>> =
            adapters.iter().map(|host| write(&class.join(host).join("scan"), "- - -")).collect();
        if done.is_empty() {
            let said = "this host has no Fibre Channel adapter (/sys/class/fc_host is empty)";
            return Err(Refusal::new(LunCause::NoLun, said));
        }
        if done.iter().any(Result::is_ok) { Ok(()) } else { done.into_iter().collect() }
    }

    /// Has the kernel ask how large a disk is.
    ///
    /// # Errors
    /// When it refuses.
    pub(super) fn rescan(&self, disk: &Disk) -> Result<(), Refusal> {
        write(&disk.directory.join("rescan"), "1")
    }

    /// Has the kernel forget a disk. One that is gone already is fine.
    ///
    /// # Errors
    /// When it refuses.
    pub(super) fn delete(&self, disk: &Disk) -> Result<(), Refusal> {
        let file = disk.directory.join("delete");
        match std::fs::OpenOptions::new().write(true).open(&file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Refusal::failed(format!("open {}", file.display()), e)),
            Ok(_there) => write(&file, "1"),
        }
    }

    /// Returns what the disk says of itself wherever it is connected.
    fn wwid(&self, disk: &Disk) -> Option<String> {
        read(&disk.directory.join("wwid"))
    }

    /// Refuses paths that lead to different disks, each with the name by which it is told of. A disk that does not say which it is
    /// is not compared.
    ///
    /// # Errors
    /// `Other`, with two of them.
    pub(super) fn one_disk<'a>(
        &self,
        paths: impl Iterator<Item = (&'a str, &'a Disk)>,
    ) -> Result<(), Refusal> {
        let mut wwids: Vec<(String, &str)> =
            paths.filter_map(|(name, disk)| Some((self.wwid(disk)?, name))).collect();
        wwids.sort();
        match (wwids.first(), wwids.last()) {
            (Some((one, here)), Some((other, there))) if one != other => Err(Refusal::new(
                LunCause::Other,
                format!("its paths lead to different disks: {one} ({here}) and {other} ({there})"),
            )),
            _ => Ok(()),
        }
    }

    /// Returns the multipath device that has a disk as one of its paths.
    pub(super) fn map_of(&self, disk: &Disk) -> Option<Map> {
        let holders = names(&self.sys.join("class/block").join(&disk.name).join("holders")).ok()?;
        holders.iter().find_map(|holder| {
            let directory = self.sys.join("class/block").join(holder);
            let uuid = read(&directory.join("dm/uuid"))?;
            let name = read(&directory.join("dm/name"))?;
            let paths = names(&directory.join("slaves")).map_or(0, |slaves| slaves.len());
            uuid.starts_with("mpath-").then_some(Map { name, paths })
        })
    }

    /// Returns the node of a disk.
    pub(super) fn node(&self, disk: &Disk) -> PathBuf {
        self.dev.join(&disk.name)
    }

    /// Returns who has a disk that is to be taken away, besides multipath devices: another device that is built on it.
    pub(super) fn built_on(&self, disk: &Disk) -> Option<String> {
        let holders = names(&self.sys.join("class/block").join(&disk.name).join("holders")).ok()?;
        holders.into_iter().next()
    }
}

impl Session {
    /// Returns whether the session works.
    pub(super) fn is_up(&self) -> bool {
        self.state == "LOGGED_IN"
    }

    /// Returns whether it is with this portal.
    pub(super) fn is_with(&self, portal: &Portal) -> bool {
        self.portals.iter().any(|(host, port)| {
            let same = Portal::new(&if host.contains(':') { format!("[{host}]") } else { host.clone() });
            *port == portal.port() && same.is_ok_and(|same| same.host() == portal.host())
        })
    }
}

/// The number of the SCSI host on the way to a session: `../../devices/platform/host2/session1/iscsi_session/session1`.
fn host_of(session: &Path) -> Option<u32> {
    let link = std::fs::read_link(session).ok()?;
    let mut parts = link.iter().filter_map(|part| part.to_str()?.strip_prefix("host")?.parse().ok());
    parts.next()
}

/// Lists a directory; one that is not there has nothing in it.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, Refusal> {
    let failed = |e: io::Error| Refusal::failed(format!("read {}", directory.display()), e);
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

pub(super) fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn write(path: &Path, text: &str) -> Result<(), Refusal> {
    std::fs::write(path, text).map_err(|e| {
        let cause = if e.raw_os_error() == Some(libc::ENODEV) { LunCause::Lost } else { LunCause::Other };
        Refusal::new(cause, format!("cannot write {text:?} to {}: {e}", path.display()))
    })
}
