//! What others' trouble costs a pod: hung drivers, and mounts that are none of its business.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::time::{Instant, sleep};
use volumed::control::wait::Goal;
use volumed::host::MountReader;

use crate::figures::{Figure, Printer, Samples};
use crate::world::{Pods, World};

/// Volumes hung in the calls of one driver.
const HUNG: usize = 50;
/// Drivers hung at once.
const DRIVERS: usize = 5;
/// Mounts that have nothing to do with volumes.
const UNRELATED: usize = 3000;

/// One pod on a driver that is well, and one with an emptyDir only, beside what hangs.
pub(crate) async fn hung(printer: &mut Printer, quick: bool) -> anyhow::Result<()> {
    let repetitions = if quick { 15 } else { 50 };
    let mut world = World::new(false).await?;
    let mut batch = 1;
    let well = both(&world, &mut batch, repetitions).await?;
    for drivers in [1, DRIVERS] {
        for number in world.hung_drivers()..drivers {
            world.add_hung_driver(number).await?;
            let pods = Pods::new(1000 + number, HUNG).on(World::hung_name(number));
            world.write(&pods)?;
        }
        // All of them are in NodePublish, or wait for their turn with their driver.
        world.wait_until_publishing(HUNG * drivers).await?;
        let beside = both(&world, &mut batch, repetitions).await?;
        for (kind, before, now) in
            [("csi", &well.csi, &beside.csi), ("emptydir", &well.empty_dir, &beside.empty_dir)]
        {
            let name = format!("up-1-{kind}-beside-{drivers}-hung");
            printer.print(Figure::ms(name, now, Some(before), "2 x without"))?;
        }
        let name = format!("volumectl-beside-{drivers}-hung");
        printer.print(Figure::ms(name, &beside.asked, None, "50 ms"))?;
    }
    Ok(())
}

/// One pod's time, of each kind, and how long volumectl takes for a list of everything.
struct Both {
    csi: Samples,
    empty_dir: Samples,
    asked: Samples,
}

async fn both(world: &World, batch: &mut usize, repetitions: usize) -> anyhow::Result<Both> {
    let [mut csi, mut empty_dir, mut asked] = [(); 3].map(|()| Samples::default());
    for repetition in 0..=repetitions {
        *batch += 1;
        for (samples, pods) in [
            (&mut csi, Pods::new(*batch * 2, 1)),
            (&mut empty_dir, Pods::new(*batch * 2 + 1, 1).with_empty_dir()),
        ] {
            let took = world.rename(&pods, false, Goal::Published).await?;
            if repetition > 0 {
                samples.add(took);
            }
            world.rename(&pods, true, Goal::Released).await?;
            world.remove(&pods)?;
            sleep(Duration::from_millis(100)).await;
        }
        let begun = Instant::now();
        world.volumectl_list()?;
        asked.add(begun.elapsed());
    }
    Ok(Both { csi, empty_dir, asked })
}

/// One pod's time before and after thousands of unrelated mounts were made.
pub(crate) async fn mounts(printer: &mut Printer, quick: bool) -> anyhow::Result<()> {
    let repetitions = if quick { 30 } else { 100 };
    let world = World::new(false).await?;
    let mut batch = 1;
    let before = both(&world, &mut batch, repetitions).await?;
    let unrelated = Unrelated::make(world.path("unrelated"), UNRELATED)?;
    // The change itself is read once.
    sleep(Duration::from_secs(1)).await;
    let after = both(&world, &mut batch, repetitions).await?;
    let (told, read) = looks(&world.path("one"), repetitions)?;
    drop(unrelated);
    let name = format!("up-1-beside-{UNRELATED}-mounts");
    printer.print(Figure::ms(name, &after.csi, Some(&before.csi), "1.2 x without"))?;
    printer.print(Figure::ms(format!("look-beside-{UNRELATED}-mounts"), &told, Some(&read), ""))
}

/// What a look at the mount table takes after a mount and an unmount: as volumed looks here, and by mountinfo.
fn looks(one: &Path, repetitions: usize) -> anyhow::Result<(Samples, Samples)> {
    let mut looks =
        [MountReader::open()?, MountReader::of_mountinfo()?].map(|reader| (reader, Samples::default()));
    fs::create_dir(one)?;
    for (reader, _) in &mut looks {
        reader.read()?;
    }
    for _ in 0..repetitions {
        let none: Option<&str> = None;
        mount(Some("one"), one, Some("tmpfs"), MsFlags::empty(), none)?;
        umount2(one, MntFlags::empty())?;
        for (reader, samples) in &mut looks {
            let begun = Instant::now();
            reader.read()?;
            samples.add(begun.elapsed());
        }
    }
    let [(_, told), (_, read)] = looks;
    Ok((told, read))
}

/// Mounts of a tmpfs on itself, unmounted when dropped.
struct Unrelated {
    directory: PathBuf,
    count: usize,
}

impl Unrelated {
    fn make(directory: PathBuf, count: usize) -> anyhow::Result<Self> {
        fs::create_dir_all(&directory)?;
        let none: Option<&str> = None;
        mount(Some("unrelated"), &directory, Some("tmpfs"), MsFlags::empty(), none)?;
        let mut made = Self { directory, count: 0 };
        for number in 0..count {
            let at = made.directory.join(number.to_string());
            fs::create_dir(&at)?;
            mount(Some(&at), &at, none, MsFlags::MS_BIND, none)?;
            made.count += 1;
        }
        ensure!(made.count == count, "not all mounts were made");
        Ok(made)
    }
}

impl Drop for Unrelated {
    fn drop(&mut self) {
        for number in 0..self.count {
            let _gone = umount2(&self.directory.join(number.to_string()), MntFlags::empty());
        }
        let _gone = umount2(&self.directory, MntFlags::empty());
    }
}
