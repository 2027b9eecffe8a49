//! What lies on disk without a record of ours: each volume's staging once, each publication once, whatever parts are left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::host::{FoundVolume, Part};
use crate::model::{
    DriverName, Foreign, Layout, Lifecycle, MountTable, MountsAt, Plugin, PublicationId, RecordedVolume,
    VolumeKey, VolumeMode, VolumeRecord,
};

/// Where our records say that something is.
struct Ours<'a> {
    staged: BTreeSet<&'a Path>,
    published: BTreeSet<&'a PublicationId>,
}

/// Lists what lies on disk without a record of ours.
pub fn foreign(
    on_disk: &[FoundVolume],
    records: &BTreeMap<VolumeKey, VolumeRecord>,
    mounts: &MountTable,
    layout: &Layout,
) -> Vec<Foreign> {
    let staged = records.values().filter_map(|record| record.staging.as_ref());
    let ours = Ours {
        staged: staged.map(|staging| staging.arguments.staging_path.as_path()).collect(),
        published: records.values().flat_map(|record| record.publications.keys()).collect(),
    };
    // By the path that the driver was told: the parts of one block volume have the same.
    let mut foreign: BTreeMap<PathBuf, Foreign> = BTreeMap::new();
    for found in on_disk {
        let target = target(found, layout);
        if ours.has(found, &target) {
            continue;
        }
        let path = layout.absolute(&found.path);
        let mounted = mounts.below(&path).next().is_some() || !matches!(mounts.at(&path), MountsAt::None);
        // Empty directories are what a kubelet leaves of a driver without staging; nobody has anything there.
        if !mounted && found.empty {
            continue;
        }
        match foreign.get_mut(&target) {
            Some(known) => known.mounted |= mounted,
            None => {
                let one = describe(found, path, target.clone(), mounted, mounts);
                foreign.insert(target, one);
            }
        }
    }
    foreign.into_values().collect()
}

impl Ours<'_> {
    fn has(&self, found: &FoundVolume, target: &Path) -> bool {
        match place(found) {
            Some(id) => self.published.contains(&id),
            None if found.publication.is_some() => false,
            // A block volume's own directory is there without a staging, if its driver does not stage.
            None if found.part.is_block() => {
                let is_its =
                    |id: &&PublicationId| id.plugin == Plugin::Csi && Some(&id.spec) == found.spec().as_ref();
                self.staged.contains(target) || self.published.iter().copied().any(|id| is_its(&id))
            }
            None => self.staged.contains(target),
        }
    }
}

fn describe(
    found: &FoundVolume,
    path: PathBuf,
    target: PathBuf,
    mounted: bool,
    mounts: &MountTable,
) -> Foreign {
    let mount = match mounts.at(&target) {
        MountsAt::One(mount) => Some(mount.identity()),
        MountsAt::None | MountsAt::Stacked(_) => None,
    };
    let (key, volume) = volume_of(found).unzip();
    let volume_mode = if found.part.is_block() { VolumeMode::Block } else { VolumeMode::Filesystem };
    let publication = found.publication.clone();
    Foreign { path, key, volume, volume_mode, target, publication, mounted, mount }
}

/// Returns the staging or target path that a volume's driver was told.
fn target(found: &FoundVolume, layout: &Layout) -> PathBuf {
    let path = layout.absolute(&found.path);
    match found.part {
        Part::Volume => match place(found) {
            Some(id) if id.plugin != Plugin::Csi => path,
            Some(_) | None => path.join("mount"),
        },
        Part::Staging | Part::OldStaging => path.join("globalmount"),
        Part::BlockStaging => path,
        Part::BlockVolume => found.spec().map_or(path, |spec| layout.absolute(&layout.block_staging(&spec))),
        Part::BlockLink | Part::BlockPublished | Part::BlockMap => {
            place(found).map_or(path, |id| layout.absolute(&layout.block_target(&id)))
        }
    }
}

/// Returns the place of what is one pod's.
pub(super) fn place(found: &FoundVolume) -> Option<PublicationId> {
    let (pod, plugin, spec) = found.publication.as_ref()?;
    Some(PublicationId { pod: pod.clone(), plugin: Plugin::from_directory(plugin)?, spec: spec.clone() })
}

/// Returns the volume that a directory is of, as far as its place and its `vol_data.json` say.
fn volume_of(found: &FoundVolume) -> Option<(VolumeKey, RecordedVolume)> {
    let id = place(found);
    if let Some(id) = id.as_ref().filter(|id| id.plugin == Plugin::EmptyDir) {
        // Nothing but its place says whose it is, and nothing else could.
        return Some((VolumeKey::of_pod(id), RecordedVolume::EmptyDir));
    }
    let data = found.vol_data.as_ref()?;
    let driver = DriverName::new(data.get("driverName")?).ok()?;
    let handle = data.get("volumeHandle")?.to_owned();
    let (key, lifecycle) = match (data.get("volumeLifecycleMode"), id) {
        (Some(mode), Some(id)) if mode == Lifecycle::Ephemeral.name() => {
            (VolumeKey::of_pod(&id), Lifecycle::Ephemeral)
        }
        (_, _) => (VolumeKey::csi(&driver, &handle), Lifecycle::Persistent),
    };
    Some((key, RecordedVolume::Csi { driver, handle, lifecycle }))
}
