//! Device mapper: which device has a name, what it is, and how it goes. Asked is `dmsetup`, since of a device without a table,
//! which a killed cryptsetup may leave, sysfs shows nothing.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::device_users;
use super::super::exec::{Ended, Tools};
use super::error::{DiskError, failed};
use crate::model::{FsUuid, MapperName};

const PACKAGE: &str = "dmsetup";

/// How long dmsetup may take: it waits for udev.
const LIMIT: Duration = Duration::from_secs(60);

/// How long somebody may have it open who looks only, udev first of all.
const PASSING: Duration = Duration::from_secs(10);

/// Where the driver says that it is there.
const DRIVER: &str = "/sys/class/misc/device-mapper";

/// A device-mapper device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) uuid: String,
    pub(super) number: (u32, u32),
    /// How often it is open, mounts included.
    open: u32,
    /// It has a table: one that was just made, and whose maker was killed, has none.
    pub(super) live: bool,
}

/// Returns its node.
pub(super) fn node(name: &MapperName) -> PathBuf {
    Path::new("/dev/mapper").join(name.as_str())
}

async fn dmsetup(
    tools: &Tools,
    doing: &'static str,
    name: &MapperName,
    arguments: &[&str],
) -> Result<Ended, DiskError> {
    let tool = tools.tool("dmsetup", PACKAGE)?;
    Ok(tools.run(doing, &node(name), &tool, arguments, LIMIT).await?)
}

fn unexpected(doing: &str, name: &MapperName, ended: &Ended) -> DiskError {
    let why = format!("dmsetup: {}: {}", ended.status, ended.said);
    DiskError::Failed { doing: doing.to_owned(), path: node(name), why }
}

/// Finds the device with a name.
///
/// # Errors
/// When dmsetup is missing, fails, or is not understood.
pub(super) async fn find(tools: &Tools, name: &MapperName) -> Result<Option<Mapping>, DiskError> {
    const DOING: &str = "look for the device";
    const LIST: [&str; 7] =
        ["info", "-c", "--noheadings", "--separator", "\t", "-o", "name,uuid,major,minor,open,attr"];
    if matches!(Path::new(DRIVER).try_exists(), Ok(false)) {
        return Ok(None);
    }
    let ended = dmsetup(tools, DOING, name, &LIST).await?;
    if !ended.status.success() {
        return Err(unexpected(DOING, name, &ended));
    }
    let text = String::from_utf8_lossy(&ended.stdout);
    let Some(line) = text.lines().find(|line| line.split('\t').next() == Some(name.as_str())) else {
        return Ok(None);
    };
    understand(line).map(Some).ok_or_else(|| unexpected(DOING, name, &ended))
}

/// Reads `name<TAB>uuid<TAB>254<TAB>0<TAB>1<TAB>L--w`.
fn understand(line: &str) -> Option<Mapping> {
    let mut fields = line.split('\t').skip(1).map(str::trim);
    let uuid = fields.next()?.to_owned();
    let number = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Mapping { uuid, number, open: fields.next()?.parse().ok()?, live: fields.next()?.starts_with('L') })
}

/// Takes a device away.
///
/// # Errors
/// `InUse`: somebody has it, and it is as it was.
pub(super) async fn remove(tools: &Tools, name: &MapperName, mapping: &Mapping) -> Result<(), DiskError> {
    const DOING: &str = "close";
    let in_use = || {
        let holder = device_users::first(mapping.number, None, None).ok().flatten();
        let holder = holder.unwrap_or_else(|| "the kernel (a mount, swap, RAID, a mapping)".to_owned());
        DiskError::InUse { path: node(name), holder }
    };
    let until = tokio::time::Instant::now() + PASSING;
    while let Some(now) = find(tools, name).await? {
        if now.uuid != mapping.uuid || now.number != mapping.number {
            return Err(DiskError::OtherMapping {
                path: node(name),
                found: "it became another meanwhile".to_owned(),
            });
        }
        let late = tokio::time::Instant::now() > until;
        if now.open == 0 {
            let ended = dmsetup(tools, DOING, name, &["remove", "--retry", name.as_str()]).await?;
            // Whoever came in between is waited for; any other failure stays one.
            if !ended.status.success() && (late || !ended.said.contains("busy")) {
                return Err(unexpected(DOING, name, &ended));
            }
        } else if late {
            return Err(in_use());
        } else {
            tokio::time::sleep(PASSING / 100).await;
        }
    }
    Ok(())
}

/// Returns at which byte of the device below the content begins.
///
/// # Errors
/// When that is not found out.
pub(super) async fn offset(tools: &Tools, name: &MapperName) -> Result<u64, DiskError> {
    const DOING: &str = "read the table of";
    // It shows zeros, or the name in the keyring, in the place of the key.
    let ended = dmsetup(tools, DOING, name, &["table", name.as_str()]).await?;
    let text = String::from_utf8_lossy(&ended.stdout);
    // `0 98304 crypt aes-xts-plain64 KEY 0 253:0 32768 [options]`
    let fields: Vec<&str> = text.split_whitespace().collect();
    let sectors = match fields.as_slice() {
        [_, _, "crypt", _, _, _, _, offset, ..] => offset.parse::<u64>().ok(),
        _ => None,
    };
    sectors.and_then(|sectors| sectors.checked_mul(512)).filter(|_| ended.status.success()).ok_or_else(|| {
        unexpected(DOING, name, &Ended { said: "no table of one crypt target".to_owned(), ..ended })
    })
}

impl Mapping {
    /// Returns whether it is the open LUKS2 device with this UUID.
    pub(super) fn is_luks(&self, uuid: &FsUuid) -> bool {
        self.uuid.starts_with(&format!("CRYPT-LUKS2-{}-", uuid.as_str().replace('-', "")))
    }

    fn sysfs(&self) -> PathBuf {
        let (major, minor) = self.number;
        PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
    }

    /// Returns the directories of the devices that it lies on.
    fn below(&self) -> Result<Vec<PathBuf>, DiskError> {
        let directory = self.sysfs().join("slaves");
        let looked = failed("look what is below", &directory);
        let entries = std::fs::read_dir(&directory).map_err(&looked)?;
        entries.map(|entry| Ok(entry.map_err(&looked)?.path())).collect()
    }

    /// Returns whether it lies on this device and no other.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn is_over(&self, (major, minor): (u32, u32)) -> Result<bool, DiskError> {
        let wanted = format!("{major}:{minor}");
        match self.below()?.as_slice() {
            [one] => {
                let number = one.join("dev");
                let text = std::fs::read_to_string(&number).map_err(failed("read", &number))?;
                Ok(text.trim() == wanted)
            }
            _ => Ok(false),
        }
    }

    /// Returns its size in bytes, and that of the device that it lies on.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn bytes(&self) -> Result<(u64, u64), DiskError> {
        let of = |directory: &Path| {
            let path = directory.join("size");
            let text = std::fs::read_to_string(&path).map_err(failed("read", &path))?;
            let sectors = text.trim().parse::<u64>().ok().and_then(|sectors| sectors.checked_mul(512));
            sectors.ok_or_else(|| failed("understand", &path)(std::io::Error::other(text)))
        };
        match self.below()?.as_slice() {
            [one] => Ok((of(&self.sysfs())?, of(one)?)),
            several => Err(DiskError::Failed {
                doing: "find the size of what is below".to_owned(),
                path: self.sysfs(),
                why: format!("it lies on {} devices", several.len()),
            }),
        }
    }

    /// Looks that the node of a name is this device's.
    ///
    /// # Errors
    /// `Failed` with what to do where it is missing.
    pub(super) fn has_node(&self, name: &MapperName) -> Result<(), DiskError> {
        let path = node(name);
        let (major, minor) = self.number;
        let looked = std::fs::metadata(&path).map_err(failed("find the node", &path))?;
        let number = looked.rdev();
        if looked.file_type().is_block_device()
            && (rustix::fs::major(number), rustix::fs::minor(number)) == (major, minor)
        {
            return Ok(());
        }
        let why = format!("it is not the device {major}:{minor}; `dmsetup mknodes` makes it anew");
        Err(DiskError::Failed { doing: "use".to_owned(), path, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dmsetup_lists_is_understood() {
        let uuid = "CRYPT-LUKS2-0f1e2d3c4b5a69788796a5b4c3d2e1f0-data";
        let found = understand(&format!("data\t{uuid}\t254\t3\t1\tL--w")).unwrap();
        assert_eq!(found, Mapping { uuid: uuid.to_owned(), number: (254, 3), open: 1, live: true });
        let fs_uuid = |text| FsUuid::new(text).unwrap();
        assert!(found.is_luks(&fs_uuid("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")));
        assert!(!found.is_luks(&fs_uuid("1f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")));
        assert!(!understand("data\t\t254\t3\t0\t---w").unwrap().live);
        for bad in ["", "data", "data\tx\ty\t3\t0\tL--w", "No devices found"] {
            assert_eq!(understand(bad), None, "{bad}");
        }
    }
}
