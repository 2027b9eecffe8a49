//! Stagings that vanished, or whose driver can do something else by now.

use super::*;

fn with_driver(actual: &mut Actual, stages: bool) {
    actual.drivers.get_mut(&driver()).unwrap().info = info(stages);
}

#[test]
fn a_driver_that_learned_to_stage_is_asked_to_once_nobody_is_shown_the_volume() {
    let mut case = simple(Wish::Wanted, Start::Nothing, Start::Yes);
    case.stages = false;
    let (desired, mut actual) = world(&case);
    assert!(matches!(decision(&desired, &actual).step, Some(Step::Publish(_))));
    with_driver(&mut actual, true);
    assert!(matches!(decision(&desired, &actual).step, Some(Step::Unstage { .. })));

    case.publications[0][0].1 = Start::Yes;
    let (desired, mut actual) = world(&case);
    with_driver(&mut actual, true);
    assert_eq!(decision(&desired, &actual).step, None, "what a pod has stays as it is");
}

#[test]
fn a_driver_that_does_not_stage_any_more_is_not_asked_to() {
    for frozen in [true, false] {
        let (desired, mut actual) = world(&simple(Wish::Wanted, Start::Yes, Start::Doubt { frozen }));
        with_driver(&mut actual, false);
        let decision = decision(&desired, &actual);
        assert_eq!(decision.step, None);
        assert_eq!(decision.blocked[0].cause.code, "driver-cannot-stage");
    }
}

#[test]
fn what_a_driver_may_have_staged_is_undone_before_it_comes_up_without_a_staging() {
    let doubt = Start::Doubt { frozen: false };
    let (desired, mut actual) = world(&simple(Wish::Wanted, Start::Nothing, doubt));
    with_driver(&mut actual, false);
    assert!(matches!(decision(&desired, &actual).step, Some(Step::Unstage { .. })));
}

#[test]
fn what_was_only_planned_for_another_driver_is_forgotten() {
    let (mut desired, actual) = world(&simple(Wish::Wanted, Start::Planned, Start::Nothing));
    let want =
        Arc::make_mut(desired.volumes.get_mut(&key(0)).unwrap()).publications.get_mut(&id(0, 0)).unwrap();
    let Want::Wanted(wanted) = want else { panic!("it is wanted") };
    let WantedVolume::Csi(csi) = &mut Arc::make_mut(wanted).volume else { panic!("it is a CSI volume") };
    csi.lifecycle = Lifecycle::Ephemeral;
    assert!(matches!(decision(&desired, &actual).step, Some(Step::Unpublish { .. })));
}

#[test]
fn a_publication_is_not_repeated_before_its_staging_is_back() {
    let (mut desired, mut actual) = world(&simple(Wish::Wanted, Start::Yes, Start::Yes));
    let want =
        Arc::make_mut(desired.volumes.get_mut(&key(0)).unwrap()).publications.get_mut(&id(0, 0)).unwrap();
    let Want::Wanted(wanted) = want else { panic!("it is wanted") };
    let WantedVolume::Csi(csi) = &mut Arc::make_mut(wanted).volume else { panic!("it is a CSI volume") };
    csi.republish = true;
    assert!(matches!(decision(&desired, &actual).step, Some(Step::Republish(_))));

    let mut have = actual.volumes[&key(0)].clone();
    have.staging.as_mut().unwrap().presence = Presence::Uncertain;
    actual.set(&key(0), Some(have));
    let mut retries = Retries::default();
    let failure = crate::model::Failure::not_done("UNAVAILABLE", "no answer", "wait");
    retries.failed(&StepKind::Stage, &failure, NOW, 0);
    let layout = layout();
    let world = World { desired: &desired, actual: &actual, layout: &layout, orders: Orders::default() };
    assert_eq!(decide(world, &key(0), &retries, Now { mono: 1, wall: 1 }).step, None);
}
