//! What the bundled driver costs over its floor: one volume, many at once, snapshots.

use std::fs::{self, File};
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinSet, block_in_place, spawn_blocking};
use tokio::time::Instant;

use crate::figures::{Figure, Printer, Samples};
use crate::loop_bare::{Bare, By, command};
use crate::loop_world::{Driver, Volume};

/// The size of a volume.
const BYTES: i64 = 64 << 20;

/// The volumes of a host at once.
const MANY: usize = 200;

/// As many calls at a time as volumed makes to one driver.
const AT_A_TIME: usize = 16;

/// The size of a volume of which a snapshot is taken, and how much of it is written.
const LARGE: i64 = 1 << 30;
const WRITTEN: usize = 256 << 20;

/// One volume created, staged and published, and the floor of that in between, so that what else the machine does meets both.
pub(crate) async fn one(printer: &mut Printer, quick: bool) -> anyhow::Result<()> {
    let driver = Driver::new().await?;
    let mut calls = driver.calls.clone();
    let [mut up, mut create, mut stage, mut publish, mut programs, mut bare_calls] =
        [(); 6].map(|()| Samples::default());
    // The first one pays for what is done once: it is not counted.
    for repetition in 0..=if quick { 30 } else { 100 } {
        let mut volume = driver.volume(format!("one-{repetition}"), "ext4")?;
        let took = calls.up(&mut volume, BYTES).await?;
        calls.down(&volume).await?;
        let mut bare = [Duration::ZERO; 2];
        for (took, by) in bare.iter_mut().zip([By::Programs, By::Calls]) {
            let mut one = Bare::new(&driver.beside_images(), &volume.name)?;
            let begun = Instant::now();
            block_in_place(|| one.up(BYTES, by))?;
            *took = begun.elapsed();
            block_in_place(|| one.down())?;
        }
        if repetition > 0 {
            up.add(took.whole());
            create.add(took.create);
            stage.add(took.stage);
            publish.add(took.publish);
            let [by_programs, by_calls] = bare;
            programs.add(by_programs);
            bare_calls.add(by_calls);
        }
    }
    printer.print(Figure::ms("loop-up-1".to_owned(), &up, Some(&programs), "1.2 x floor"))?;
    printer.print(Figure::ms("loop-up-1-calls".to_owned(), &up, Some(&bare_calls), ""))?;
    for (name, samples) in [("create", &create), ("stage", &stage), ("publish", &publish)] {
        printer.print(Figure::ms(format!("loop-{name}-1"), samples, None, ""))?;
    }
    Ok(())
}

/// The same with many volumes, and the floor of that.
pub(crate) async fn many(printer: &mut Printer, quick: bool) -> anyhow::Result<()> {
    let driver = Driver::new().await?;
    let beside = driver.beside_images();
    let [mut up, mut programs] = [(); 2].map(|()| Samples::default());
    for repetition in 0..=if quick { 2 } else { 5 } {
        let names = || (0..MANY).map(|number| format!("many-{repetition}-{number:03}"));
        let volumes: Result<Vec<Volume>, _> = names().map(|name| driver.volume(name, "ext4")).collect();
        let (took, volumes) = at_a_time(volumes?, |mut volume| {
            let mut calls = driver.calls.clone();
            async move { calls.up(&mut volume, BYTES).await.map(|_took| volume) }
        })
        .await?;
        at_a_time(volumes, |volume| {
            let mut calls = driver.calls.clone();
            async move { calls.down(&volume).await }
        })
        .await?;
        let bare: Result<Vec<Bare>, _> = names().map(|name| Bare::new(&beside, &name)).collect();
        let (took_bare, bare) = at_a_time(bare?, |mut one| async {
            spawn_blocking(move || one.up(BYTES, By::Programs).map(|()| one)).await?
        })
        .await?;
        at_a_time(bare, |mut one| async { spawn_blocking(move || one.down()).await? }).await?;
        // The first has the kernel make the loop devices, for both.
        if repetition > 0 {
            up.add(took);
            programs.add(took_bare);
        }
    }
    printer.print(Figure::ms(format!("loop-up-{MANY}"), &up, Some(&programs), ""))
}

/// Snapshots of a volume that is mounted and written to, where the host can share blocks.
pub(crate) async fn snapshots(printer: &mut Printer, quick: bool) -> anyhow::Result<()> {
    let driver = Driver::on("xfs", "4G").await?;
    let mut calls = driver.calls.clone();
    for fs_type in ["ext4", "xfs"] {
        let mut volume = driver.volume(format!("snapshots-{fs_type}"), fs_type)?;
        calls.up(&mut volume, LARGE).await?;
        let mut file = File::create(volume.target.join("file"))?;
        let piece = vec![0x5a; 1 << 20];
        for _ in 0..WRITTEN / piece.len() {
            file.write_all(&piece)?;
        }
        file.sync_all()?;
        let [mut taken, mut floor] = [(); 2].map(|()| Samples::default());
        for repetition in 0..=if quick { 10 } else { 50 } {
            // Something is there to be written out.
            fs::write(volume.target.join("little"), repetition.to_string())?;
            let (took, id) = calls.snapshot(&volume, format!("{fs_type}-{repetition}")).await?;
            calls.delete_snapshot(id).await?;
            fs::write(volume.target.join("little"), repetition.to_string())?;
            let bare = block_in_place(|| bare_snapshot(&driver, &volume))?;
            if repetition > 0 {
                taken.add(took);
                floor.add(bare);
            }
        }
        drop(file);
        calls.down(&volume).await?;
        printer.print(Figure::ms(format!("loop-snapshot-{fs_type}"), &taken, Some(&floor), "50 ms"))?;
    }
    Ok(())
}

/// Freezes the file system, copies the image by reflink, thaws, syncs the copy.
fn bare_snapshot(driver: &Driver, volume: &Volume) -> anyhow::Result<Duration> {
    let images = driver.beside_images().join("images/volumes").join(&volume.id);
    let (image, copy) = (images.join("image"), driver.beside_images().join("copy"));
    let begun = Instant::now();
    command("fsfreeze", &[&"--freeze", &volume.target])?;
    let copied = command("cp", &[&"--reflink=always", &image, &copy]);
    command("fsfreeze", &[&"--unfreeze", &volume.target])?;
    copied?;
    File::open(&copy)?.sync_all()?;
    let took = begun.elapsed();
    fs::remove_file(&copy)?;
    Ok(took)
}

/// Does something with each, so many at a time; returns how long it took.
async fn at_a_time<T, R: Send + 'static, F>(
    all: Vec<T>,
    work: impl Fn(T) -> F,
) -> anyhow::Result<(Duration, Vec<R>)>
where
    F: Future<Output = anyhow::Result<R>> + Send + 'static,
{
    let begun = Instant::now();
    let slots = Arc::new(Semaphore::new(AT_A_TIME));
    let mut tasks = JoinSet::new();
    for one in all {
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let work = work(one);
        tasks.spawn(async move {
            let done = work.await;
            drop(slot);
            done
        });
    }
    let mut done = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        done.push(ended??);
    }
    Ok((begun.elapsed(), done))
}
