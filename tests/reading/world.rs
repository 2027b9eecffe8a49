//! A manifest reader on directories of a test's own, and what is asked of its readings.

#![allow(unreachable_pub, clippy::allow_attributes, reason = "a module of a test binary")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use volumed::manifest::{Handle, Manifests, Settings, WatchError, reader};
use volumed::model::{Ambient, DirectoryIdentity, Problem};

const GRACE: Duration = Duration::from_millis(50);

pub const DEADLINE: Duration = Duration::from_secs(20);

/// A reader of directories below one of its own.
pub struct World {
    root: TempDir,
    pub handle: Handle,
    pub manifests: watch::Receiver<Arc<Manifests>>,
    shutdown: CancellationToken,
    tasks: JoinSet<Result<(), WatchError>>,
}

impl World {
    /// Reads the directories `a` and `b`, which exist.
    pub fn new() -> Self {
        let root = TempDir::new().expect("a directory");
        fs::create_dir(root.path().join("a")).expect("a");
        fs::create_dir(root.path().join("b")).expect("b");
        Self::on(root, &["a", "b"], BTreeMap::new())
    }

    pub fn on(root: TempDir, directories: &[&str], known: BTreeMap<PathBuf, DirectoryIdentity>) -> Self {
        let settings = Settings {
            directories: directories.iter().map(|d| root.path().join(d)).collect(),
            removal_grace: GRACE,
            owner: nix::unistd::geteuid().as_raw(),
            known,
        };
        let wall = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
            i64::try_from(since.as_millis()).expect("before the year 292 million")
        };
        let (reader, handle, manifests) = reader(settings, Instant::now(), Arc::new(Ambient::new(1, wall)));
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(reader.run(shutdown.clone()));
        Self { root, handle, manifests, shutdown, tasks }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Writes a file as a careful program does: beside it, then renamed.
    pub fn put(&self, name: &str, text: &str) {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text).expect("write");
        fs::rename(&new, self.path(name)).expect("rename");
    }

    /// Waits for a published reading that is as asked.
    pub async fn until(&mut self, what: &str, fits: impl Fn(&Manifests) -> bool) -> Arc<Manifests> {
        let waited = timeout(DEADLINE, self.manifests.wait_for(|m| fits(m))).await;
        match waited.map(|r| r.map(|found| Arc::clone(&found))) {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => panic!("the reader ended before {what}"),
            Err(_) => panic!("never {what}; last: {:#?}", self.manifests.borrow()),
        }
    }

    pub async fn until_pods(&mut self, names: &[&str]) -> Arc<Manifests> {
        self.until(&format!("exactly the pods {names:?}"), |m| pods(m) == names).await
    }

    /// Reads again, now.
    pub async fn reread(&mut self) -> Arc<Manifests> {
        let generation = timeout(DEADLINE, self.handle.reread()).await.expect("an answer");
        let now = Arc::clone(&self.manifests.borrow_and_update());
        assert!(now.reading.generation >= generation);
        now
    }

    /// Reads twice, with the grace between: whatever can become absent has become so.
    pub async fn reread_past_grace(&mut self) -> Arc<Manifests> {
        let first = self.reread().await.reading.began_ms;
        let grace = u64::try_from(GRACE.as_millis()).expect("small");
        loop {
            let now = self.reread().await;
            if now.reading.began_ms > first + 2 * grace {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn end(mut self) -> TempDir {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no panic").expect("no error");
        }
        self.root
    }
}

/// The pods' names, sorted; a stale one has a star.
pub fn pods(manifests: &Manifests) -> Vec<String> {
    let mut names: Vec<_> = manifests
        .objects
        .pods
        .values()
        .map(|p| {
            let name = p.object.metadata.name.clone().unwrap_or_default();
            if p.stale.is_some() { format!("{name}*") } else { name }
        })
        .collect();
    names.sort();
    names
}

pub fn pod(name: &str) -> String {
    // In quotes: a pod named y is a pod named true.
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: \"{name}\"}}\nspec:\n  containers:\n  - name: c\n    \
         volumeMounts: [{{name: data, mountPath: /data}}]\n  volumes:\n  - name: data\n    \
         persistentVolumeClaim: {{claimName: \"{name}\"}}\n"
    )
}

/// The one problem of a file.
pub fn problem<'a>(manifests: &'a Manifests, file: &Path) -> &'a Problem {
    let mut found = manifests.problems.iter().filter(|p| p.path == file);
    let problem =
        found.next().unwrap_or_else(|| panic!("no problem of {} in {manifests:#?}", file.display()));
    assert!(!problem.detail.is_empty() && !problem.remedy.is_empty(), "{problem}");
    problem
}
