//! The real loop, plan, execute and records over a simulated host, drivers and disk; seeded faults and crashes at any await
//! point.
//!
//! `VOLUMED_SIM_SEED=N` replays one seed and prints its story; `VOLUMED_SIM_SEEDS=N` runs that many, from `VOLUMED_SIM_FIRST`;
//! `VOLUMED_SIM_GO_ON=1` names all seeds that fail and not only the first.

#![expect(
    clippy::expect_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::panic,
    unreachable_pub,
    reason = "a test: its helpers may fail loudly and spawn tasks on a runtime of their own"
)]

mod sim;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use volumed::mutant::{self, Mutant};

use sim::goal;
use sim::trouble::Life;
use sim::world::World;

/// What one seed came to.
#[derive(Debug, PartialEq, Eq)]
struct Lived {
    calls: u64,
    wrong: Vec<String>,
    story: Vec<String>,
}

/// Lives through a few seconds full of trouble, then without, and says what is wrong at the end.
async fn live(world: &World) -> Vec<String> {
    let mut life = Life::begin(world);
    for _ in 0..5 + world.below(11) {
        sleep(Duration::from_millis(world.below(400))).await;
        life = life.trouble().await;
    }
    life.peace().await;
    let differences =
        |life: &Life| goal::differences(&world.lock(), &life.wish, &life.daemon.status.borrow());
    // Longer than any deadline and the longest pauses between tries.
    let mut wrong = Vec::new();
    for _ in 0..30 {
        sleep(Duration::from_secs(60)).await;
        wrong = differences(&life);
        if wrong.is_empty() {
            break;
        }
    }
    // Three safety passes in a world at rest: they find nothing that an event missed.
    let done = || {
        let state = world.lock();
        (state.calls, state.happenings)
    };
    let before = done();
    sleep(Duration::from_secs(900)).await;
    if wrong.is_empty() {
        // Where drivers want to be called again and again there is no rest.
        if done() != before && !life.wish.republish {
            world.violation("a safety pass found something to do in a world at rest");
        }
        wrong = differences(&life);
    }
    life.daemon.crash().await;
    let mut all = world.lock().violations.clone();
    all.extend(wrong);
    all
}

/// Runs one seed.
fn run(seed: u64, telling: bool) -> Lived {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
    let world = World::new(seed, telling);
    let wrong = runtime.block_on(live(&world));
    runtime.shutdown_background();
    let state = world.lock();
    Lived { calls: state.calls, wrong, story: state.story.clone() }
}

/// Runs a failed seed again, and tells its story.
fn story(seed: u64) -> String {
    let lived = run(seed, true);
    format!("seed {seed}:\n  {}\nwrong:\n  {}", lived.story.join("\n  "), lived.wrong.join("\n  "))
}

/// Runs seeds on all processors until one fails. Returns how many calls they made, or the failed seed.
fn run_all(first: u64, seeds: u64) -> Result<u64, u64> {
    let (next, calls, stop) = (AtomicU64::new(first), AtomicU64::new(0), AtomicBool::new(false));
    let failed = Mutex::new(None);
    let go_on = number("VOLUMED_SIM_GO_ON").is_some();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        break;
                    }
                    let lived = run(seed, false);
                    calls.fetch_add(lived.calls, Ordering::Relaxed);
                    if !lived.wrong.is_empty() {
                        eprintln!("seed {seed} fails: {}", lived.wrong.join("; "));
                        stop.store(!go_on, Ordering::Relaxed);
                        let mut failed = failed.lock().expect("nobody panicked");
                        *failed = failed.map_or(Some(seed), |other: u64| Some(other.min(seed)));
                    }
                }
            });
        }
    });
    match failed.into_inner().expect("nobody panicked") {
        Some(seed) => Err(seed),
        None => Ok(calls.into_inner()),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn the_world_comes_to_what_the_manifests_say_whatever_fails() {
    if let Some(seed) = number("VOLUMED_SIM_SEED") {
        let told = story(seed);
        eprintln!("{told}");
        assert!(run(seed, false).wrong.is_empty(), "seed {seed} fails");
        return;
    }
    let seeds = number("VOLUMED_SIM_SEEDS").unwrap_or(500);
    let first = number("VOLUMED_SIM_FIRST").unwrap_or(0);
    match run_all(first, seeds) {
        Ok(calls) => {
            eprintln!("seeds {first} to {}: {calls} calls to drivers, no rule broken", first + seeds - 1);
            assert!(calls > seeds * 4, "the seeds made too few calls to prove anything: {calls}");
        }
        Err(seed) => panic!("{}\nreplay with VOLUMED_SIM_SEED={seed}", story(seed)),
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [1, 7, 42] {
        let lived = run(seed, true);
        assert_eq!(lived, run(seed, true), "seed {seed}");
        let untold = run(seed, false);
        assert_eq!((lived.calls, lived.wrong), (untold.calls, untold.wrong), "seed {seed}");
    }
}

/// So many seeds must find a mistake.
const FEW_SEEDS: u64 = 1000;

/// Makes a mistake and looks for the first seed that finds it; without the mistake the seed is fine.
fn is_found(mistake: Mutant) {
    let found = (0..FEW_SEEDS)
        .map(|seed| (seed, mutant::with(mistake, || run(seed, false)).wrong))
        .find(|(_, wrong)| !wrong.is_empty());
    let Some((seed, wrong)) = found else {
        panic!("{FEW_SEEDS} seeds do not find {mistake:?}: the simulation is too weak")
    };
    eprintln!("{mistake:?} is found by seed {seed}: {}", wrong[0]);
    assert_eq!(run(seed, false).wrong, Vec::<String>::new(), "seed {seed} without {mistake:?}");
}

#[test]
fn a_call_without_an_intent_record_is_found() {
    is_found(Mutant::NoIntent);
}

#[test]
fn a_deadline_taken_for_a_final_answer_is_found() {
    is_found(Mutant::DeadlineIsFinal);
}

#[test]
fn an_unstage_before_the_last_unpublish_is_found() {
    is_found(Mutant::UnstageFirst);
}

#[test]
fn a_lost_manifest_file_that_counts_as_removed_is_found() {
    is_found(Mutant::LostIsRemoved);
}

#[test]
fn an_unstage_in_spite_of_who_has_the_volume_is_found() {
    is_found(Mutant::UnstageHeld);
}

#[test]
fn a_half_unmapped_device_that_counts_as_shown_is_found() {
    is_found(Mutant::UnmapUndoubted);
}

#[test]
fn an_undo_without_a_look_at_the_path_is_found() {
    is_found(Mutant::UndoUnseen);
}

#[test]
fn a_volume_that_is_published_as_two_persistent_volumes_is_found() {
    is_found(Mutant::TwoNames);
}

#[test]
fn a_disk_that_is_disconnected_while_it_is_mounted_is_found() {
    is_found(Mutant::DisconnectFirst);
}

#[test]
fn a_limit_of_volumes_that_is_not_kept_is_found() {
    is_found(Mutant::NoLimit);
}
