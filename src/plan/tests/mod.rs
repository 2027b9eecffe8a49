//! Properties of the plan: from every start, taking the steps it names reaches every goal, and no step on the way breaks a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::{
    Attach, DriverInfo, DriverOrigin, DriverState, Foreign, Hold, HoldCode, Lifecycle, Plugin, PodIdentity,
    PodUid, Presence, SpecName, VolumeMode, WantVolume,
};

mod decisions;
mod luns;
mod names;
mod restaging;
mod steps;

use steps::{apply, check, publication};

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
        WantedVolume::Local(_)
        | WantedVolume::Device(_)
        | WantedVolume::Nfs(_)
        | WantedVolume::EmptyDir { .. }
        | WantedVolume::HostPath { .. } => {
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
        desired.volumes.insert(key(volume), want.into());
        let nothing = have.staging.is_none() && have.publications.is_empty();
        actual.set(&key(volume), (!nothing).then_some(have));
    }
    (desired, actual)
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
