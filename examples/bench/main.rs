//! bench: what volumed costs over the work that nobody can spare it. `scripts/bench` builds and runs it.
//!
//! The driver is fakecsi doing nothing. The floor is measured in the same run, by the bench itself: the driver calls over
//! one connection, the directories, both `vol_data.json` and one synced record for each volume, for several volumes 16 at
//! a time. A figure is the median of its repetitions; beside it stand the 10th and the 90th percentile. Nothing is asserted.
//!
//! ```text
//! 1      rename of one pod's manifest -> `volumectl wait` returns; the same down, by deletionTimestamp
//! 100    the same with 100 pods of one CSI volume each
//! 1000   the same with 1,000
//! empty  CPU, wake-ups and memory of an idle volumed without volumes
//! full   the same with 1,000 volumes, and the restart of volumed until its Status is complete
//! hung   one pod, with a CSI volume and with an emptyDir, beside 50 volumes hung in one driver and in each of five
//! mounts one pod beside 3,000 unrelated mounts
//! local  one pod with a local PersistentVolume on a formatted loop device, whose image is in memory or on the disk, and 200 of
//!        the latter
//! binds  1,000 pods with a local PersistentVolume on a directory each. The floor of both: the bare mount system calls, one
//!        after the other
//! loop   volumed-csi-loop alone, over its socket: a 64 MiB ext4 volume created, staged and published; 200 at a time; snapshots
//!        on a host that shares blocks; fio on a volume. Its floor: the same by an operator's programs, or on the host's disk
//! ```
//!
//! `--json` prints one object per figure and line: name, value, unit, floor and ratio (null where there is no floor), and
//! low, high (the percentiles) and count (repetitions).

#![expect(
    clippy::disallowed_methods,
    reason = "it starts programs, measures with the real clock, and mounts only in a namespace of its own"
)]

mod figures;
mod floor;
mod isolation;
mod local;
mod loop_bare;
mod loop_io;
mod loop_volumes;
mod loop_world;
#[path = "../../tests/support/objects.rs"]
mod objects;
mod world;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use tokio::time::{Instant, sleep};
use volumed::control::wait::Goal;

use figures::{Figure, Printer, Samples};
use floor::Floor;
use world::{Pods, World};

/// Measures volumed against its floor.
#[derive(Debug, Parser)]
struct Options {
    /// What to measure; without a name everything
    names: Vec<Name>,
    /// One JSON object per figure
    #[arg(long)]
    json: bool,
    /// Fewer repetitions, and 10 idle seconds counted as 60
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    #[value(name = "1")]
    One,
    #[value(name = "100")]
    Hundred,
    #[value(name = "1000")]
    Thousand,
    Empty,
    Full,
    Hung,
    Mounts,
    Local,
    Binds,
    Loop,
}

/// The many that the design names.
const MANY: usize = 1000;

/// How long what was done lately goes on: a second reading of the manifests a second later, and its answer.
const SETTLED: Duration = Duration::from_secs(3);

/// By then the runtime has ended the threads that nothing needs any more.
const IDLE_THREADS: Duration = Duration::from_secs(12);

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(&options))
}

async fn run(options: &Options) -> anyhow::Result<()> {
    let mut printer = Printer::new(options.json)?;
    for &name in Name::value_variants() {
        if !options.names.is_empty() && !options.names.contains(&name) {
            continue;
        }
        match name {
            Name::One => pods(&mut printer, 1, if options.quick { 30 } else { 100 }).await?,
            Name::Hundred => pods(&mut printer, 100, if options.quick { 3 } else { 9 }).await?,
            Name::Thousand => pods(&mut printer, MANY, if options.quick { 1 } else { 5 }).await?,
            Name::Empty => empty(&mut printer, options.quick).await?,
            Name::Full => full(&mut printer, options.quick).await?,
            Name::Hung => isolation::hung(&mut printer, options.quick).await?,
            Name::Mounts => isolation::mounts(&mut printer, options.quick).await?,
            Name::Local => local::devices(&mut printer, options.quick).await?,
            Name::Binds => local::binds(&mut printer, options.quick).await?,
            Name::Loop => {
                loop_volumes::one(&mut printer, options.quick).await?;
                loop_volumes::many(&mut printer, options.quick).await?;
                loop_volumes::snapshots(&mut printer, options.quick).await?;
                loop_io::all(&mut printer, options.quick).await?;
            }
        }
    }
    Ok(())
}

/// Up and down, and the floor of both in between, so that what else the machine does meets both.
async fn pods(printer: &mut Printer, count: usize, repetitions: usize) -> anyhow::Result<()> {
    let world = World::new(false).await?;
    let mut floor = Floor::new(&world).await?;
    let [mut up, mut down, mut floor_up, mut floor_down, mut asked] = [(); 5].map(|()| Samples::default());
    // The first one pays for what is done once: it is not counted.
    for repetition in 0..=repetitions {
        let pods = Pods::new(repetition, count);
        let took_up = world.rename(&pods, false, Goal::Published).await?;
        floor.record = world.a_record()?;
        let begun = Instant::now();
        world.volumectl_wait(&pods, Goal::Published).await?;
        let took_asking = begun.elapsed();
        let took_down = world.rename(&pods, true, Goal::Released).await?;
        let (took_floor_up, took_floor_down) = floor.measure(&pods).await?;
        world.remove(&pods)?;
        // One file that goes costs a reading and one more a second later; a thousand are waited for.
        sleep(if count == 1 { Duration::from_millis(100) } else { SETTLED }).await;
        if repetition > 0 {
            up.add(took_up);
            down.add(took_down);
            floor_up.add(took_floor_up);
            floor_down.add(took_floor_down);
            asked.add(took_asking);
        }
    }
    let aim = if count == 1 { "floor + 5 ms" } else { "2 x floor" };
    printer.print(Figure::ms(format!("up-{count}"), &up, Some(&floor_up), aim))?;
    printer.print(Figure::ms(format!("down-{count}"), &down, Some(&floor_down), aim))?;
    // What of it is the command's own: its start, its connection, a question that is answered at once.
    printer.print(Figure::ms(format!("volumectl-{count}"), &asked, None, ""))
}

async fn empty(printer: &mut Printer, quick: bool) -> anyhow::Result<()> {
    let world = World::new(true).await?;
    sleep(SETTLED).await;
    idle(printer, &world, 0, quick, "10 MiB").await
}

async fn full(printer: &mut Printer, quick: bool) -> anyhow::Result<()> {
    let mut world = World::new(true).await?;
    let pods = Pods::new(0, MANY);
    world.rename(&pods, false, Goal::Published).await?;
    sleep(SETTLED).await;
    idle(printer, &world, MANY, quick, "40 MiB").await?;

    let (mut restart, mut rpcs) = (Samples::default(), 0);
    for _ in 0..if quick { 3 } else { 9 } {
        world.stop_volumed().await?;
        let before = world.volume_calls()?;
        let begun = Instant::now();
        world.start_volumed()?;
        let mut client = world.connect().await?;
        let answer = client.wait(pods.objects(), Goal::Published, Some(Duration::from_secs(60))).await?;
        restart.add(begun.elapsed());
        ensure!(answer.results.iter().all(|result| result.outcome == "reached"), "not all came back");
        let status = client.status(Vec::new()).await?;
        let published = status.counts.context("there are no counts")?.published;
        ensure!(status.ready && status.complete, "the status is not complete");
        ensure!(usize::try_from(published)? == MANY, "{published} volumes are published");
        sleep(SETTLED).await;
        rpcs += world.volume_calls()? - before;
    }
    printer.print(Figure::ms(format!("restart-{MANY}"), &restart, None, "1000 ms"))?;
    printer.print(Figure::count(format!("restart-{MANY}-rpcs"), rpcs, "RPCs", "0"))?;
    let memory = world.memory()?;
    printer.print(Figure::mib(format!("memory-restarted-{MANY}"), memory.now, "40 MiB"))
}

/// What volumed costs while nothing happens.
async fn idle(
    printer: &mut Printer,
    world: &World,
    volumes: usize,
    quick: bool,
    aim: &str,
) -> anyhow::Result<()> {
    let (seconds, scale) = if quick { (10, 6) } else { (60, 1) };
    sleep(IDLE_THREADS).await;
    let before = world.usage()?;
    sleep(Duration::from_secs(seconds)).await;
    let after = world.usage()?;
    let cpu = (after.cpu - before.cpu) * scale;
    printer.print(Figure::seconds(format!("idle-cpu-{volumes}"), cpu, "CPU s/min", "0.06"))?;
    let wakeups = after.wakeups_since(&before) * usize::try_from(scale)?;
    printer.print(Figure::count(format!("idle-wakeups-{volumes}"), wakeups, "per min", "0"))?;
    let memory = world.memory()?;
    printer.print(Figure::mib(format!("memory-idle-{volumes}"), memory.now, aim))?;
    printer.print(Figure::mib(format!("memory-peak-{volumes}"), memory.peak, ""))
}
