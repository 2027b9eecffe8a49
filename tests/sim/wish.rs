//! The manifests of a simulated host: a few pods, claims and volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use volumed::model::{
    DiskSource, IscsiLun, Layout, Lun, Plugin, PodUid, Portal, PublicationId, SpecName, TargetName,
};

use super::twins::Twin;
use super::world::{ROOT, World};

/// The files of the local volume and its claim, in `Damage`.
pub const LOCAL_VOLUME: &str = "local-volume";
pub const LOCAL_CLAIM: &str = "local-claim";
/// The simulated drivers' names.
pub const DRIVERS: [&str; 2] = ["one.example.com", "two.example.com"];
/// How many PVs there are; claim `c<i>` is bound to PV `pv<i>`.
pub const VOLUMES: u64 = PVS as u64;
const PVS: usize = 5;
/// The PV and the claim of the local volume.
pub const LOCAL: &str = "disk";

/// The local volume's disk, in the seeds where it is one.
pub const DISK: &str = "/dev/disk/by-id/d";
/// The pods' volume that is an export of an NFS server, and its server and path.
pub const SHARE: &str = "share";
pub const EXPORT: (&str, &str) = ("nas", "/srv");

/// The pods' volume that is a disk of an iSCSI target, where it is when it is connected, and its target.
pub const LUN: &str = "lun";
pub const LUN_DISK: &str = "/dev/disk/by-path/lun";
pub const TARGET: (&str, &str) = ("10.0.0.1", "iqn.2026-11.io.volumed:sim");

/// Returns that disk.
pub fn lun() -> DiskSource {
    let portals = vec![Portal::new(TARGET.0).expect("good")];
    let iqn = TargetName::new(TARGET.1).expect("good");
    let (discovery_chap, session_chap) = (false, false);
    DiskSource::Lun(Lun::Iscsi(IscsiLun { portals, iqn, lun: 3, discovery_chap, session_chap }))
}

/// What one pod uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodWish {
    pub claims: BTreeSet<u64>,
    /// Every claim of the pod is used read-only.
    pub read_only: bool,
    /// The driver of an inline volume.
    pub inline: Option<usize>,
    pub empty_dir: bool,
    /// It uses the claim of the local volume.
    pub local: bool,
    /// It uses an export of an NFS server.
    pub share: bool,
    /// It uses a disk of an iSCSI target.
    pub lun: bool,
    /// It uses the claim of a second PV.
    pub twin: Option<Twin>,
    /// `metadata.deletionTimestamp`
    pub leaving: bool,
}

impl PodWish {
    /// The volumes that it uses by claims.
    pub fn volumes(&self) -> BTreeSet<u64> {
        self.claims.iter().copied().chain(self.twin.map(|twin| twin.of)).collect()
    }
}

/// What all manifests say.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    pub pods: BTreeMap<String, PodWish>,
    /// The PVs' `volumeAttributes`, which are edited now and then.
    pub attributes: [u64; PVS],
    /// By how many GiB the PVs have grown.
    pub grown: [u64; PVS],
    /// A second PV with a volume's driver and handle, and its claim.
    pub twin: Option<Twin>,
    /// Only the second one is there.
    pub replaced: bool,
    /// The local volume is another directory than at first.
    pub moved: bool,
    /// The local volume is a disk, not a directory.
    pub device: bool,
    /// The second driver's CSIDriver says `requiresRepublish`.
    pub republish: bool,
}

/// How the manifests are found when they are read.
#[derive(Debug, Clone, Default)]
pub struct Damage {
    /// Something could not be read at all.
    pub incomplete: bool,
    /// Files that are half written, by what is in them (`pod0`, `pv1`, `c2`, `driver0`).
    pub broken: BTreeSet<String>,
    /// Files that are not there.
    pub missing: BTreeSet<String>,
}

/// Returns the driver of a volume, by its number.
pub fn driver(volume: u64) -> usize {
    usize::from(volume == 2 || volume == 4)
}

/// Returns the handle of a volume: one is of the kind that is never mounted, one is a block device.
pub fn handle(volume: u64) -> String {
    let kind = match volume {
        3 => "unmounted",
        4 => "block",
        _ => "handle",
    };
    format!("{kind}-{volume}")
}

/// Returns whether a driver mounts the volume where it publishes it.
pub fn is_mounted(handle: &str) -> bool {
    !handle.starts_with("unmounted")
}

/// Returns whether a driver mounts the volume where it stages it.
pub fn is_mounted_staged(handle: &str) -> bool {
    is_mounted(handle) && !is_block(handle)
}

/// Returns whether the volume is a block device.
pub fn is_block(handle: &str) -> bool {
    handle.starts_with("block")
}

/// Returns whether a path is where volumed binds a block device for a pod.
pub fn is_map(path: &std::path::Path) -> bool {
    path.parent().is_some_and(|parent| parent.ends_with("dev"))
}

/// Returns whether a path is where a file-system volume is staged.
pub fn is_staging(path: &std::path::Path) -> bool {
    path.ends_with("globalmount")
}

/// Returns where the device is bound that a driver published at a path.
pub fn map_of(target: &std::path::Path) -> Option<PathBuf> {
    let (pod, spec) = (target.file_name()?, target.parent()?.file_name()?);
    Some(target.parent()?.parent()?.parent()?.join(spec).join("dev").join(pod))
}

/// Returns whether only one pod may have a volume: ReadWriteOncePod.
pub fn is_single_pod(volume: u64) -> bool {
    volume == 1
}

/// Returns the size of a volume by its manifests, in bytes.
pub fn capacity(wish: &Wish, volume: u64) -> u64 {
    (1 + wish.grown[index(volume)]) << 30
}

/// Returns a volume's place in an array.
pub fn index(volume: u64) -> usize {
    usize::try_from(volume).unwrap_or(0)
}

/// Returns what claims, PVs and drivers are called in `Damage`.
pub fn files(wish: &Wish) -> Vec<String> {
    let volumes = (0..VOLUMES).flat_map(|volume| [format!("pv{volume}"), format!("c{volume}")]);
    let drivers = (0..DRIVERS.len()).map(|driver| format!("driver{driver}"));
    let twin = wish.twin.iter().flat_map(|twin| [twin.name(), twin.claim()]);
    let local = [LOCAL_VOLUME.to_owned(), LOCAL_CLAIM.to_owned()];
    wish.pods.keys().cloned().chain(volumes).chain(drivers).chain(twin).chain(local).collect()
}

/// Invents a pod.
pub fn pod(world: &World) -> PodWish {
    PodWish {
        claims: (0..VOLUMES).filter(|_| world.below(3) == 0).collect(),
        read_only: world.below(5) == 0,
        inline: usize::try_from(world.below(6)).ok().filter(|driver| *driver < DRIVERS.len()),
        empty_dir: world.below(3) == 0,
        local: world.below(3) == 0,
        share: world.below(4) == 0,
        lun: world.below(4) == 0,
        twin: None,
        leaving: false,
    }
}

pub fn uid(pod: &str) -> PodUid {
    PodUid::new(format!("uid-{pod}")).expect("good")
}

fn place(pod: &str, plugin: Plugin, spec: String) -> PublicationId {
    PublicationId { pod: uid(pod), plugin, spec: SpecName::new(spec).expect("good") }
}

/// Returns the places that a pod's wish leads to.
pub fn places(pod: &str, wish: &PodWish) -> Vec<PublicationId> {
    let mut places: Vec<PublicationId> =
        wish.claims.iter().map(|volume| place(pod, Plugin::Csi, format!("pv{volume}"))).collect();
    places.extend(wish.twin.map(|twin| place(pod, Plugin::Csi, twin.name())));
    if wish.inline.is_some() {
        places.push(place(pod, Plugin::Csi, "inline".to_owned()));
    }
    if wish.local {
        places.push(place(pod, Plugin::Local, LOCAL.to_owned()));
    }
    if wish.share {
        places.push(place(pod, Plugin::Nfs, SHARE.to_owned()));
    }
    if wish.lun {
        places.push(place(pod, Plugin::Iscsi, LUN.to_owned()));
    }
    if wish.empty_dir {
        places.push(place(pod, Plugin::EmptyDir, "scratch".to_owned()));
    }
    places
}

/// Returns the volume that a place shows, if it shows a PV.
pub fn volume_at(place: &PublicationId) -> Option<u64> {
    volume_named(place.spec.as_str())
}

/// Returns the volume that a PV is, by the PV's name.
pub fn volume_named(name: &str) -> Option<u64> {
    let name = name.strip_prefix("a-").unwrap_or(name);
    name.strip_suffix("-twin").unwrap_or(name).strip_prefix("pv")?.parse().ok()
}

/// Returns where a place is mounted, if it is a CSI volume's.
pub fn target(place: &PublicationId) -> PathBuf {
    let layout = Layout::new(ROOT);
    if matches!(place.plugin, Plugin::Local | Plugin::Nfs | Plugin::Iscsi) {
        return layout.absolute(&layout.publication(place));
    }
    let is_block = volume_at(place).is_some_and(|volume| is_block(&handle(volume)));
    layout.absolute(&if is_block { layout.block_target(place) } else { layout.csi_target(place) })
}
