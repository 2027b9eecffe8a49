//! Two PersistentVolumes with one driver and handle, edits at the next bring-up, and what a driver's limit counts.

use super::*;

fn want(desired: &mut Desired, id: PublicationId, want: Want) {
    Arc::make_mut(desired.volumes.entry(key(0)).or_default()).publications.insert(id, want);
}

fn as_another(pod: usize) -> PublicationId {
    PublicationId { spec: SpecName::new("a-pv").unwrap(), ..id(0, pod) }
}

#[test]
fn a_volume_is_not_published_as_two_persistent_volumes_at_once() {
    for wish in [Wish::Held, Wish::Absent] {
        for staging in [Start::Yes, Start::Doubt { frozen: false }] {
            let (mut desired, actual) = world(&simple(wish, Start::Yes, staging));
            want(&mut desired, as_another(1), Want::Wanted(Arc::new(wanted(0, 1, false))));
            let decision = decision(&desired, &actual);
            assert_eq!(decision.step.is_some(), wish == Wish::Absent, "{wish:?} {staging:?}");
            assert!(decision.step.is_none_or(|step| matches!(step, Step::Unpublish { .. })));
            let blocked = decision.blocked.iter().find(|blocked| blocked.publication == Some(as_another(1)));
            assert_eq!(blocked.map(|blocked| blocked.cause.code.as_str()), Some("place-taken"));
        }
    }
}

#[test]
fn a_staging_that_nobody_has_is_made_anew_as_the_manifests_say_now() {
    for (edited, publication) in [(false, Start::Nothing), (true, Start::Nothing), (true, Start::Yes)] {
        let (mut desired, actual) = world(&simple(Wish::Absent, publication, Start::Yes));
        want(&mut desired, id(0, 1), Want::Wanted(Arc::new(wanted(0, 1, edited))));
        want(&mut desired, id(0, 0), Want::Wanted(Arc::new(wanted(0, 0, edited))));
        let step = decision(&desired, &actual).step;
        let unstages = matches!(step, Some(Step::Unstage { .. }));
        assert_eq!(unstages, edited && publication == Start::Nothing, "{publication:?}: {step:?}");
    }
}

#[test]
fn what_others_left_counts_for_the_limit_of_its_driver() {
    let foreign = |volume: usize| Foreign {
        path: "/root/pods/x/volumes/kubernetes.io~csi/pv".into(),
        key: Some(key(volume)),
        publication: Some((
            PodUid::new("x").unwrap(),
            "kubernetes.io~csi".to_owned(),
            SpecName::new("pv").unwrap(),
        )),
        volume: Some(recorded(csi(&wanted(volume, 0, false)))),
        volume_mode: VolumeMode::Filesystem,
        target: "/root/pods/x/volumes/kubernetes.io~csi/pv/mount".into(),
        mounted: true,
        mount: None,
    };
    for (limit, volume, has_room) in [(1, 7, false), (2, 7, true), (1, 0, true)] {
        let (desired, mut actual) = world(&simple(Wish::Wanted, Start::Nothing, Start::Nothing));
        actual.drivers.get_mut(&driver()).unwrap().info.max_volumes = limit;
        actual.foreign.push(foreign(volume));
        let decision = decision(&desired, &actual);
        let stages = matches!(decision.step, Some(Step::Stage(_)));
        assert_eq!(stages, has_room, "limit {limit}, volume {volume}: {decision:?}");
    }
}
