//! Single decisions: what holds or blocks a step, and when one that failed is tried again.

use super::*;

#[test]
fn a_foreign_publication_holds_the_staging() {
    let (desired, mut actual) = world(&simple(Wish::Absent, Start::Nothing, Start::Yes));
    assert!(matches!(decision(&desired, &actual).step, Some(Step::Unstage { .. })));
    actual.foreign.push(Foreign {
        path: "/root/pods/x/volumes/kubernetes.io~csi/pv".into(),
        key: Some(key(0)),
        publication: Some((
            PodUid::new("x").unwrap(),
            "kubernetes.io~csi".to_owned(),
            SpecName::new("pv").unwrap(),
        )),
        volume: None,
        volume_mode: VolumeMode::Filesystem,
        target: "/root/pods/x/volumes/kubernetes.io~csi/pv/mount".into(),
        mounted: true,
        mount: None,
    });
    let decision = decision(&desired, &actual);
    assert_eq!(decision.step, None);
    assert_eq!(decision.blocked[0].cause.code, "foreign-publication");
}

#[test]
fn nobody_is_called_where_something_else_is_mounted() {
    for (wish, publication) in
        [(Wish::Absent, Start::Doubt { frozen: true }), (Wish::Wanted, Start::Doubt { frozen: true })]
    {
        let (desired, mut actual) = world(&simple(wish, publication, Start::Yes));
        let mut have = actual.volumes[&key(0)].clone();
        have.publications.get_mut(&id(0, 0)).unwrap().obstacle =
            Some(crate::model::Obstacle::Below { point: "/x".into() });
        actual.set(&key(0), Some(have));
        let decision = decision(&desired, &actual);
        assert_eq!(decision.step, None, "{wish:?}");
        assert_eq!(decision.blocked[0].cause.code, "obstacle");
    }
}

#[test]
fn a_place_is_not_used_twice() {
    let (desired, mut actual) = world(&simple(Wish::Wanted, Start::Nothing, Start::Yes));
    let mut other = actual.volumes[&key(0)].clone();
    other.publications.insert(id(0, 0), Box::new(publication(Presence::Yes, None, false)));
    actual.set(&key(1), Some(other));
    let decision = decision(&desired, &actual);
    assert_eq!(decision.step, None);
    assert_eq!(decision.blocked[0].cause.code, "place-taken");
}

#[test]
fn a_driver_that_is_away_blocks_both_ways() {
    for (wish, staging) in [(Wish::Wanted, Start::Nothing), (Wish::Absent, Start::Yes)] {
        let (desired, mut actual) = world(&simple(wish, Start::Nothing, staging));
        actual.drivers.clear();
        let decision = decision(&desired, &actual);
        assert_eq!(decision.step, None);
        assert_eq!(decision.blocked[0].cause.code, "driver-not-registered");
    }
}

#[test]
fn a_volume_that_needs_attaching_waits_for_its_attachment() {
    let (mut desired, mut actual) = world(&simple(Wish::Wanted, Start::Nothing, Start::Nothing));
    let mut edit = |attach: Attach| {
        let Some(Want::Wanted(wanted)) =
            Arc::make_mut(desired.volumes.get_mut(&key(0)).unwrap()).publications.get_mut(&id(0, 0))
        else {
            panic!("it is wanted")
        };
        let WantedVolume::Csi(csi) = &mut Arc::make_mut(wanted).volume else { panic!("it is CSI") };
        csi.attach = attach;
        decision(&desired, &actual)
    };
    assert_eq!(edit(Attach::Missing).blocked[0].cause.code, "not-attached");
    assert!(edit(Attach::MissingIfGated).step.is_some(), "the driver does not attach");
    let context = BTreeMap::from([("device".to_owned(), "/dev/x".to_owned())]);
    let Some(Step::Stage(stage)) = edit(Attach::Attached(context.clone())).step else {
        panic!("it is attached")
    };
    assert_eq!(stage.arguments.publish_context, context);
    actual.drivers.get_mut(&driver()).unwrap().info.publish_unpublish = true;
    let decision = decision_with_gate(&mut desired, &actual);
    assert_eq!(decision.blocked[0].cause.code, "not-attached");
}

fn decision_with_gate(desired: &mut Desired, actual: &Actual) -> Decision {
    let Some(Want::Wanted(wanted)) =
        Arc::make_mut(desired.volumes.get_mut(&key(0)).unwrap()).publications.get_mut(&id(0, 0))
    else {
        panic!("it is wanted")
    };
    let WantedVolume::Csi(csi) = &mut Arc::make_mut(wanted).volume else { panic!("it is CSI") };
    csi.attach = Attach::MissingIfGated;
    decision(desired, actual)
}

#[test]
fn a_failed_step_waits_for_its_time_and_says_so() {
    let (desired, actual) = world(&simple(Wish::Wanted, Start::Nothing, Start::Nothing));
    let failure = crate::model::Failure::not_done("UNAVAILABLE", "no answer", "wait");
    let mut retries = Retries::default();
    retries.failed(&StepKind::Stage, &failure, NOW, 0);
    let layout = layout();
    let world = World { desired: &desired, actual: &actual, layout: &layout, orders: Orders::default() };
    let early = decide(world, &key(0), &retries, Now { mono: 499, wall: 499 });
    assert_eq!((early.step, early.again_at), (None, Some(500)));
    assert_eq!(early.blocked[0].next_try, Some(500));
    let due = decide(world, &key(0), &retries, Now { mono: 500, wall: 500 });
    assert!(matches!(due.step, Some(Step::Stage(_))));
}

#[test]
fn pauses_double_up_to_two_minutes() {
    let failure = crate::model::Failure::not_done("INTERNAL", "no", "wait");
    let mut retries = Retries::default();
    let mut pauses = Vec::new();
    for _ in 0..12 {
        match retries.failed(&StepKind::Stage, &failure, NOW, 0).due {
            Due::At(at) => pauses.push(at),
            Due::WhenChanged => panic!("it backs off"),
        }
    }
    assert_eq!(&pauses[..4], [500, 1000, 2000, 4000]);
    assert_eq!(pauses[11], 120_000);
}

#[test]
fn an_inline_volume_that_names_another_driver_is_given_back_to_the_first() {
    let (mut desired, mut actual) = world(&simple(Wish::Wanted, Start::Doubt { frozen: false }, Start::Yes));
    let decided = decision(&desired, &actual);
    assert!(matches!(decided.step, Some(Step::Publish(_))), "{decided:?}");
    let mut have = actual.volumes[&key(0)].clone();
    let first = DriverName::new("first.example.com").unwrap();
    have.volume =
        RecordedVolume::Csi { driver: first.clone(), handle: handle(0), lifecycle: Lifecycle::Persistent };
    actual.set(&key(0), Some(have));
    let state = actual.drivers[&driver()].clone();
    actual.drivers.insert(first, state);
    let decided = decision(&desired, &actual);
    assert!(matches!(decided.step, Some(Step::Unpublish { .. })), "{decided:?}");
    desired.volumes.clear();
    assert_eq!(decision(&desired, &actual).step, None);
}
