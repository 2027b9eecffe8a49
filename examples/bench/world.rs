//! A host of the bench's own: directories, the driver and volumed as processes, and nothing left of them afterwards.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use volumed::control::client::Client;
use volumed::control::wait::Goal;

use crate::objects::{DRIVER, claim_of, pod_of};

/// This node's name.
pub(crate) const NODE: &str = "bench-node";

/// How long a program may take to start or to end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Some pods with one volume each: PV, PVC and Pod in one file per pod.
#[derive(Debug)]
pub(crate) struct Pods {
    batch: usize,
    count: usize,
    source: Source,
}

/// Where their volumes come from.
#[derive(Debug)]
enum Source {
    /// From the driver of this name.
    Csi(String),
    EmptyDir,
    /// From what lies in this directory under each pod's number, with a file system of this type on it if it is a device.
    Local(PathBuf, Option<&'static str>),
}

impl Pods {
    pub(crate) fn new(batch: usize, count: usize) -> Self {
        Self { batch, count, source: Source::Csi(DRIVER.to_owned()) }
    }

    /// Lets another driver have their volumes.
    pub(crate) fn on(self, driver: String) -> Self {
        Self { source: Source::Csi(driver), ..self }
    }

    /// Gives them an emptyDir instead.
    pub(crate) fn with_empty_dir(self) -> Self {
        Self { source: Source::EmptyDir, ..self }
    }

    /// Gives them what lies in a directory under their numbers, from 0000.
    pub(crate) fn with_local(self, directory: PathBuf, fs_type: Option<&'static str>) -> Self {
        Self { source: Source::Local(directory, fs_type), ..self }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        (0..self.count).map(|number| format!("b{}-{number:04}", self.batch))
    }

    pub(crate) fn objects(&self) -> Vec<String> {
        self.names().map(|name| format!("pod/{name}")).collect()
    }

    fn manifest(&self, name: &str, leaving: bool) -> String {
        let leaving = if leaving { ", deletionTimestamp: \"2026-01-01T00:00:00Z\"" } else { "" };
        let metadata = format!("name: {name}{leaving}");
        let claim = match &self.source {
            Source::EmptyDir => return pod_of(&metadata, "emptyDir: {}"),
            Source::Csi(driver) => claim_of(driver, name, &format!("handle-{name}")),
            Source::Local(directory, fs_type) => {
                let number = name.rsplit('-').next().unwrap_or(name);
                local_claim_of(&directory.join(number), *fs_type, name)
            }
        };
        let pod = pod_of(&metadata, &format!("persistentVolumeClaim: {{claimName: {name}}}"));
        format!("{claim}---\n{pod}")
    }
}

/// A process that dies with its handle.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _waited = self.0.wait();
    }
}

/// What volumed used since its start.
#[derive(Debug)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// How often each of its threads gave up the processor by itself, by id.
    wakeups: BTreeMap<OsString, usize>,
}

impl Usage {
    /// Returns how often its threads slept, and so were woken, since an earlier look.
    pub(crate) fn wakeups_since(&self, before: &Self) -> usize {
        let of_one = |(id, now): (&OsString, &usize)| {
            now.saturating_sub(before.wakeups.get(id).copied().unwrap_or_default())
        };
        self.wakeups.iter().map(of_one).sum()
    }
}

/// In KiB.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) now: u32,
    pub(crate) peak: u32,
}

/// Where it all runs. The processes end before the directory goes.
#[derive(Debug)]
pub(crate) struct World {
    volumed: Option<Process>,
    _driver: Process,
    hung: Vec<Process>,
    programs: PathBuf,
    directory: TempDir,
}

impl World {
    /// Starts the driver, which writes its calls down only if `log`, and volumed; returns when the driver is registered.
    pub(crate) async fn new(log: bool) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("bench-").tempdir()?;
        let itself = std::env::current_exe()?;
        let programs =
            itself.parent().and_then(Path::parent).context("the bench lies in target/*/examples")?;
        for name in ["root/plugins_registry", "manifests", "driver"] {
            fs::create_dir_all(directory.path().join(name))?;
        }
        // No configuration of the machine may leak in.
        fs::write(directory.path().join("volumed.toml"), "")?;
        let at = |name: &str| directory.path().join(name);
        let mut driver = Command::new(programs.join("examples/fakecsi"));
        driver.arg("--no-mount").args(["--name", DRIVER]);
        driver.arg("--endpoint").arg(at("csi.sock")).arg("--state").arg(at("driver"));
        driver.arg("--registry").arg(at("root/plugins_registry"));
        if log {
            driver.arg("--log").arg(at("calls"));
        }
        let driver = start(&mut driver, &at("driver.log"))?;
        let mut world = Self {
            volumed: None,
            _driver: driver,
            hung: Vec::new(),
            programs: programs.to_owned(),
            directory,
        };
        world.start_volumed()?;
        let mut client = world.connect().await?;
        let begun = Instant::now();
        while !client.drivers().await?.drivers.iter().any(|driver| driver.state == "ready") {
            ensure!(begun.elapsed() < PATIENCE, "the driver is not registered within {PATIENCE:?}");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(world)
    }

    pub(crate) fn hung_drivers(&self) -> usize {
        self.hung.len()
    }

    pub(crate) fn hung_name(number: usize) -> String {
        format!("hung{number}.csi.volumed.io")
    }

    /// Starts another driver, which never answers NodePublish; returns when it is registered.
    pub(crate) async fn add_hung_driver(&mut self, number: usize) -> anyhow::Result<()> {
        let name = Self::hung_name(number);
        let at = |what: &str| self.directory.path().join(format!("{what}{number}"));
        fs::create_dir_all(at("hung"))?;
        fs::write(at("faults"), r#"[{"method": "NodePublishVolume", "action": "hang"}]"#)?;
        let mut driver = Command::new(self.programs.join("examples/fakecsi"));
        driver.arg("--no-mount").args(["--name", &name]);
        driver.arg("--endpoint").arg(at("sock")).arg("--state").arg(at("hung"));
        driver.arg("--registry").arg(self.path("root/plugins_registry")).arg("--faults").arg(at("faults"));
        self.hung.push(start(&mut driver, &at("log"))?);
        let mut client = self.connect().await?;
        let begun = Instant::now();
        while !client.drivers().await?.drivers.iter().any(|d| d.name == name && d.state == "ready") {
            ensure!(begun.elapsed() < PATIENCE, "driver {name} is not registered within {PATIENCE:?}");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Puts manifests in place without waiting for anything.
    pub(crate) fn write(&self, pods: &Pods) -> anyhow::Result<()> {
        for name in pods.names() {
            let aside = self.path("manifests").join(format!(".{name}"));
            fs::write(&aside, pods.manifest(&name, false))?;
            fs::rename(&aside, self.manifest(&name))?;
        }
        Ok(())
    }

    /// Waits until so many volumes are being published.
    pub(crate) async fn wait_until_publishing(&self, count: usize) -> anyhow::Result<()> {
        let mut client = self.connect().await?;
        let begun = Instant::now();
        loop {
            let status = client.status(Vec::new()).await?;
            let publishing =
                status.volumes.iter().filter(|v| v.running.as_ref().is_some_and(|r| r.step == "publish"));
            if publishing.count() >= count {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "not all volumes hang within {PATIENCE:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs `volumectl list`.
    pub(crate) fn volumectl_list(&self) -> anyhow::Result<()> {
        let mut command = Command::new(self.programs.join("volumectl"));
        command.arg("--socket").arg(self.path("control.sock")).arg("list");
        let ended = tokio::task::block_in_place(|| command.stdin(Stdio::null()).output())?;
        ensure!(ended.status.success(), "volumectl list: {}", String::from_utf8_lossy(&ended.stderr));
        Ok(())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn driver_socket(&self) -> PathBuf {
        self.path("csi.sock")
    }

    pub(crate) fn start_volumed(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(self.programs.join("volumed"));
        command.arg("--allow-private-mounts").args(["--node-name", NODE]);
        for (flag, name) in [
            ("--config", "volumed.toml"),
            ("--manifest-dir", "manifests"),
            ("--root-dir", "root"),
            ("--state-dir", "state"),
            ("--socket", "control.sock"),
        ] {
            command.arg(flag).arg(self.path(name));
        }
        self.volumed = Some(start(&mut command, &self.path("volumed.log"))?);
        Ok(())
    }

    /// Ends volumed in order and waits for that.
    pub(crate) async fn stop_volumed(&mut self) -> anyhow::Result<()> {
        let mut volumed = self.volumed.take().context("volumed runs")?;
        kill(Pid::from_raw(i32::try_from(volumed.0.id())?), Signal::SIGTERM)?;
        let begun = Instant::now();
        while volumed.0.try_wait()?.is_none() {
            ensure!(begun.elapsed() < PATIENCE, "volumed does not end within {PATIENCE:?}");
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Connects to the control socket as soon as there is one.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let begun = Instant::now();
        loop {
            match Client::connect(&self.path("control.sock")).await {
                Ok(client) => return Ok(client),
                Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
                Err(_not_yet) => sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Puts the pods' manifests in place as an operator should, written aside and then renamed; returns how long it takes
    /// from the first rename to the return of `volumectl wait`.
    pub(crate) async fn rename(&self, pods: &Pods, leaving: bool, goal: Goal) -> anyhow::Result<Duration> {
        let mut files = Vec::new();
        for name in pods.names() {
            let aside = self.path("manifests").join(format!(".{name}"));
            fs::write(&aside, pods.manifest(&name, leaving))?;
            files.push((aside, self.manifest(&name)));
        }
        // What volumed is told of the files aside is not part of it.
        sleep(Duration::from_millis(100)).await;
        let begun = Instant::now();
        for (aside, file) in files {
            fs::rename(aside, file)?;
        }
        self.volumectl_wait(pods, goal).await?;
        Ok(begun.elapsed())
    }

    /// Runs `volumectl wait`.
    pub(crate) async fn volumectl_wait(&self, pods: &Pods, goal: Goal) -> anyhow::Result<()> {
        let mut command = Command::new(self.programs.join("volumectl"));
        command.arg("--socket").arg(self.path("control.sock"));
        command.args(["wait", "--timeout", "120s", "--for", goal.name()]).args(pods.objects());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Nothing else is to be done meanwhile, and waiting for a child through the runtime costs a signal.
        let ended = tokio::task::block_in_place(|| command.output())?;
        if !ended.status.success() {
            let (said, log) = (String::from_utf8_lossy(&ended.stderr), self.path("volumed.log"));
            bail!("volumectl wait: {}: {said}\n{}", ended.status, fs::read_to_string(log)?);
        }
        Ok(())
    }

    /// Removes the pods' manifests.
    pub(crate) fn remove(&self, pods: &Pods) -> anyhow::Result<()> {
        for name in pods.names() {
            fs::remove_file(self.manifest(&name))?;
        }
        Ok(())
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.path("manifests").join(format!("{name}.yaml"))
    }

    /// Returns the bytes of some record; there must be one.
    pub(crate) fn a_record(&self) -> anyhow::Result<Vec<u8>> {
        let mut records = fs::read_dir(self.path("state/volumes"))?;
        Ok(fs::read(records.next().context("there is a record")??.path())?)
    }

    /// Returns how many calls for a volume the driver's log has, but for the question how full it is, which comes all the time.
    pub(crate) fn volume_calls(&self) -> anyhow::Result<usize> {
        let log = fs::read_to_string(self.path("calls"))?;
        let begun = log.lines().filter(|line| line.contains(r#""event":"begin""#));
        let of_volumes = begun.filter(|line| !line.contains(r#""volume":"""#));
        Ok(of_volumes.filter(|line| !line.contains(r#""method":"NodeGetVolumeStats""#)).count())
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        // In ticks, of which every Linux has 100 per second.
        let stat = fs::read_to_string(self.proc("stat")?)?;
        let fields: Vec<&str> = stat.rsplit_once(") ").context("stat has a name")?.1.split(' ').collect();
        let [user, system] = [fields.get(11), fields.get(12)].map(|field| field.copied().unwrap_or_default());
        let ticks: u64 = user.parse::<u64>()? + system.parse::<u64>()?;
        let mut wakeups = BTreeMap::new();
        for task in fs::read_dir(self.proc("task")?)? {
            let task = task?;
            let status = fs::read_to_string(task.path().join("status"))?;
            wakeups.insert(task.file_name(), usize::try_from(value(&status, "voluntary_ctxt_switches:")?)?);
        }
        Ok(Usage { cpu: Duration::from_millis(ticks * 10), wakeups })
    }

    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let status = fs::read_to_string(self.proc("status")?)?;
        Ok(Memory { now: value(&status, "VmRSS:")?, peak: value(&status, "VmHWM:")? })
    }

    fn proc(&self, name: &str) -> anyhow::Result<PathBuf> {
        let volumed = self.volumed.as_ref().context("volumed runs")?;
        Ok(Path::new("/proc").join(volumed.0.id().to_string()).join(name))
    }
}

/// Returns the number on a line of a status file.
fn value(status: &str, key: &str) -> anyhow::Result<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)).context("the key is there")?;
    Ok(line.trim_start().split(' ').next().unwrap_or_default().trim().parse()?)
}

/// Starts a program with its words in a file.
pub(crate) fn start(command: &mut Command, log: &Path) -> anyhow::Result<Process> {
    let log = File::options().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
    Ok(Process(child))
}

/// A PV of a directory or a device of this node, and the claim bound to it.
fn local_claim_of(path: &Path, fs_type: Option<&str>, volume: &str) -> String {
    let fs_type = fs_type.map_or_else(String::new, |fs_type| format!(", fsType: {fs_type}"));
    let path = path.display();
    format!(
        "apiVersion: v1
kind: PersistentVolume
metadata: {{name: {volume}}}
spec:
  capacity: {{storage: 16Mi}}
  accessModes: [ReadWriteOnce]
  claimRef: {{namespace: default, name: {volume}}}
  local: {{path: {path}{fs_type}}}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{NODE}]}}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {volume}}}
spec:
  accessModes: [ReadWriteOnce]
  volumeName: {volume}
  resources: {{requests: {{storage: 16Mi}}}}
"
    )
}
