//! Status values for the tests of this folder.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::{
    Blocked, BlockedCause, BrakeStatus, Connection, DriverInfo, DriverName, DriverOrigin, DriverState, Event,
    EventKind, Foreign, Hold, HoldCode, Link, LinkState, ManifestSource, Millis, ObjectRef, Plugin,
    PodIdentity, PodStatus, PodUid, PodVolumeStatus, Presence, Problem, PublicationId, PublicationStatus,
    SpecName, Status, VolumeKey, VolumeStatus,
};

/// Now, in all samples.
pub(super) const NOW: Millis = 1_800_000_000_000;
const DRIVER: &str = "nfs.csi.k8s.io";

/// A status that says nothing yet, but is ready to.
pub(super) fn ready() -> Status {
    let mut status = Status { pass: 1, ..Status::default() };
    status.reading.generation = 1;
    status
}

/// Adds a pod that uses one claim whose PV is a CSI volume; returns its key.
pub(super) fn add(status: &mut Status, pod: &str, claim: &str, presence: Presence) -> VolumeKey {
    let driver = DriverName::new(DRIVER).unwrap();
    let handle = format!("vol-{claim}");
    let key = VolumeKey::csi(&driver, &handle);
    let identity = identity(pod);
    let id = PublicationId {
        pod: identity.uid.clone(),
        plugin: Plugin::Csi,
        spec: SpecName::new(format!("pv-{claim}")).unwrap(),
    };
    let path = PathBuf::from(format!("/r/pods/{pod}/volumes/kubernetes.io~csi/pv-{claim}/mount"));
    let publication = PublicationStatus {
        pod: identity.clone(),
        names: vec!["data".to_owned()],
        path,
        desired: "published",
        presence,
        not_a_mount_point: false,
        hold: None,
    };
    let staging = Some((PathBuf::from(format!("/r/plugins/{claim}/globalmount")), presence));
    let volume = status.volumes.entry(key.clone()).or_insert_with(|| VolumeStatus {
        released: Vec::new(),
        plugin: "kubernetes.io/csi",
        csi: Some((driver, handle)),
        nfs: None,
        staging,
        staging_not_a_mount_point: false,
        publications: BTreeMap::new(),
        blocked: Vec::new(),
        in_progress: None,
        pending_change: None,
        events: std::collections::VecDeque::new(),
        since: NOW - 252_000,
    });
    volume.publications.insert(id.clone(), Box::new(publication));
    let pod_volume = PodVolumeStatus {
        claim: Some(ObjectRef::new("PersistentVolumeClaim", "db", claim)),
        resolved: Some((key.clone(), id)),
        links: vec![link("manifest", "/m/a.yaml:12"), link("claim", &format!("bound to pv-{claim}"))],
        hold: None,
        capacity: Some(100 << 30),
        access_mode: Some("ReadWriteOnce".to_owned()),
    };
    Arc::make_mut(status.pods.entry(identity.uid.clone()).or_insert_with(|| Arc::new(bare(&identity))))
        .volumes = [("data".to_owned(), Box::new(pod_volume))].into();
    key
}

/// A pod without volumes.
pub(super) fn bare(identity: &PodIdentity) -> PodStatus {
    PodStatus {
        hold: None,
        identity: identity.clone(),
        source: Some(ManifestSource { file: "/m/a.yaml".into(), line: 12 }),
        leaving: false,
        volumes: BTreeMap::new(),
    }
}

pub(super) fn identity(pod: &str) -> PodIdentity {
    PodIdentity { uid: PodUid::new(format!("uid-{pod}")).unwrap(), namespace: "db".into(), name: pod.into() }
}

fn link(step: &str, detail: &str) -> Link {
    Link { step: step.to_owned(), state: LinkState::Good, detail: detail.to_owned() }
}

/// Changes a volume's publications.
pub(super) fn publication(status: &mut Status, key: &VolumeKey, change: impl Fn(&mut PublicationStatus)) {
    status
        .volumes
        .get_mut(key)
        .unwrap()
        .publications
        .values_mut()
        .for_each(|publication| change(publication));
}

/// Holds a pod's volume.
pub(super) fn hold(status: &mut Status, pod: &str, code: HoldCode) {
    let volume =
        Arc::make_mut(status.pods.get_mut(&identity(pod).uid).unwrap()).volumes.get_mut("data").unwrap();
    volume.resolved = None;
    volume.links.truncate(1);
    let (detail, remedy) = ("no PV for it".to_owned(), "add a PersistentVolume".to_owned());
    volume.hold = Some(Hold { code, detail, remedy });
}

/// Lets a step of a volume fail.
pub(super) fn block(status: &mut Status, key: &VolumeKey, step: &str, next_try: Option<Millis>) {
    status.volumes.get_mut(key).unwrap().blocked.push(Blocked {
        step: step.to_owned(),
        publication: None,
        cause: BlockedCause::new("UNAVAILABLE", "server down"),
        since: NOW - 30_000,
        attempts: 3,
        next_try,
        remedy: "look at the driver's log".to_owned(),
    });
}

/// One of everything.
pub(super) fn all() -> Status {
    let mut status = ready();
    let good = add(&mut status, "web", "data", Presence::Yes);
    let kind = EventKind::StepDone {
        claim: None,
        key: good.clone(),
        step: "publish",
        publication: None,
        pod: Some(identity("web")),
        driver: None,
        took_ms: 7,
        not_a_mount_point: false,
    };
    status.volumes.get_mut(&good).unwrap().events.push_back(Event { at: NOW - 252_000, kind });
    let retried = add(&mut status, "api", "assets", Presence::No);
    status.volumes.get_mut(&retried).unwrap().staging = Some(("/r/assets".into(), Presence::Yes));
    block(&mut status, &retried, "publish", Some(NOW + 8_000));
    let unbound = add(&mut status, "ci", "scratch", Presence::No);
    status.volumes.remove(&unbound);
    hold(&mut status, "ci", HoldCode::ClaimUnbound);
    let going = add(&mut status, "old", "backup", Presence::Uncertain);
    publication(&mut status, &going, |publication| publication.desired = "released");
    block(&mut status, &going, "unpublish", None);
    Arc::make_mut(status.pods.get_mut(&identity("old").uid).unwrap()).leaving = true;
    status.drivers.insert(
        DriverName::new(DRIVER).unwrap(),
        DriverState {
            connection: Connection::Ready,
            info: DriverInfo { version: "4.11".into(), node_id: "n1".into(), ..DriverInfo::default() },
            endpoint: "/run/csi/nfs.sock".into(),
            origin: DriverOrigin::Configured,
            since: NOW - 3 * 86_400_000,
            unwell: None,
            standby: Vec::new(),
        },
    );
    status.problems.push(Problem {
        path: "/m/b.yaml".into(),
        position: Some((3, 7)),
        object: None,
        field: Some("spec".into()),
        detail: "is\nno map\u{1b}[31m".into(),
        remedy: "mend it".into(),
        warning: false,
    });
    status.foreign.push(Foreign {
        path: "/r/pods/x".into(),
        key: None,
        volume: None,
        volume_mode: crate::model::VolumeMode::Filesystem,
        target: "/r/pods/x/mount".into(),
        publication: None,
        mounted: true,
        mount: None,
    });
    status.brake = Some(BrakeStatus { held: 12, reason: "12 of 14 went away".into(), since: NOW });
    status
}
