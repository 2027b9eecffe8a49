//! What is made of records and mount tables.

use std::path::PathBuf;

use super::*;
use crate::host::Part;
use crate::model::{
    AccessMode, Capability, DriverName, Lifecycle, Mount, MountIdentity, Plugin, PodIdentity, PodUid,
    PublishArguments, RootPath, SpecName, StageArguments, StagingKind, VolumeMode,
};

const TARGET: &str = "/root/pods/u/volumes/kubernetes.io~csi/pv/mount";

fn driver() -> DriverName {
    DriverName::new("d.example.com").unwrap()
}

fn layout() -> Layout {
    Layout::new("/root")
}

fn id() -> PublicationId {
    PublicationId { pod: PodUid::new("u").unwrap(), plugin: Plugin::Csi, spec: SpecName::new("pv").unwrap() }
}

fn look_at(record: &VolumeRecord, mounts: &MountTable) -> Have {
    let (dead, boot, layout) = (BTreeMap::new(), boot("now"), layout());
    volume(record, Site { mounts, dead: &dead, boot: &boot, layout: &layout })
}

fn boot(name: &str) -> BootId {
    BootId(name.to_owned())
}

fn mount(point: &str, source: &str, minor: u32) -> Mount {
    Mount {
        id: 7,
        parent: 1,
        device: (0, minor),
        root: PathBuf::from("/"),
        point: PathBuf::from(point),
        fs_type: "fuse.x".to_owned(),
        source: source.to_owned(),
        read_only: false,
    }
}

fn done(mount: Option<MountIdentity>) -> CallState {
    CallState::Done { mount: mount.map_or(RecordedMount::NotAMountPoint, RecordedMount::Mount) }
}

fn record(state: CallState, boot: BootId) -> VolumeRecord {
    let capability = Capability {
        volume_mode: VolumeMode::Filesystem,
        mount_group: String::new(),
        fs_type: String::new(),
        mount_flags: Vec::new(),
        access_mode: AccessMode::SingleNodeWriter,
    };
    let volume =
        RecordedVolume::Csi { driver: driver(), handle: "h".to_owned(), lifecycle: Lifecycle::Persistent };
    let mut record = VolumeRecord::new(VolumeKey::csi(&driver(), "h"), volume);
    record.staging = Some(StagingRecord {
        boot: boot.clone(),
        state: done(None),
        arguments: StageArguments {
            kind: StagingKind::Call,
            staging_path: layout().absolute(&layout().csi_staging(&driver(), "h")),
            publish_context: BTreeMap::new(),
            capability: capability.clone(),
            volume_context: BTreeMap::new(),
        },
    });
    let publication = PublicationRecord {
        boot,
        state,
        pod: PodIdentity { uid: id().pod, namespace: "default".to_owned(), name: "web".to_owned() },
        names: ["data".to_owned()].into(),
        claim: None,
        manifest: None,
        arguments: Some(PublishArguments {
            target_path: TARGET.into(),
            staging_path: None,
            publish_context: BTreeMap::new(),
            capability,
            read_only: false,
            volume_context: BTreeMap::new(),
        }),
        approved: false,
        adopted: false,
        released: false,
    };
    record.publications.insert(id(), Box::new(publication));
    record
}

fn seen(state: CallState, recorded_in: &str, mounts: Vec<Mount>) -> HavePublication {
    let record = record(state, boot(recorded_in));
    look_at(&record, &MountTable::new(mounts)).publications[&id()].as_ref().clone()
}

#[test]
fn only_an_outcome_of_this_boot_that_the_mount_table_shows_is_there() {
    let ours = mount(TARGET, "s", 5);
    let state = || done(Some(ours.identity()));
    assert_eq!(seen(state(), "now", vec![ours.clone()]).presence, Presence::Yes);
    assert_eq!(seen(state(), "now", vec![]).presence, Presence::Uncertain, "it vanished");
    assert_eq!(seen(state(), "before", vec![ours.clone()]).presence, Presence::Uncertain, "another boot's");
    assert_eq!(seen(done(None), "now", vec![]).presence, Presence::Yes, "no mount was made here");
    assert_eq!(seen(done(None), "before", vec![]).presence, Presence::Uncertain);
    for state in
        [CallState::Intended { settled: true }, CallState::Intended { settled: false }, CallState::Undoing]
    {
        assert_eq!(seen(state, "now", vec![ours.clone()]).presence, Presence::Uncertain);
    }
}

#[test]
fn what_was_only_planned_was_not_sent_in_its_boot() {
    assert_eq!(seen(CallState::Planned, "now", vec![]).presence, Presence::No);
    assert_eq!(seen(CallState::Planned, "before", vec![]).presence, Presence::Uncertain);
}

#[test]
fn only_an_answered_call_lets_its_arguments_go() {
    assert!(!seen(CallState::Intended { settled: true }, "now", vec![]).frozen);
    assert!(seen(CallState::Intended { settled: false }, "now", vec![]).frozen);
    assert!(seen(CallState::Undoing, "now", vec![]).frozen);
}

#[test]
fn a_stranger_s_mount_is_an_obstacle_and_a_new_device_number_is_not() {
    let ours = mount(TARGET, "s", 5);
    let state = || done(Some(ours.identity()));
    let obstacle = |mounts| seen(state(), "now", mounts).obstacle;
    assert_eq!(obstacle(vec![mount(TARGET, "s", 6)]), None, "FUSE gives each mount a number of its own");
    assert_eq!(seen(state(), "now", vec![mount(TARGET, "s", 6)]).presence, Presence::Uncertain);
    assert!(matches!(obstacle(vec![mount(TARGET, "other", 5)]), Some(Obstacle::Replaced { .. })));
    assert!(matches!(obstacle(vec![ours.clone(), mount(TARGET, "x", 9)]), Some(Obstacle::Covered { .. })));
    let below = mount(&format!("{TARGET}/sub"), "x", 9);
    assert!(matches!(obstacle(vec![ours.clone(), below]), Some(Obstacle::Below { .. })));
    let nothing_recorded = seen(done(None), "now", vec![mount(TARGET, "x", 9)]);
    assert!(matches!(nothing_recorded.obstacle, Some(Obstacle::Replaced { recorded: None, .. })));
    let lost = seen(CallState::Intended { settled: false }, "now", vec![mount(TARGET, "x", 9)]);
    assert_eq!(lost.obstacle, None, "the outcome was lost: the only mount there is the call's");
    let lost = CallState::Intended { settled: false };
    let stranger = seen(lost, "before", vec![mount(TARGET, "x", 9)]);
    assert!(stranger.obstacle.is_some(), "no call was made in this boot: somebody else mounted it");
    let remade = seen(state(), "before", vec![mount(TARGET, "s", 6)]);
    assert_eq!(remade.obstacle, None, "a driver that mounts its volumes again after a boot");
}

fn found(path: &str, vol_data: Option<VolData>) -> FoundVolume {
    let parts: Vec<&str> = path.split('/').collect();
    let publication = (parts[0] == "pods")
        .then(|| (PodUid::new(parts[1]).unwrap(), parts[3].to_owned(), SpecName::new(parts[4]).unwrap()));
    let part = if publication.is_some() { Part::Volume } else { Part::Staging };
    FoundVolume { part, path: RootPath::new(path).unwrap(), publication, vol_data, empty: false }
}

#[test]
fn what_has_no_record_is_foreign_and_names_its_volume() {
    let record = record(done(None), boot("now"));
    let staging = layout().csi_volume(&driver(), "h");
    let theirs = PublicationId { spec: SpecName::new("pv2").unwrap(), ..id() };
    let data = VolData::publication(&theirs, &driver(), "h", "n", Lifecycle::Persistent);
    let on_disk = [
        found("pods/u/volumes/kubernetes.io~csi/pv", None),
        found("pods/u/volumes/kubernetes.io~csi/pv2", Some(data)),
        found("pods/u/volumes/kubernetes.io~secret/s", None),
        found(&staging.as_path().display().to_string(), None),
        FoundVolume { empty: true, ..found("plugins/kubernetes.io/csi/d/0", None) },
    ];
    let records = BTreeMap::from([(record.key.clone(), record)]);
    let foreign = foreign(&on_disk, &records, &MountTable::default(), &layout());
    let shown: Vec<_> = foreign.iter().map(|f| (f.path.display().to_string(), f.key.clone())).collect();
    assert_eq!(
        shown,
        [
            ("/root/pods/u/volumes/kubernetes.io~csi/pv2".to_owned(), Some(VolumeKey::csi(&driver(), "h"))),
            ("/root/pods/u/volumes/kubernetes.io~secret/s".to_owned(), None),
        ]
    );
}

#[test]
fn a_vol_data_that_says_another_volume_puts_the_record_in_doubt() {
    let record = record(done(None), boot("now"));
    let key = record.key.clone();
    let doubt = |data: VolData| {
        let mut records = BTreeMap::from([(key.clone(), record.clone())]);
        doubt_disputed(&mut records, &[found("pods/u/volumes/kubernetes.io~csi/pv", Some(data))], &layout());
        let have = look_at(&records[&key], &MountTable::default());
        have.publications[&id()].presence
    };
    let ours = VolData::publication(&id(), &driver(), "h", "n", Lifecycle::Persistent);
    assert_eq!(doubt(ours), Presence::Yes);
    let other = VolData::publication(&id(), &driver(), "other", "n", Lifecycle::Persistent);
    assert_eq!(doubt(other), Presence::Uncertain);
}

#[test]
fn a_block_volume_is_there_when_what_was_published_is_bound_on_its_map_alone() {
    let map = layout().absolute(&layout().block_map(&id()));
    let on_map = |source: &str| mount(map.to_str().unwrap(), source, 5);
    let seen = |state: CallState, mounts: Vec<Mount>| {
        let mut record = record(state, boot("now"));
        let publication = record.publications.get_mut(&id()).unwrap();
        publication.arguments.as_mut().unwrap().capability.volume_mode = VolumeMode::Block;
        let have = look_at(&record, &MountTable::new(mounts)).publications[&id()].as_ref().clone();
        (have.presence, have.obstacle.is_some())
    };
    let (ours, bound) = (mount(TARGET, "s", 5), done(Some(mount(TARGET, "s", 5).identity())));
    assert_eq!(seen(bound.clone(), vec![ours.clone(), on_map("s")]), (Presence::Yes, false));
    assert_eq!(seen(bound.clone(), vec![ours.clone()]), (Presence::Uncertain, false), "it is bound again");
    assert_eq!(seen(bound.clone(), vec![ours.clone(), on_map("x")]), (Presence::Uncertain, true));
    assert_eq!(seen(bound, vec![ours, on_map("s"), on_map("x")]), (Presence::Uncertain, true));
    // The driver showed it by a link or a node: the mount table does not say what it should be.
    assert_eq!(seen(done(None), vec![on_map("s")]), (Presence::Yes, false));
    assert_eq!(seen(done(None), vec![on_map("s"), on_map("x")]), (Presence::Uncertain, true));
}
