//! Disks on Fibre Channel (kubelet.md 4.9): the adapters log in by themselves, so that a disk is there or appears when the kernel
//! is told to look.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::LunAttached;
use super::away::take_away;
use super::error::{LunCause, Refusal};
use super::sysfs::{Disk, names};
use super::tools::Host;
use crate::model::FcLun;

/// How long the disk is waited for after the kernel looked.
const APPEARS: Duration = Duration::from_secs(10);

const TICK: Duration = Duration::from_millis(50);

/// Finds the disk; has the kernel look for it once, where it is not there.
pub(super) async fn attach(host: &Host, lun: &FcLun) -> Result<LunAttached, Refusal> {
    let mut paths = paths(host, lun)?;
    if paths.is_empty() {
        host.roots.scan_fibre_channel()?;
        let until = Instant::now() + APPEARS;
        while paths.is_empty() {
            if Instant::now() >= until {
                return Err(missing());
            }
            tokio::time::sleep(TICK).await;
            paths = self::paths(host, lun)?;
        }
    } else {
        paths.iter().try_for_each(|(_, disk)| host.roots.rescan(disk))?;
    }
    one_disk(host, &paths)?;
    let (node, note) = host.join(&paths).await?;
    Ok(LunAttached { node, notes: note.into_iter().collect() })
}

/// Finds the node of the disk.
pub(super) async fn find(host: &Host, lun: &FcLun, rescan: bool) -> Result<PathBuf, Refusal> {
    let paths = paths(host, lun)?;
    if paths.is_empty() {
        return Err(missing());
    }
    one_disk(host, &paths)?;
    if rescan {
        paths.iter().try_for_each(|(_, disk)| host.roots.rescan(disk))?;
    }
    host.chosen(&paths, rescan).await
}

/// Takes all paths of the disk away.
pub(super) async fn detach(host: &Host, lun: &FcLun) -> Result<(), Refusal> {
    let paths = paths(host, lun)?;
    // Only one of them could have been attached, and which is not known any more.
    one_disk(host, &paths)?;
    let disks: Vec<Disk> = paths.into_iter().map(|(_, disk)| disk).collect();
    take_away(host, &disks).await
}

/// Refuses paths that lead to several disks: ports or names that were put together by mistake.
fn one_disk(host: &Host, paths: &[(PathBuf, Disk)]) -> Result<(), Refusal> {
    host.roots.one_disk(paths.iter().map(|(_, disk)| (disk.name.as_str(), disk)))
}

/// Lists the paths of a disk, each with the name that lasts.
fn paths(host: &Host, lun: &FcLun) -> Result<Vec<(PathBuf, Disk)>, Refusal> {
    let dev = &host.roots.dev;
    let links = match lun {
        FcLun::Port { targets, lun } => {
            let directory = dev.join("disk/by-path");
            let names = names(&directory)?.into_iter();
            let of_target = |name: &str| targets.iter().any(|target| is_path_of(name, target, *lun));
            names.filter(|name| of_target(name)).map(|name| directory.join(name)).collect()
        }
        FcLun::Wwids(wwids) => {
            let directory = dev.join("disk/by-id");
            wwids.iter().map(|wwid| directory.join(format!("scsi-{wwid}"))).collect::<Vec<_>>()
        }
    };
    let mut paths: Vec<(PathBuf, Disk)> = Vec::new();
    for link in links {
        let Some(name) = led_to(&link) else { continue };
        let disks = match host.roots.disk_named(&name) {
            Some(disk) => vec![disk],
            // udev lets the name of the disk lead to the multipath device.
            None => host.roots.disks_below(&name),
        };
        for disk in disks {
            if !paths.iter().any(|(_, known)| known.name == disk.name) {
                paths.push((link.clone(), disk));
            }
        }
    }
    Ok(paths)
}

/// Whether udev names a path to this disk so: `pci-0000:05:00.0-fc-0x50060e801049cfd1-lun-0`, or from `fc-` on.
fn is_path_of(name: &str, target: &str, lun: u32) -> bool {
    let wanted = format!("fc-0x{target}-lun-{lun}");
    let name = name.to_ascii_lowercase();
    name == wanted || name.strip_suffix(&wanted).is_some_and(|before| before.ends_with('-'))
}

/// Returns the name of the device that a link leads to.
fn led_to(link: &Path) -> Option<String> {
    let to = std::fs::read_link(link).ok()?;
    to.file_name()?.to_str().map(str::to_owned)
}

fn missing() -> Refusal {
    Refusal::new(LunCause::NoLun, "no adapter of this host finds it")
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::*;

    const WWN: &str = "50060e801049cfd1";
    const OTHER: &str = "50060e801049cfd2";

    fn of_port(lun: u32) -> FcLun {
        FcLun::Port { targets: vec![WWN.to_owned(), OTHER.to_owned()], lun }
    }

    #[test]
    fn a_path_has_the_target_s_name_and_the_whole_number() {
        for good in ["pci-0000:05:00.0-fc-0x50060e801049cfd1-lun-1", "fc-0x50060E801049CFD1-lun-1"] {
            assert!(is_path_of(good, WWN, 1), "{good}");
        }
        for bad in [
            "pci-0000:05:00.0-fc-0x50060e801049cfd1-lun-11",
            "pci-0000:05:00.0-fc-0x50060e801049cfd1-lun-1-part1",
            "pci-0000:05:00.0-fc-0x50060e801049cfd2-lun-1",
            "pci-0000:05:00.0-nofc-0x50060e801049cfd1-lun-1",
        ] {
            assert!(!is_path_of(bad, WWN, 1), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_disk_is_found_by_its_ports_and_by_its_own_name() {
        let tree = Tree::new();
        tree.disk("sda", "3:0:0:0");
        tree.disk("sdb", "3:0:0:1");
        tree.link("disk/by-path", &format!("pci-0000:05:00.0-fc-0x{WWN}-lun-0"), "../../sda");
        tree.link("disk/by-path", &format!("pci-0000:05:00.0-fc-0x{WWN}-lun-1"), "../../sdb");
        tree.link("disk/by-id", "scsi-3600508b400105e210000900000490000", "../../sdb");
        let host = tree.host();
        let found = attach(&host, &of_port(1)).await.unwrap();
        assert!(found.node.ends_with(format!("disk/by-path/pci-0000:05:00.0-fc-0x{WWN}-lun-1")), "{found:?}");
        assert_eq!(found.notes, Vec::<String>::new());
        let wwids = FcLun::Wwids(vec!["3600508b400105e210000900000490000".to_owned()]);
        let node = find(&host, &wwids, true).await.unwrap();
        assert!(node.ends_with("disk/by-id/scsi-3600508b400105e210000900000490000"), "{node:?}");
        assert_eq!(tree.read("sys/devices/3:0:0:1/rescan").as_deref(), Some("1"));
        assert_eq!(tree.read("sys/devices/3:0:0:0/rescan"), None, "another disk was asked");
        assert_eq!(tree.read("sys/class/scsi_host/host3/scan"), None, "it was there already");
    }

    #[tokio::test(start_paused = true)]
    async fn the_kernel_looks_once_for_a_disk_that_is_not_there() {
        let tree = Tree::new();
        tree.disk("sda", "3:0:0:0");
        tree.disk("sdb", "4:0:0:0");
        let host = tree.host();
        let refused = attach(&host, &of_port(7)).await.unwrap_err();
        assert!(refused.said.contains("no Fibre Channel adapter"), "{refused:?}");
        tree.adapter("host3");
        let refused = attach(&host, &of_port(7)).await.unwrap_err();
        assert_eq!(refused.cause, LunCause::NoLun);
        assert_eq!(tree.read("sys/class/scsi_host/host3/scan").as_deref(), Some("- - -"));
        assert_eq!(tree.read("sys/class/scsi_host/host4/scan"), None, "it is no adapter");
        // One that refuses is not all of them.
        std::fs::create_dir(tree.path().join("sys/class/fc_host/host5")).unwrap();
        assert_eq!(host.roots.scan_fibre_channel(), Ok(()));
        std::fs::remove_dir(tree.path().join("sys/class/fc_host/host3")).unwrap();
        assert_eq!(host.roots.scan_fibre_channel().map_err(|refusal| refusal.cause), Err(LunCause::Other));
        assert_eq!(find(&host, &of_port(7), false).await.unwrap_err().cause, LunCause::NoLun);
    }

    #[tokio::test(start_paused = true)]
    async fn what_multipathd_joined_is_preferred_and_one_path_is_told_of() {
        let tree = Tree::new();
        for (name, address, wwn) in [("sda", "3:0:0:0", WWN), ("sdb", "4:0:0:0", OTHER)] {
            tree.disk(name, address);
            tree.link(
                "disk/by-path",
                &format!("pci-0000:05:00.0-fc-0x{wwn}-lun-0"),
                &format!("../../{name}"),
            );
        }
        let host = tree.host();
        let alone = attach(&host, &of_port(0)).await.unwrap();
        assert!(alone.notes.iter().any(|note| note.contains("multipath-tools")), "{alone:?}");
        tree.multipathd();
        let alone = attach(&host, &of_port(0)).await.unwrap();
        assert!(alone.notes.iter().any(|note| note.contains("did not join")), "{alone:?}");
        tree.map("dm-7", "mpatha", "mpath-3600", &["sda", "sdb"]);
        let joined = attach(&host, &of_port(0)).await.unwrap();
        assert!(joined.node.ends_with("mapper/mpatha") && joined.notes.is_empty(), "{joined:?}");
        assert_eq!(find(&host, &of_port(0), false).await.unwrap(), joined.node);
        // udev lets the disk's own name lead to the multipath device.
        tree.link("disk/by-id", "scsi-3600", "../../dm-7");
        assert_eq!(find(&host, &FcLun::Wwids(vec!["3600".to_owned()]), false).await.unwrap(), joined.node);
    }

    #[tokio::test(start_paused = true)]
    async fn paths_to_different_disks_are_refused_and_none_is_taken_away() {
        let tree = Tree::new();
        for (name, address, wwn) in [("sda", "3:0:0:0", WWN), ("sdb", "4:0:0:0", OTHER)] {
            tree.disk(name, address);
            tree.link(
                "disk/by-path",
                &format!("pci-0000:05:00.0-fc-0x{wwn}-lun-0"),
                &format!("../../{name}"),
            );
        }
        tree.write("sys/devices/4:0:0:0/wwid", "naa.other");
        let host = tree.host();
        let refused = [
            attach(&host, &of_port(0)).await.map(drop).unwrap_err(),
            find(&host, &of_port(0), true).await.map(drop).unwrap_err(),
            detach(&host, &of_port(0)).await.unwrap_err(),
        ];
        for refused in refused {
            assert!(refused.said.contains("naa.one (sda) and naa.other (sdb)"), "{refused:?}");
        }
        assert_eq!(tree.read("sys/devices/3:0:0:0/delete").as_deref(), Some(""));
    }

    #[tokio::test(start_paused = true)]
    async fn attach_and_find_choose_the_same_map() {
        let tree = Tree::new();
        for (name, address, port) in [("sda", "3:0:0:0", 1), ("sdb", "4:0:0:0", 2), ("sdc", "4:0:1:0", 3)] {
            tree.disk(name, address);
            tree.link(
                "disk/by-path",
                &format!("pci-0000:0{port}:00.0-fc-0x{WWN}-lun-0"),
                &format!("../../{name}"),
            );
        }
        tree.map("dm-1", "small", "mpath-1", &["sda"]);
        tree.map("dm-2", "large", "mpath-2", &["sdb", "sdc"]);
        let attached = attach(&tree.host(), &of_port(0)).await.unwrap();
        assert!(attached.node.ends_with("mapper/large"), "{attached:?}");
        assert_eq!(find(&tree.host(), &of_port(0), false).await.unwrap(), attached.node);
    }

    #[tokio::test]
    async fn all_paths_are_taken_away_and_no_other_disk() {
        let tree = Tree::new();
        tree.disk("sda", "3:0:0:0");
        tree.disk("sdb", "3:0:0:1");
        tree.link("disk/by-path", &format!("pci-0000:05:00.0-fc-0x{WWN}-lun-0"), "../../sda");
        detach(&tree.host(), &of_port(0)).await.unwrap();
        assert_eq!(tree.read("sys/devices/3:0:0:0/delete").as_deref(), Some("1"));
        assert_eq!(tree.read("sys/devices/3:0:0:1/delete").as_deref(), Some(""));
    }
}
