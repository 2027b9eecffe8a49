//! Two pods that name one disk of a storage system, each in its own words.

use super::*;
use crate::model::{DiskSource, IscsiLun, Lun, Portal, TargetName};

fn lun(portals: &[&str]) -> Lun {
    Lun::Iscsi(IscsiLun {
        portals: portals.iter().map(|portal| Portal::new(portal).unwrap()).collect(),
        iqn: TargetName::new("iqn.2026-11.io.volumed:one").unwrap(),
        lun: 0,
        discovery_chap: false,
        session_chap: false,
    })
}

fn place(pod: usize) -> PublicationId {
    PublicationId { plugin: Plugin::Iscsi, spec: SpecName::new("data").unwrap(), ..id(0, pod) }
}

fn device(lun: Lun) -> DeviceWant {
    DeviceWant {
        disk: DiskSource::Lun(lun),
        volume_mode: VolumeMode::Filesystem,
        fs_type: None,
        mount_flags: Vec::new(),
        access_mode: "ReadWriteOnce".to_owned(),
        read_only: false,
        source_read_only: false,
        single_pod: false,
        ownership: None,
        size: None,
        auto_grow: false,
        key: None,
        secrets: Arc::default(),
    }
}

/// Pods 0 and 1 want the disk by these portals; it is staged by the portals of pod `staged`, and shown to those.
fn decided(portals: [&[&str]; 2], staged: usize, shown: &[usize]) -> Option<Step> {
    let luns = portals.map(lun);
    let key = VolumeKey::lun(&luns[0]);
    let (mut desired, mut actual) = (Desired { is_read: true, ..Desired::default() }, Actual::default());
    let mut publications = BTreeMap::new();
    for (pod, lun) in luns.iter().enumerate() {
        let volume = WantedVolume::Device(Box::new(device(lun.clone())));
        publications.insert(place(pod), Want::Wanted(Arc::new(Wanted { volume, ..wanted(0, pod, false) })));
    }
    desired.volumes.insert(key.clone(), Arc::new(WantVolume { publications }));
    let (of_stager, layout) = (device(luns[staged].clone()), layout());
    let arguments = arguments::stage_device(&layout, &place(staged), &of_stager).unwrap();
    let (presence, frozen, undoing, obstacle) = (Presence::Yes, true, false, None);
    let staging = HaveStaging {
        presence,
        arguments,
        frozen,
        undoing,
        obstacle,
        not_a_mount_point: false,
        dead: false,
        mount: None,
    };
    let publication = |pod: &usize| {
        let volume = WantedVolume::Device(Box::new(device(luns[*pod].clone())));
        let wanted = Wanted { volume, ..wanted(0, *pod, false) };
        let plan = arguments::publication(&layout, &place(*pod), &wanted, None, None).unwrap();
        let have = HavePublication {
            presence: Presence::Yes,
            arguments: plan.arguments,
            frozen: true,
            undoing: false,
            obstacle: None,
            not_a_mount_point: false,
            dead: false,
        };
        (place(*pod), Box::new(have))
    };
    let have = Have {
        volume: recorded_device(&of_stager),
        staging: Some(staging),
        publications: shown.iter().map(publication).collect(),
        size: None,
        expansion: None,
    };
    actual.set(&key, Some(have));
    let orders = Orders::default();
    let world = World { desired: &desired, actual: &actual, layout: &layout, orders };
    decide(world, &key, &Retries::default(), Now { mono: 0, wall: 0 }).step
}

#[test]
fn whoever_comes_first_says_how_it_is_connected() {
    let (one, two): (&[&str], &[&str]) = (&["10.0.0.1"], &["10.0.0.1", "10.0.0.2"]);
    // As the first says: the second is shown it too, and it is not undone for its sake.
    let step = decided([one, two], 0, &[]);
    assert!(matches!(step, Some(Step::Publish(_))), "{step:?}");
    let step = decided([one, two], 0, &[0]);
    assert!(matches!(&step, Some(Step::Publish(step)) if step.id == place(1)), "{step:?}");
    // Nobody has it yet, and it is another one's: once more, as the first says.
    let step = decided([one, two], 1, &[]);
    assert!(matches!(step, Some(Step::Unstage { .. })), "{step:?}");
    // Somebody has it: it stays as it is.
    let step = decided([one, two], 1, &[1]);
    assert!(matches!(&step, Some(Step::Publish(step)) if step.id == place(0)), "{step:?}");
    assert_eq!(decided([one, two], 1, &[0, 1]), None);
}
