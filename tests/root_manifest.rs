//! A manifest directory on a file system of its own that is unmounted, mounted over and mounted again, and a file that cannot
//! be read. Needs root; each test has a private mount namespace, so nothing of it is seen or left outside.

#![expect(clippy::expect_used, clippy::print_stderr, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use volumed::manifest::{Manifests, Settings, reader};
use volumed::model::Ambient;

/// Runs a test on threads that share a mount namespace of their own.
fn in_private_namespace(test: impl AsyncFnOnce()) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOT-RUN: root_manifest: only root can mount");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("no propagation");
    // Threads made from here on, the blocking pool's too, inherit the namespace.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test());
}

fn tmpfs(at: &Path) {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).expect("a tmpfs");
}

fn pod(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: []}}\n")
}

/// Pods' names, a star behind the stale ones.
fn pods(manifests: &Manifests) -> Vec<String> {
    let mut names: Vec<_> = manifests
        .objects
        .pods
        .values()
        .map(|p| {
            let name = p.object.metadata.name.clone().unwrap_or_default();
            if p.stale.is_some() { name + "*" } else { name }
        })
        .collect();
    names.sort();
    names
}

fn settings(directory: &Path) -> Settings {
    Settings {
        directories: vec![directory.to_owned()],
        removal_grace: Duration::from_millis(50),
        owner: 0,
        known: BTreeMap::new(),
    }
}

#[test]
fn a_directory_that_is_unmounted_takes_nothing_with_it() {
    in_private_namespace(async || {
        let root = TempDir::new().expect("a directory");
        let directory = root.path().join("manifests");
        fs::create_dir(&directory).expect("the place below");
        tmpfs(&directory);
        fs::write(directory.join("x.yaml"), pod("x")).expect("write");
        // Bound once more, so that the same file system can come back.
        let spare = root.path().join("spare");
        fs::create_dir(&spare).expect("a directory");
        mount(Some(&directory), &spare, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");

        let (reader, handle, mut seen) =
            reader(settings(&directory), Instant::now(), Arc::new(Ambient::new(1, || 0)));
        let shutdown = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(reader.run(shutdown.clone()));
        let limit = Duration::from_secs(20);
        timeout(limit, seen.wait_for(|m| pods(m) == ["x"] && m.reading.is_complete()))
            .await
            .expect("in time")
            .expect("alive");

        umount(&directory).expect("umount");
        for _ in 0..3 {
            handle.reread().await;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        {
            let now = seen.borrow();
            assert_eq!(pods(&now), ["x*"], "{now:#?}");
            assert_eq!(now.reading.incomplete.len(), 1);
            let why = &now.reading.incomplete[0];
            assert!(why.path == directory && why.detail.contains("not the directory it was"), "{why}");
            assert!(why.remedy.contains("approve"), "{why}");
        }

        // Mounting makes no event; it is found all the same, without anybody asking.
        mount(Some(&spare), &directory, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
        timeout(limit, seen.wait_for(|m| pods(m) == ["x"] && m.reading.is_complete()))
            .await
            .expect("in time")
            .expect("alive");
        fs::write(directory.join("y.yaml"), pod("z")).expect("write");
        timeout(limit, seen.wait_for(|m| pods(m) == ["x", "z"])).await.expect("in time").expect("alive");

        // Mounted over by something empty: the same.
        tmpfs(&directory);
        handle.reread().await;
        tokio::time::sleep(Duration::from_millis(60)).await;
        handle.reread().await;
        assert_eq!(pods(&seen.borrow()), ["x*", "z*"]);

        shutdown.cancel();
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no panic").expect("no error");
        }
        for at in [&directory, &directory, &spare] {
            umount(at).expect("umount");
        }
    });
}

#[test]
fn a_file_that_cannot_be_read_keeps_the_last_good_version() {
    in_private_namespace(async || {
        let root = TempDir::new().expect("a directory");
        let directory = root.path().join("manifests");
        fs::create_dir(&directory).expect("a directory");
        fs::write(directory.join("x.yaml"), pod("x")).expect("write");
        fs::write(directory.join("y.yaml"), pod("other")).expect("write");
        let (reader, handle, mut seen) =
            reader(settings(&directory), Instant::now(), Arc::new(Ambient::new(1, || 0)));
        let shutdown = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(reader.run(shutdown.clone()));
        let limit = Duration::from_secs(20);
        timeout(limit, seen.wait_for(|m| pods(m) == ["other", "x"])).await.expect("in time").expect("alive");

        // Root may read every mode; a file of /proc that fails when it is read serves as the broken disk.
        let file = directory.join("x.yaml");
        mount(Some("/proc/self/mem"), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
        handle.reread().await;
        {
            let now = seen.borrow_and_update();
            assert_eq!(pods(&now), ["other", "x*"], "{now:#?}");
            assert!(
                now.reading.incomplete.iter().any(|p| p.path == file && !p.remedy.is_empty()),
                "{now:#?}"
            );
        }
        umount(&file).expect("umount");
        timeout(limit, seen.wait_for(|m| pods(m) == ["other", "x"] && m.reading.is_complete()))
            .await
            .expect("in time")
            .expect("alive");
        shutdown.cancel();
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no panic").expect("no error");
        }
    });
}
