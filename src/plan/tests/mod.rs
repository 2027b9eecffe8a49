//! Properties of the plan: from every start, taking the steps it names reaches every goal, and no step on the way breaks a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::{
    Attach, DriverInfo, DriverOrigin, DriverState, Foreign, Hold, HoldCode, Lifecycle, Plugin, PodIdentity,
    PodUid, Presence, SpecName, VolumeMode, WantVolume,
};

mod restaging;

const VOLUMES: usize = 3;
const PODS: usize = 3;

/// What is wished of one publication at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Wanted,
    /// Wanted, with other arguments than were recorded.
    Edited,
    Held,
    Absent,
    Undecided,
}

/// What is recorded of a call at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Nothing,
    Planned,
    Yes,
    Doubt { frozen: bool },
    Undoing,
}

fn wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        3 => Just(Wish::Wanted),
        1 => Just(Wish::Edited),
        1 => Just(Wish::Held),
        3 => Just(Wish::Absent),
        1 => Just(Wish::Undecided),
    ]
}

fn start() -> impl Strategy<Value = Start> {
    prop_oneof![
        3 => Just(Start::Nothing),
        1 => Just(Start::Planned),
        2 => Just(Start::Yes),
        2 => any::<bool>().prop_map(|frozen| Start::Doubt { frozen }),
        1 => Just(Start::Undoing),
    ]
}

#[derive(Debug, Clone)]
struct Case {
    stages: bool,
    stagings: Vec<Start>,
    /// By volume, then pod.
    publications: Vec<Vec<(Wish, Start)>>,
}

fn case() -> impl Strategy<Value = Case> {
    let publications = prop::collection::vec(prop::collection::vec((wish(), start()), PODS), VOLUMES);
    (any::<bool>(), prop::collection::vec(start(), VOLUMES), publications)
        .prop_map(|(stages, stagings, publications)| Case { stages, stagings, publications })
}

fn driver() -> DriverName {
    DriverName::new("d.example.com").unwrap()
}

fn layout() -> Layout {
    Layout::new("/root")
}

fn handle(volume: usize) -> String {
    format!("h{volume}")
}

fn key(volume: usize) -> VolumeKey {
    VolumeKey::csi(&driver(), &handle(volume))
}

fn id(volume: usize, pod: usize) -> PublicationId {
    PublicationId {
        pod: PodUid::new(format!("pod{pod}")).unwrap(),
        plugin: Plugin::Csi,
        spec: SpecName::new(format!("pv{volume}")).unwrap(),
    }
}

fn wanted(volume: usize, pod: usize, edited: bool) -> Wanted {
    let attribute = if edited { "new" } else { "old" };
    Wanted {
        pod: PodIdentity {
            uid: PodUid::new(format!("pod{pod}")).unwrap(),
            namespace: "default".to_owned(),
            name: format!("pod{pod}"),
        },
        names: BTreeSet::from(["data".to_owned()]),
        claim: None,
        manifest: None,
        volume: WantedVolume::Csi(Box::new(CsiWant {
            driver: driver(),
            handle: handle(volume),
            lifecycle: Lifecycle::Persistent,
            fs_type: "ext4".to_owned(),
            mount_flags: Vec::new(),
            access_mode: "ReadWriteOnce".to_owned(),
            volume_context: BTreeMap::from([("a".to_owned(), attribute.to_owned())]),
            read_only: false,
            source_read_only: false,
            single_pod: false,
            fs_group: None,
            republish: false,
            tokens: None,
            size: None,
            volume_mode: VolumeMode::Filesystem,
            expand_secrets: Arc::default(),
            pod_info: None,
            attach: Attach::NotRequired,
            stage_secrets: Arc::default(),
            publish_secrets: Arc::default(),
        })),
    }
}

fn info(stages: bool) -> DriverInfo {
    DriverInfo { stage_unstage: stages, ..DriverInfo::default() }
}

fn csi(wanted: &Wanted) -> &CsiWant {
    match &wanted.volume {
        WantedVolume::Csi(csi) => csi,
        WantedVolume::EmptyDir { .. } | WantedVolume::HostPath { .. } => {
            panic!("only CSI volumes are made here")
        }
    }
}

fn presence(start: Start) -> Presence {
    match start {
        Start::Nothing | Start::Planned => Presence::No,
        Start::Yes => Presence::Yes,
        Start::Doubt { .. } | Start::Undoing => Presence::Uncertain,
    }
}

fn world(case: &Case) -> (Desired, Actual) {
    let mut desired = Desired { is_read: true, ..Desired::default() };
    let mut actual = Actual::default();
    let state = DriverState {
        connection: Connection::Ready,
        info: info(case.stages),
        endpoint: "/csi.sock".into(),
        origin: DriverOrigin::Configured,
        since: 0,
        unwell: None,
        standby: Vec::new(),
    };
    actual.drivers.insert(driver(), state);
    for volume in 0..VOLUMES {
        let old = wanted(volume, 0, false);
        let staging = match case.stagings[volume] {
            Start::Nothing | Start::Planned => None,
            recorded => Some(HaveStaging {
                presence: presence(recorded),
                arguments: arguments::stage(&layout(), &id(volume, 0), csi(&old), &info(case.stages))
                    .unwrap(),
                frozen: recorded != (Start::Doubt { frozen: false }),
                undoing: recorded == Start::Undoing,
                obstacle: None,
                not_a_mount_point: false,
                dead: false,
                mount: None,
            }),
        };
        let mut have = Have {
            volume: recorded(csi(&old)),
            staging,
            publications: BTreeMap::new(),
            size: None,
            expansion: None,
        };
        let mut want = WantVolume::default();
        for pod in 0..PODS {
            let (wish, start) = case.publications[volume][pod];
            if start != Start::Nothing {
                let plan = arguments::publication(
                    &layout(),
                    &id(volume, pod),
                    &wanted(volume, pod, false),
                    Some(&info(case.stages)),
                    None,
                );
                let publication = HavePublication {
                    presence: presence(start),
                    arguments: plan.unwrap().arguments,
                    frozen: matches!(start, Start::Yes | Start::Doubt { frozen: true } | Start::Undoing),
                    undoing: start == Start::Undoing,
                    obstacle: None,
                    not_a_mount_point: false,
                    dead: false,
                };
                have.publications.insert(id(volume, pod), Box::new(publication));
            }
            let wish = match wish {
                Wish::Wanted => Want::Wanted(Arc::new(wanted(volume, pod, false))),
                Wish::Edited => Want::Wanted(Arc::new(wanted(volume, pod, true))),
                Wish::Absent => Want::Absent,
                Wish::Held => Want::Held(Hold {
                    code: HoldCode::ManifestMissing,
                    detail: "its manifest is missing".to_owned(),
                    remedy: "wait".to_owned(),
                }),
                Wish::Undecided => continue,
            };
            want.publications.insert(id(volume, pod), wish);
        }
        desired.volumes.insert(key(volume), want);
        let nothing = have.staging.is_none() && have.publications.is_empty();
        actual.set(&key(volume), (!nothing).then_some(have));
    }
    (desired, actual)
}

/// Refuses a step that breaks a rule in this state.
fn check(step: &Step, desired: &Desired, actual: &Actual) {
    let have = actual.volumes.get(step.key());
    let want = desired.volumes.get(step.key());
    match step {
        Step::Unstage { .. } => {
            assert!(
                have.unwrap().publications.is_empty(),
                "unstaged while it is or may be published: {step:?}"
            );
            let held =
                want.is_some_and(|want| want.publications.values().any(|want| matches!(want, Want::Held(_))));
            assert!(!held, "unstaged while it is held: {step:?}");
        }
        Step::Republish(_) | Step::Expand(_) => {}
        Step::Unpublish { id, .. } => {
            let have = &have.unwrap().publications[id];
            match want.and_then(|want| want.publications.get(id)) {
                Some(Want::Absent) => {}
                Some(Want::Wanted(_)) => {
                    assert!(have.presence != Presence::Yes, "a wanted mount is taken away: {step:?}");
                }
                Some(Want::Held(_)) | None => panic!("what is held or undecided is taken away: {step:?}"),
            }
        }
        Step::Publish(publish) => {
            let have = have.filter(|have| have.staging.as_ref().is_some_and(|s| s.presence == Presence::Yes));
            assert!(have.is_some(), "published before it is staged: {step:?}");
            let want = want.and_then(|want| want.publications.get(&publish.id));
            assert!(matches!(want, Some(Want::Wanted(_))), "published though it is not wanted: {step:?}");
        }
        Step::Stage(_) => {
            let wanted =
                want.is_some_and(|w| w.publications.values().any(|want| matches!(want, Want::Wanted(_))));
            assert!(wanted, "staged though nobody wants it: {step:?}");
        }
    }
}

/// Does what a step that succeeds does, or leaves what one that fails leaves.
fn apply(step: Step, actual: &mut Actual, fails: bool) {
    let key = step.key().clone();
    let have = actual.volumes.get(&key).cloned();
    let volume = match &step {
        Step::Stage(step) => step.volume.clone(),
        Step::Publish(step) | Step::Republish(step) => step.volume.clone(),
        Step::Expand(_) | Step::Unpublish { .. } | Step::Unstage { .. } => RecordedVolume::EmptyDir,
    };
    let mut have = have.unwrap_or_else(|| Have {
        volume,
        staging: None,
        publications: BTreeMap::new(),
        size: None,
        expansion: None,
    });
    let presence = if fails { Presence::Uncertain } else { Presence::Yes };
    match step {
        Step::Stage(step) => {
            have.staging = Some(HaveStaging {
                presence,
                arguments: step.arguments,
                frozen: true,
                undoing: false,
                obstacle: None,
                not_a_mount_point: false,
                dead: false,
                mount: None,
            });
            for (id, plan) in step.planned {
                let planned = Box::new(publication(Presence::No, plan.arguments, false));
                have.publications.entry(id).or_insert(planned);
            }
        }
        Step::Publish(step) => {
            let published = publication(presence, step.plan.arguments, false);
            have.publications.insert(step.id, Box::new(published));
        }
        Step::Republish(_) => {}
        Step::Expand(step) if !fails => have.size = Some(step.arguments.required_bytes),
        Step::Expand(_) => {}
        Step::Unpublish { id, .. } if fails => {
            let old = have.publications[&id].arguments.clone();
            have.publications.insert(id, Box::new(publication(Presence::Uncertain, old, true)));
        }
        Step::Unpublish { id, .. } => {
            have.publications.remove(&id);
        }
        Step::Unstage { .. } if fails => {
            if let Some(staging) = &mut have.staging {
                staging.presence = Presence::Uncertain;
                staging.undoing = true;
            }
        }
        Step::Unstage { .. } => have.staging = None,
    }
    let nothing = have.staging.is_none() && have.publications.is_empty();
    actual.set(&key, (!nothing).then_some(have));
}

fn publication(presence: Presence, arguments: Option<PublishArguments>, undoing: bool) -> HavePublication {
    let frozen = presence != Presence::No;
    HavePublication {
        presence,
        arguments,
        frozen,
        undoing,
        obstacle: None,
        not_a_mount_point: false,
        dead: false,
    }
}

const NOW: Now = Now { mono: 0, wall: 0 };

/// Takes steps until there are none; every `failures[i]` says whether the i-th step fails.
fn settle(desired: &Desired, actual: &mut Actual, failures: &[bool]) {
    let layout = layout();
    let mut taken = 0;
    loop {
        let mut idle = true;
        for volume in 0..VOLUMES {
            let world = World { desired, actual, layout: &layout, orders: Orders::default() };
            let Some(step) = decide(world, &key(volume), &Retries::default(), NOW).step else { continue };
            check(&step, desired, actual);
            let fails = failures.get(taken).copied().unwrap_or(false);
            apply(step, actual, fails);
            taken += 1;
            idle = false;
        }
        if idle {
            return;
        }
        assert!(taken < 300, "it never comes to rest");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn from_every_start_every_goal_is_reached_and_no_rule_is_broken(
        case in case(),
        failures in prop::collection::vec(any::<bool>(), 0..20),
    ) {
        let (desired, mut actual) = world(&case);
        let before = actual.clone();
        settle(&desired, &mut actual, &failures);
        for volume in 0..VOLUMES {
            let have = actual.volumes.get(&key(volume));
            let mut kept = false;
            let mut wanted = false;
            for pod in 0..PODS {
                let id = id(volume, pod);
                let now = have.and_then(|have| have.publications.get(&id));
                let was = before.volumes.get(&key(volume)).and_then(|have| have.publications.get(&id));
                match case.publications[volume][pod].0 {
                    Wish::Wanted | Wish::Edited => {
                        wanted = true;
                        // A staging in doubt that must be redone waits for what is held on it.
                        let waits = (0..PODS).any(|pod| matches!(case.publications[volume][pod].0, Wish::Held | Wish::Undecided));
                        prop_assert!(waits || now.map(|now| now.presence) == Some(Presence::Yes), "{id} is not up: {now:?}");
                    }
                    Wish::Absent => prop_assert!(now.is_none(), "{id} is not down: {now:?}"),
                    Wish::Held => { kept = true; prop_assert_eq!(now, was, "what is held moved"); }
                    Wish::Undecided => { kept |= was.is_some(); prop_assert_eq!(now, was, "what is undecided moved"); }
                }
            }
            if !kept && !wanted {
                prop_assert!(have.is_none(), "volume {volume} is wanted by nobody and left: {have:?}");
            }
        }
    }

    #[test]
    fn what_is_only_held_moves_not_at_all(mut case in case()) {
        for publication in case.publications.iter_mut().flatten() {
            publication.0 = Wish::Held;
        }
        let (desired, mut actual) = world(&case);
        let before = actual.clone();
        settle(&desired, &mut actual, &[]);
        prop_assert_eq!(actual, before);
    }
}

fn simple(wish: Wish, publication: Start, staging: Start) -> Case {
    let mut case = Case {
        stages: true,
        stagings: vec![Start::Nothing; VOLUMES],
        publications: vec![vec![(Wish::Undecided, Start::Nothing); PODS]; VOLUMES],
    };
    case.stagings[0] = staging;
    case.publications[0][0] = (wish, publication);
    case
}

fn decision(desired: &Desired, actual: &Actual) -> Decision {
    let layout = layout();
    decide(
        World { desired, actual, layout: &layout, orders: Orders::default() },
        &key(0),
        &Retries::default(),
        NOW,
    )
}

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
            desired.volumes.get_mut(&key(0)).unwrap().publications.get_mut(&id(0, 0))
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
        desired.volumes.get_mut(&key(0)).unwrap().publications.get_mut(&id(0, 0))
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
