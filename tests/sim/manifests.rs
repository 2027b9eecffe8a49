//! One reading of a wish, as the manifest reader would make it of files that may be half written or away.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, CSIVolumeSource, Container, EmptyDirVolumeSource, ISCSIVolumeSource,
    LocalVolumeSource, NFSVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, PersistentVolumeSpec, Pod, PodSpec, Volume,
    VolumeDevice, VolumeMount,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use volumed::manifest::{Manifests, Objects, Sourced, Stale};
use volumed::model::{DirectoryState, ManifestSource, Problem, ReadingState};

use super::wish::{
    self, DISK, DRIVERS, Damage, EXPORT, LOCAL, LOCAL_CLAIM, LOCAL_VOLUME, LUN, PodWish, SHARE, TARGET,
    VOLUMES, Wish,
};

/// The manifest reader of one life: it remembers the last good version of what it has read.
#[derive(Debug, Default)]
pub struct Reading {
    good: Objects,
}

impl Reading {
    /// Reads.
    pub fn read(&mut self, wish: &Wish, damage: &Damage, generation: u64, began_ms: u64) -> Manifests {
        let mut objects = Objects::default();
        let mut lost = damage.incomplete;
        let mut taken = Taken { damage, lost: &mut lost };
        for volume in 0..VOLUMES {
            let (pv, claim) = (format!("pv{volume}"), format!("c{volume}"));
            if wish.replaced && wish.twin.is_some_and(|twin| twin.of == volume) {
                continue;
            }
            let read = || pv_object(wish, volume, &pv, &claim);
            taken.take(&pv, pv.clone(), &self.good.volumes, &mut objects.volumes, read);
            let name = ("default".to_owned(), claim.clone());
            let read = || claim_object(volume, &pv, &claim);
            taken.take(&claim, name, &self.good.claims, &mut objects.claims, read);
        }
        if let Some(twin) = wish.twin {
            let (volume, pv, claim) = (twin.of, twin.name(), twin.claim());
            let read = || pv_object(wish, volume, &pv, &claim);
            taken.take(&pv, pv.clone(), &self.good.volumes, &mut objects.volumes, read);
            let name = ("default".to_owned(), claim.clone());
            let read = || claim_object(volume, &pv, &claim);
            taken.take(&claim, name, &self.good.claims, &mut objects.claims, read);
        }
        let read = || local_object(wish);
        taken.take(LOCAL_VOLUME, LOCAL.to_owned(), &self.good.volumes, &mut objects.volumes, read);
        let name = ("default".to_owned(), LOCAL.to_owned());
        let read = || claim_object(0, LOCAL, LOCAL);
        taken.take(LOCAL_CLAIM, name, &self.good.claims, &mut objects.claims, read);
        for (driver, name) in DRIVERS.iter().enumerate() {
            let file = format!("driver{driver}");
            let read = || driver_object(name, wish.republish && driver == 1);
            taken.take(&file, (*name).to_owned(), &self.good.drivers, &mut objects.drivers, read);
        }
        for (name, pod) in &wish.pods {
            taken.take(name, wish::uid(name), &self.good.pods, &mut objects.pods, || pod_object(name, pod));
        }
        self.remember(&objects);
        let directory = DirectoryState { identity: None, files: objects.pods.len() + 9 };
        let unread = || Problem {
            path: "/manifests/other.yaml".into(),
            position: None,
            object: None,
            field: None,
            detail: "cannot be read".to_owned(),
            remedy: "mend it".to_owned(),
            warning: false,
        };
        let reading = ReadingState {
            generation,
            began_ms,
            incomplete: if lost { vec![unread()] } else { Vec::new() },
            directories: BTreeMap::from([("/manifests".into(), directory)]),
        };
        Manifests { objects: Arc::new(objects), problems: Vec::new(), reading }
    }

    fn remember(&mut self, objects: &Objects) {
        let Objects { pods, claims, volumes, drivers, .. } = objects;
        self.good.pods.extend(pods.clone());
        self.good.claims.extend(claims.clone());
        self.good.volumes.extend(volumes.clone());
        self.good.drivers.extend(drivers.clone());
    }
}

struct Taken<'a> {
    damage: &'a Damage,
    lost: &'a mut bool,
}

impl Taken<'_> {
    /// Takes one file's object: as it is, as it last was when the file is broken now, or not at all.
    fn take<K: Ord, T>(
        &mut self,
        file: &str,
        key: K,
        good: &BTreeMap<K, Sourced<T>>,
        into: &mut BTreeMap<K, Sourced<T>>,
        read: impl FnOnce() -> T,
    ) {
        if self.damage.missing.contains(file) {
            return;
        }
        let taken = if self.damage.broken.contains(file) {
            let Some(good) = good.get(&key) else {
                // Broken since the start: nobody knows what was in it.
                *self.lost = true;
                return;
            };
            let stale = Some(Stale::Broken("it is half written".to_owned()));
            Sourced { object: Arc::clone(&good.object), source: good.source.clone(), stale }
        } else {
            let source = ManifestSource { file: format!("/manifests/{file}.yaml").into(), line: 1 };
            Sourced { object: Arc::new(read()), source, stale: None }
        };
        into.insert(key, taken);
    }
}

fn named(name: &str, namespace: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(ToOwned::to_owned),
        ..ObjectMeta::default()
    }
}

fn modes(volume: u64) -> Option<Vec<String>> {
    let mode = if wish::is_single_pod(volume) { "ReadWriteOncePod" } else { "ReadWriteOnce" };
    Some(vec![mode.to_owned()])
}

fn mode(volume: u64) -> Option<String> {
    wish::is_block(&wish::handle(volume)).then(|| "Block".to_owned())
}

fn pv_object(wish: &Wish, volume: u64, name: &str, claim: &str) -> PersistentVolume {
    let size = Quantity(wish::capacity(wish, volume).to_string());
    let edition = wish.attributes[wish::index(volume)].to_string();
    let spec = PersistentVolumeSpec {
        capacity: Some(BTreeMap::from([("storage".to_owned(), size)])),
        access_modes: modes(volume),
        volume_mode: mode(volume),
        claim_ref: Some(ObjectReference {
            namespace: Some("default".to_owned()),
            name: Some(claim.to_owned()),
            ..ObjectReference::default()
        }),
        csi: Some(CSIPersistentVolumeSource {
            driver: DRIVERS[wish::driver(volume)].to_owned(),
            volume_handle: wish::handle(volume),
            volume_attributes: Some(BTreeMap::from([
                ("edition".to_owned(), edition),
                ("name".to_owned(), name.to_owned()),
            ])),
            ..CSIPersistentVolumeSource::default()
        }),
        ..PersistentVolumeSpec::default()
    };
    PersistentVolume { metadata: named(name, None), spec: Some(spec), status: None }
}

fn local_object(wish: &Wish) -> PersistentVolume {
    let path = match (wish.device, wish.moved) {
        (true, _) => DISK,
        (false, true) => "/srv/new",
        (false, false) => "/srv/old",
    };
    let spec = PersistentVolumeSpec {
        access_modes: modes(0),
        local: Some(LocalVolumeSource { path: path.to_owned(), fs_type: None }),
        ..PersistentVolumeSpec::default()
    };
    let mut metadata = named(LOCAL, None);
    metadata.annotations = Some([("volumed.io/auto-grow".to_owned(), "true".to_owned())].into());
    PersistentVolume { metadata, spec: Some(spec), status: None }
}

fn claim_object(volume: u64, pv: &str, name: &str) -> PersistentVolumeClaim {
    let spec = PersistentVolumeClaimSpec {
        access_modes: modes(volume),
        volume_mode: mode(volume),
        volume_name: Some(pv.to_owned()),
        ..PersistentVolumeClaimSpec::default()
    };
    let metadata = named(name, Some("default"));
    PersistentVolumeClaim { metadata, spec: Some(spec), status: None }
}

fn driver_object(name: &str, republish: bool) -> CSIDriver {
    let spec = CSIDriverSpec {
        attach_required: Some(false),
        requires_republish: Some(republish),
        volume_lifecycle_modes: Some(vec!["Persistent".to_owned(), "Ephemeral".to_owned()]),
        ..CSIDriverSpec::default()
    };
    CSIDriver { metadata: named(name, None), spec }
}

fn pod_object(name: &str, wish: &PodWish) -> Pod {
    let mut volumes = Vec::new();
    let (mut mounts, mut devices) = (Vec::new(), Vec::new());
    let claims = wish.claims.iter().map(|volume| (*volume, format!("v{volume}"), format!("c{volume}")));
    let twin = wish.twin.map(|twin| (twin.of, twin.claim(), twin.claim()));
    for (volume, name, claim_name) in claims.chain(twin) {
        if wish::is_block(&wish::handle(volume)) {
            devices.push(VolumeDevice { name: name.clone(), device_path: format!("/dev/{name}") });
        } else {
            mounts.push(name.clone());
        }
        volumes.push(Volume {
            name,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name,
                read_only: Some(wish.read_only),
            }),
            ..Volume::default()
        });
    }
    if let Some(driver) = wish.inline {
        let source = CSIVolumeSource { driver: DRIVERS[driver].to_owned(), ..CSIVolumeSource::default() };
        volumes.push(Volume { name: "inline".to_owned(), csi: Some(source), ..Volume::default() });
        mounts.push("inline".to_owned());
    }
    if wish.local {
        volumes.push(Volume {
            name: "disk".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: LOCAL.to_owned(),
                read_only: Some(wish.read_only),
            }),
            ..Volume::default()
        });
        mounts.push("disk".to_owned());
    }
    if wish.share {
        let source = NFSVolumeSource {
            server: EXPORT.0.to_owned(),
            path: EXPORT.1.to_owned(),
            read_only: Some(wish.read_only),
        };
        volumes.push(Volume { name: SHARE.to_owned(), nfs: Some(source), ..Volume::default() });
        mounts.push(SHARE.to_owned());
    }
    if wish.lun {
        let source = ISCSIVolumeSource {
            target_portal: TARGET.0.to_owned(),
            iqn: TARGET.1.to_owned(),
            lun: 3,
            read_only: Some(wish.read_only),
            ..ISCSIVolumeSource::default()
        };
        volumes.push(Volume { name: LUN.to_owned(), iscsi: Some(source), ..Volume::default() });
        mounts.push(LUN.to_owned());
    }
    if wish.empty_dir {
        let source = EmptyDirVolumeSource::default();
        volumes.push(Volume { name: "scratch".to_owned(), empty_dir: Some(source), ..Volume::default() });
        mounts.push("scratch".to_owned());
    }
    let mount = |name: String| VolumeMount { mount_path: format!("/{name}"), name, ..VolumeMount::default() };
    let container = Container {
        name: "c".to_owned(),
        image: Some("i".to_owned()),
        volume_mounts: Some(mounts.into_iter().map(mount).collect()),
        volume_devices: Some(devices),
        ..Container::default()
    };
    let spec = PodSpec { volumes: Some(volumes), containers: vec![container], ..PodSpec::default() };
    let mut metadata = named(name, Some("default"));
    metadata.uid = Some(wish::uid(name).to_string());
    metadata.deletion_timestamp = wish.leaving.then_some(Time(Timestamp::UNIX_EPOCH));
    Pod { metadata, spec: Some(spec), status: None }
}
