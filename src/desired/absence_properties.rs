//! `Absences` in random worlds: what it may never do, whatever happens in whatever order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proptest::prelude::*;

use super::bench::Bench;
use super::*;
use crate::model::Want;

const PODS: usize = 24;
const DIRECTORIES: [&str; 3] = ["/a", "/b", "/c"];
const GRACE_MS: u64 = 1_000;

type Spot = (VolumeKey, PublicationId);

/// Something that happens.
#[derive(Debug, Clone, Copy)]
enum Happening {
    Add(usize),
    Remove(usize),
    RemoveDirectory(usize),
    Leave(usize),
    /// Its manifest breaks, or is mended.
    Break(usize, bool),
    /// The volume is no longer listed.
    Unlist(usize),
    /// After so many ms, completely or not.
    Read(u64, bool),
    /// Nothing new was read.
    Wait(u64),
    BringUp,
    TakeDown,
    Approve,
    /// The daemon starts again: its memory is lost, the records are not.
    Restart,
}

fn happening() -> impl Strategy<Value = Happening> {
    let pod = || 0..PODS;
    prop_oneof![
        3 => pod().prop_map(Happening::Add),
        5 => pod().prop_map(Happening::Remove),
        1 => (0..DIRECTORIES.len()).prop_map(Happening::RemoveDirectory),
        1 => pod().prop_map(Happening::Leave),
        1 => (pod(), any::<bool>()).prop_map(|(p, b)| Happening::Break(p, b)),
        1 => pod().prop_map(Happening::Unlist),
        10 => (prop_oneof![Just(400_u64), Just(1_000), Just(20_000)], prop::bool::weighted(0.85))
            .prop_map(|(t, c)| Happening::Read(t, c)),
        1 => (0_u64..90_000).prop_map(Happening::Wait),
        2 => Just(Happening::BringUp),
        2 => Just(Happening::TakeDown),
        1 => Just(Happening::Approve),
        1 => Just(Happening::Restart),
    ]
}

fn name(pod: usize) -> String {
    format!("p{pod:02}")
}

fn add(bench: &mut Bench, pod: usize) {
    // Most in one directory, so that the brake's two rules are both met.
    bench.add(&name(pod), DIRECTORIES[if pod < 16 { 0 } else { 1 + pod % 2 }]);
}

fn happen(bench: &mut Bench, happening: Happening, release: Option<u64>) {
    match happening {
        Happening::Add(pod) => add(bench, pod),
        Happening::Remove(pod) => bench.remove(&name(pod)),
        Happening::RemoveDirectory(n) => {
            let gone = bench.resolved.pods.values().filter(|p| p.source.file.starts_with(DIRECTORIES[n]));
            let gone: Vec<String> = gone.map(|p| p.identity.name.clone()).collect();
            gone.iter().for_each(|pod| bench.remove(pod));
        }
        Happening::Leave(pod) => change(bench, pod, |p| p.leaving = true),
        Happening::Break(pod, broken) => change(bench, pod, |p| {
            p.held = broken.then(|| hold::invalid("it is broken", "mend it"));
            if broken {
                p.volumes.clear();
            }
        }),
        Happening::Unlist(pod) => change(bench, pod, |p| p.volumes.clear()),
        Happening::Read(after, complete) => bench.read(after, complete),
        Happening::Wait(ms) => bench.now_ms += ms,
        Happening::BringUp => bench.bring_up(),
        Happening::TakeDown => bench.take_down(),
        Happening::Approve => {
            bench.settle();
            bench.approve();
        }
        Happening::Restart => {
            bench.absences = Absences::new(GRACE_MS, release);
            bench.resolved.reading.generation = 1;
        }
    }
}

fn change(bench: &mut Bench, pod: usize, how: impl FnOnce(&mut ResolvedPod)) {
    if let Some(pod) =
        Arc::make_mut(&mut bench.resolved.pods).values_mut().find(|p| p.identity.name == name(pod))
    {
        how(Arc::make_mut(pod));
    }
}

/// What an onlooker knows who remembers everything.
#[derive(Default)]
struct Onlooker {
    /// Since when complete readings lack a publication: generation and begin of the first.
    lacking: BTreeMap<Spot, (u64, u64)>,
    /// What went, when, and from which directory.
    went: BTreeMap<Spot, (u64, Option<PathBuf>)>,
}

impl Onlooker {
    /// Looks at one decision and complains.
    fn look(&mut self, bench: &Bench, wants: &BTreeMap<Spot, Want>) -> Result<(), TestCaseError> {
        let reading = &bench.resolved.reading;
        let lost_before = |this: &Self| -> BTreeMap<VolumeKey, Option<PathBuf>> {
            let recent = this.went.iter().filter(|(_, (at, _))| bench.now_ms - at < 60_000);
            recent.map(|((key, _), (_, directory))| (key.clone(), directory.clone())).collect()
        };
        let mut new = Vec::new();
        for (spot, record) in &bench.records {
            let want = wants.get(spot);
            prop_assert!(want.is_some(), "{spot:?} is not decided about");
            let pod = bench.resolved.pods.get(&spot.1.pod);
            let listed = pod.is_some_and(|p| p.volumes.contains_key("data"));
            let held = pod.is_some_and(|p| p.held.is_some());
            let leaving = pod.is_some_and(|p| p.leaving);
            let lacks = !listed && !held && !leaving;
            if !lacks {
                self.lacking.remove(spot);
                self.went.remove(spot);
            } else if reading.is_complete() {
                self.lacking.entry(spot.clone()).or_insert((reading.generation, reading.began_ms));
            }
            match want.unwrap() {
                Want::Wanted(_) => prop_assert!(listed && !leaving),
                Want::Held(hold) => {
                    prop_assert!(!hold.detail.is_empty() && !hold.remedy.is_empty());
                    prop_assert!(!leaving, "a leaving pod is absent at once");
                    prop_assert!(!(lacks && record.approved), "approved is approved");
                }
                Want::Absent if leaving => {}
                Want::Absent => {
                    prop_assert!(lacks, "{spot:?} is in the manifests");
                    if !record.approved {
                        prop_assert!(reading.is_complete());
                        let (generation, began_ms) = self.lacking[spot];
                        prop_assert!(reading.generation > generation);
                        prop_assert!(reading.began_ms >= began_ms + GRACE_MS);
                        new.push((spot.clone(), record));
                    }
                }
            }
        }
        for (spot, _) in wants.iter().filter(|(spot, _)| !bench.records.contains_key(*spot)) {
            self.went.remove(spot);
        }
        new.retain(|(spot, _)| !self.went.contains_key(spot));
        if new.is_empty() {
            return Ok(());
        }
        let mut lost = lost_before(self);
        for (spot, record) in &new {
            let directory = record.manifest.as_ref().and_then(|f| f.parent()).map(ToOwned::to_owned);
            lost.insert(spot.0.clone(), directory.clone());
            self.went.insert(spot.clone(), (bench.now_ms, directory));
        }
        let all: BTreeSet<&VolumeKey> = bench.records.keys().map(|s| &s.0).chain(lost.keys()).collect();
        prop_assert!(lost.len() <= 10 || lost.len() * 2 <= all.len(), "{} of {} went", lost.len(), all.len());
        for (_, record) in &new {
            let directory = record.manifest.as_ref().and_then(|f| f.parent()).map(ToOwned::to_owned);
            let files = directory.as_ref().map_or(0, |d| reading.directories[d].files);
            let with_it = lost.values().filter(|d| **d == directory).count();
            prop_assert!(files > 0 || with_it <= 3, "{with_it} went with the last manifest of {directory:?}");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn nothing_goes_that_is_not_known_to_be_unwanted(
        happenings in prop::collection::vec(happening(), 1..80),
    ) {
        let mut bench = Bench::new(Absences::new(GRACE_MS, None));
        (0..PODS).for_each(|pod| add(&mut bench, pod));
        bench.read(0, true);
        bench.bring_up();
        let mut onlooker = Onlooker::default();
        for happening in happenings {
            if matches!(happening, Happening::Restart) {
                // What went is forgotten with the daemon; what lacks is known anew.
                onlooker = Onlooker::default();
            }
            happen(&mut bench, happening, None);
            let (settled, wants) = bench.settle();
            onlooker.look(&bench, &wants)?;
            let wanted = bench.resolved.pods.values().filter(|p| !p.leaving).flat_map(|p| p.volumes.values());
            for volume in wanted {
                if let ResolvedWant::Wanted { key, id, .. } = &volume.want {
                    prop_assert!(matches!(wants.get(&(key.clone(), id.clone())), Some(Want::Wanted(_))));
                }
            }
            let braked = bench.absences.braked().len();
            prop_assert_eq!(settled.brake.map_or(0, |b| b.held), braked);
            // Asked again about the same, it says the same.
            prop_assert_eq!(bench.settle().1, wants);
        }
    }

    #[test]
    fn in_the_end_what_is_unwanted_goes_and_what_is_wanted_stays(
        happenings in prop::collection::vec(happening(), 1..60),
        release in prop::option::of(1_000_u64..300_000),
    ) {
        let mut bench = Bench::new(Absences::new(GRACE_MS, release));
        (0..PODS).for_each(|pod| add(&mut bench, pod));
        bench.read(0, true);
        bench.bring_up();
        for happening in happenings {
            happen(&mut bench, happening, release);
        }
        bench.read(0, true);
        bench.settle();
        bench.read(GRACE_MS, true);
        bench.settle();
        // An operator approves, or the time that the brake may hold passes.
        match release {
            None => bench.approve(),
            Some(ms) => bench.now_ms += ms,
        }
        let wants = bench.settle().1;
        for spot in bench.records.keys() {
            let pod = bench.resolved.pods.get(&spot.1.pod);
            let expected = match pod {
                None => wants[spot] == Want::Absent,
                Some(p) if p.leaving => wants[spot] == Want::Absent,
                Some(p) if p.volumes.contains_key("data") => matches!(wants[spot], Want::Wanted(_)),
                Some(p) if p.held.is_some() => matches!(wants[spot], Want::Held(_)),
                Some(_) => wants[spot] == Want::Absent,
            };
            prop_assert!(expected, "{spot:?}: {:?}", wants[spot]);
        }
    }
}
