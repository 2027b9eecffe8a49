//! Local PersistentVolumes beside the bare system calls that mount them.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{anyhow, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::time::{Instant, sleep};
use volumed::control::wait::Goal;

use crate::figures::{Figure, Printer, Samples};
use crate::floor::{self, AT_A_TIME};
use crate::world::{Pods, World};

/// Devices at once.
const DEVICES: usize = 200;

/// Directories at once.
const DIRECTORIES: usize = 1000;

/// What ext4 needs to be made without a word.
const BYTES: u64 = 16 << 20;

const FS_TYPE: &str = "ext4";

/// PersistentVolumes that name a formatted device.
pub(crate) async fn devices(printer: &mut Printer, quick: bool) -> anyhow::Result<()> {
    let repetitions = if quick { 10 } else { 50 };
    device_in_memory(printer, repetitions).await?;
    let world = World::new(false).await?;
    let devices = Devices::new(world.path("devices"), DEVICES)?;
    let some = |pods: Pods| pods.with_local(devices.directory.clone(), Some(FS_TYPE));
    let one = Local { name: "device-1", count: 1, aim: "floor + 5 ms" };
    one.measure(printer, &world, repetitions, some, &devices.directory, true).await?;
    let many = Local { name: "device-200", count: DEVICES, aim: "" };
    many.measure(printer, &world, if quick { 1 } else { 5 }, some, &devices.directory, true).await
}

/// The same for one whose image is in memory: fsck flushes a device twice, and what that takes is the disk's affair.
async fn device_in_memory(printer: &mut Printer, repetitions: usize) -> anyhow::Result<()> {
    let world = World::new(false).await?;
    let images = world.path("images");
    fs::create_dir(&images)?;
    mount(Some("images"), &images, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let measured = async {
        let devices = Devices::new(images.join("devices"), 1)?;
        let some = |pods: Pods| pods.with_local(devices.directory.clone(), Some(FS_TYPE));
        let one = Local { name: "device-in-memory-1", count: 1, aim: "floor + 5 ms" };
        one.measure(printer, &world, repetitions, some, &devices.directory, true).await
    };
    let measured = measured.await;
    let unmounted = umount2(&images, MntFlags::UMOUNT_NOFOLLOW);
    measured?;
    Ok(unmounted?)
}

/// PersistentVolumes that name a directory.
pub(crate) async fn binds(printer: &mut Printer, quick: bool) -> anyhow::Result<()> {
    let world = World::new(false).await?;
    let directory = world.path("sources");
    for number in 0..DIRECTORIES {
        fs::create_dir_all(directory.join(numbered(number)))?;
    }
    let binds = Local { name: "bind-1000", count: DIRECTORIES, aim: "2 x floor" };
    let some = |pods: Pods| pods.with_local(directory.clone(), None);
    binds.measure(printer, &world, if quick { 1 } else { 5 }, some, &directory, false).await
}

/// The name under which a pod's number finds its volume.
fn numbered(number: usize) -> String {
    format!("{number:04}")
}

/// One kind of them.
struct Local {
    name: &'static str,
    count: usize,
    aim: &'static str,
}

impl Local {
    async fn measure(
        &self,
        printer: &mut Printer,
        world: &World,
        repetitions: usize,
        some: impl Fn(Pods) -> Pods,
        sources: &Path,
        devices: bool,
    ) -> anyhow::Result<()> {
        let [mut up, mut down, mut floor_up, mut floor_down] = [(); 4].map(|()| Samples::default());
        let [mut kept_up, mut kept_down] = [(); 2].map(|()| Samples::default());
        // The first one pays for what is done once: it is not counted. A batch's names are nobody's else.
        for repetition in 0..=repetitions {
            let pods = some(Pods::new(self.count * 10_000 + repetition, self.count));
            let took_up = world.rename(&pods, false, Goal::Published).await?;
            let record = world.a_record()?;
            let took_down = world.rename(&pods, true, Goal::Released).await?;
            let (took_floor_up, took_floor_down) = self.floor(world, sources, devices)?;
            // Of devices there is more to be kept, and it matters less.
            let kept = if devices { None } else { Some(self.kept_floor(world, sources, &record)?) };
            world.remove(&pods)?;
            sleep(if self.count == 1 { Duration::from_millis(100) } else { Duration::from_secs(3) }).await;
            if repetition > 0 {
                up.add(took_up);
                down.add(took_down);
                floor_up.add(took_floor_up);
                floor_down.add(took_floor_down);
                if let Some((took_up, took_down)) = kept {
                    kept_up.add(took_up);
                    kept_down.add(took_down);
                }
            }
        }
        let name = |way: &str| format!("{way}-{}", self.name);
        printer.print(Figure::ms(name("up"), &up, Some(&floor_up), self.aim))?;
        printer.print(Figure::ms(name("down"), &down, Some(&floor_down), self.aim))?;
        if !devices {
            // The same beside a floor that keeps what a node has to keep.
            printer.print(Figure::ms(name("up-kept"), &up, Some(&kept_up), ""))?;
            printer.print(Figure::ms(name("down-kept"), &down, Some(&kept_down), ""))?;
        }
        Ok(())
    }

    /// The bind mounts in directories made for them, each with a synced record, and all of it away.
    fn kept_floor(
        &self,
        world: &World,
        sources: &Path,
        record: &[u8],
    ) -> anyhow::Result<(Duration, Duration)> {
        let (root, records) = (world.path("kept-root"), world.path("kept-state"));
        fs::create_dir_all(&root)?;
        fs::create_dir_all(&records)?;
        let target = |number| {
            let pod = root.join(format!("pods/{}", numbered(number)));
            pod.join("volumes/kubernetes.io~local-volume").join(numbered(number))
        };
        let up = at_once(self.count, |number| {
            floor::write_record(&records.join(numbered(number)), record)?;
            DirBuilder::new().recursive(true).mode(0o750).create(target(number))?;
            let source = sources.join(numbered(number));
            Ok(mount(Some(&source), &target(number), None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
        })?;
        let down = at_once(self.count, |number| {
            umount2(&target(number), MntFlags::UMOUNT_NOFOLLOW)?;
            for directory in target(number).ancestors().take(4) {
                fs::remove_dir(directory)?;
            }
            Ok(fs::remove_file(records.join(numbered(number)))?)
        })?;
        Ok((up, down))
    }

    /// The mounts alone, in directories that are there already: a device's file system and a bind of it, or a bind.
    fn floor(&self, world: &World, sources: &Path, devices: bool) -> anyhow::Result<(Duration, Duration)> {
        let place = |what: &str, number| world.path("bare").join(format!("{}-{what}", numbered(number)));
        let bind =
            |from: &Path, to: &Path| mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        let mut all = Vec::new();
        for number in 0..self.count {
            let [global, target] = ["global", "target"].map(|what| place(what, number));
            fs::create_dir_all(&global)?;
            fs::create_dir_all(&target)?;
            all.push((fs::canonicalize(sources.join(numbered(number)))?, global, target));
        }
        let begun = Instant::now();
        for (source, global, target) in &all {
            if devices {
                mount(Some(source), global, Some(FS_TYPE), MsFlags::empty(), None::<&str>)?;
                bind(global, target)?;
            } else {
                bind(source, target)?;
            }
        }
        let up = begun.elapsed();
        let begun = Instant::now();
        for (_, global, target) in &all {
            umount2(target, MntFlags::UMOUNT_NOFOLLOW)?;
            if devices {
                umount2(global, MntFlags::UMOUNT_NOFOLLOW)?;
            }
        }
        Ok((up, begun.elapsed()))
    }
}

/// Does something for each number below a count, as many at a time as volumed does; returns how long that took.
fn at_once(count: usize, one: impl Fn(usize) -> anyhow::Result<()> + Sync) -> anyhow::Result<Duration> {
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let work = || loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                number if number < count => one(number)?,
                _ => return anyhow::Ok(()),
            }
        };
        let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_panic| anyhow!("a thread panicked"))?)
    })?;
    Ok(begun.elapsed())
}

/// Formatted loop devices, each under its number. Dropped, they are let go of.
struct Devices {
    directory: PathBuf,
    nodes: Vec<PathBuf>,
}

impl Devices {
    fn new(directory: PathBuf, count: usize) -> anyhow::Result<Self> {
        let mut devices = Self { directory, nodes: Vec::new() };
        fs::create_dir(&devices.directory)?;
        for number in 0..count {
            let image = devices.directory.join(format!("{}.img", numbered(number)));
            fs::File::create(&image)?.set_len(BYTES)?;
            run("mkfs.ext4", &["-q".as_ref(), image.as_ref()])?;
            let said = run("losetup", &["--find".as_ref(), "--show".as_ref(), image.as_ref()])?;
            let node = PathBuf::from(OsStr::from_bytes(said.trim_ascii()));
            symlink(&node, devices.directory.join(numbered(number)))?;
            devices.nodes.push(node);
        }
        Ok(devices)
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for node in &self.nodes {
            let _detached = run("losetup", &["--detach".as_ref(), node.as_ref()]);
        }
    }
}

fn run(program: &str, arguments: &[&OsStr]) -> anyhow::Result<Vec<u8>> {
    let ended = Command::new(program).args(arguments).output()?;
    ensure!(ended.status.success(), "{program}: {}", String::from_utf8_lossy(&ended.stderr));
    Ok(ended.stdout)
}
