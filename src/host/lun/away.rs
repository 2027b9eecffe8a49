//! Taking a disk of a storage system away from the kernel, once nobody has it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio::time::Instant;

use super::super::{device_users, loops};
use super::error::{LunCause, Refusal};
use super::sysfs::Disk;
use super::tools::Host;
use crate::error::Chain;

/// How long somebody may have the disk open who looks only: udev.
const PASSING: Duration = Duration::from_secs(2);

/// How long what was written to it may take to get there.
const FLUSHED: Duration = Duration::from_secs(30);

const TICK: Duration = Duration::from_millis(50);

/// Takes disks away, all of them paths of one: first from multipathd, then from the kernel.
pub(super) async fn take_away(host: &Host, disks: &[Disk]) -> Result<(), Refusal> {
    while let Some(map) = disks.iter().find_map(|disk| host.roots.map_of(disk)) {
        unused(&host.roots.dev.join("mapper").join(&map.name)).await?;
        host.part(&map, disks).await?;
    }
    let mut claimed = Vec::new();
    for disk in disks {
        claimed.extend(claim(host, disk).await?);
    }
    for disk in disks {
        let node = host.roots.node(disk).display().to_string();
        // What cannot be written any more is lost with its session, and nobody is left who could be told.
        let _flushed = host.run("blockdev", "util-linux", &["--flushbufs", &node], FLUSHED).await;
    }
    let deleted = disks.iter().try_for_each(|disk| host.roots.delete(disk));
    // Until here nobody could mount it.
    drop(claimed);
    deleted
}

/// Makes sure that nobody has a disk. As long as what is returned is open nobody else can mount it.
async fn claim(host: &Host, disk: &Disk) -> Result<Option<OwnedFd>, Refusal> {
    let node = host.roots.node(disk);
    let until = Instant::now() + PASSING;
    loop {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // Gone.
        let Some(number) = block_number(&node) else { return Ok(None) };
        let who = match rustix::fs::open(&node, flags, Mode::empty()) {
            Ok(fd) => match who_has(&node, number)? {
                None => return Ok(Some(fd)),
                Some(who) => who,
            },
            Err(Errno::BUSY) => match host.roots.built_on(disk) {
                Some(holder) => format!("it is in use by /dev/{holder}, which is built on it"),
                None => "it is in use by the kernel (a mount, swap, RAID)".to_owned(),
            },
            // Its session is lost: nobody can have it for long.
            Err(_) => return Ok(None),
        };
        if Instant::now() >= until {
            return Err(Refusal::new(LunCause::InUse, format!("{}: {who}", node.display())));
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Makes sure that nobody has a multipath device; a mount of its node would not keep it from being taken apart.
async fn unused(node: &Path) -> Result<(), Refusal> {
    let until = Instant::now() + PASSING;
    while let Some(number) = block_number(node)
        && let Some(who) = who_has(node, number)?
    {
        if Instant::now() >= until {
            return Err(Refusal::new(LunCause::InUse, format!("{}: {who}", node.display())));
        }
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

/// Returns the number of a block device, if there is one.
fn block_number(node: &Path) -> Option<(u32, u32)> {
    let stat = rustix::fs::stat(node).ok()?;
    let is_block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    is_block.then(|| (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)))
}

/// Says who has a device although it can be opened alone: a loop device over it (a kubelet's and our lock of a raw volume), a
/// mount that shows its node to a pod, a process that has it open. What cannot be seen may be somebody.
fn who_has(node: &Path, number: (u32, u32)) -> Result<Option<String>, Refusal> {
    let doing = || format!("look who has {}", node.display());
    let all = loops::list_if(|_shown, _going| true);
    let all = all.map_err(|error| Refusal::failed(doing(), Chain(&error)))?;
    if let Some(one) = all.iter().find(|one| one.device() == number) {
        return Ok(Some(format!("it is in use by the loop device {}", one.node().display())));
    }
    for look in [device_users::shown, device_users::look] {
        let seen = look(number).map_err(|error| Refusal::failed(doing(), error))?;
        match (seen.holder, seen.unseen) {
            (None, None) => {}
            (Some(holder), _) => return Ok(Some(format!("it is in use by {holder}"))),
            (None, Some(what)) => {
                return Ok(Some(format!("it cannot be told whether it is in use: cannot look at {what}")));
            }
        }
    }
    Ok(None)
}
