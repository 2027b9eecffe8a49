//! What happens to a volume that somebody else unmounts, covers or exchanges (design 4 and rule 10).

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly, print figures and start processes of their own"
)]

mod drift;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drift::{
    BlockPaths, Nodes, assert_released, block_paths, blocked, methods, run, staging, stranger, text,
    two_readings, umount, until_blocked, volumes, within,
};
use support::objects::{block, device_user};
use support::seen::explanation;
use support::{Process, TestHost, claim, pod_using, pod_with_claim, until};

const UP: [&str; 2] = ["NodeStageVolume", "NodePublishVolume"];
const DOWN: [&str; 2] = ["NodeUnpublishVolume", "NodeUnstageVolume"];
const SOON: Duration = Duration::from_secs(5);

/// A host with a pod that has a volume.
struct Up {
    daemon: Process,
    _driver: Process,
    host: TestHost,
    target: PathBuf,
}

fn up() -> Up {
    let host = TestHost::new();
    let driver = host.fakecsi(&[]);
    let daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    fs::write(target.join("file"), "data").expect("the pod can write");
    Up { daemon, _driver: driver, host, target }
}

fn block_up() -> (Up, BlockPaths) {
    let host = TestHost::new();
    let driver = host.fakecsi(&[]);
    let daemon = host.volumed(&[]);
    host.manifest(
        "web.yaml",
        &format!("{}---\n{}", block(&claim("data")), device_user(&pod_using("web", "uid-web", "data"))),
    );
    host.wait(&["pod/web"]);
    let paths = block_paths(&host, "uid-web", "data");
    (Up { daemon, _driver: driver, host, target: paths.published.clone() }, paths)
}

impl Up {
    /// Does something while the daemon stands still: it sees the end of it only.
    fn unseen(&self, what: impl FnOnce()) {
        self.daemon.signal("-STOP");
        what();
        self.daemon.signal("-CONT");
    }

    /// The volume is blocked by what lies at a path, the words are said, and nobody is called.
    fn assert_blocked(&self, words: &[&str], calls: &[&str]) {
        let detail = until_blocked(&self.host, "web", "obstacle");
        for word in words {
            assert!(detail.contains(word), "{word:?} is not named: {detail}");
        }
        two_readings(&self.host);
        until("it is explained", || explanation(&self.host, "web").contains(words[0]));
        assert_eq!(methods(&self.host), calls, "nobody is called\n{}", self.host.explain());
    }

    /// The pod goes, the obstacle too, and then everything.
    fn goes_without(&self, obstacle: &Path) {
        umount(obstacle);
        self.host.wait(&["--for=released", "pod/web"]);
        assert_released(&self.host);
        assert_eq!(methods(&self.host).last().map(String::as_str), Some(DOWN[1]));
    }

    fn until_good(&self) {
        until("it is good again", || {
            blocked(&self.host, "web").is_empty()
                && volumes(&self.host)
                    .iter()
                    .all(|volume| volume["state"] == "good" && volume["actual"] == "published")
        });
        let read = fs::read_to_string(self.target.join("file"));
        assert_eq!(read.expect("the volume is shown"), "data");
    }
}

#[test]
fn a_volume_that_vanished_is_published_again_within_a_second() {
    let up = up();
    let mut times = Vec::new();
    for _ in 0..3 {
        umount(&up.target);
        times.push(within("it is published again", SOON, || up.host.mounts().contains(&up.target)));
        up.until_good();
    }
    println!("FIGURE: a vanished volume is back after {times:?}");
    assert_eq!(methods(&up.host), [UP[0], UP[1], UP[1], UP[1], UP[1]]);
    let log = fs::read_to_string(&up.daemon.log).expect("a log");
    assert!(log.contains("vanished"), "{log}");
}

#[test]
fn a_staging_that_vanished_is_made_again_under_its_pods() {
    let up = up();
    let staged = staging(&up.host);
    umount(&staged);
    let time = within("it is staged again", SOON, || up.host.mounts().contains(&staged));
    println!("FIGURE: a vanished staging is back after {time:?}");
    up.until_good();
    assert_eq!(methods(&up.host), [UP[0], UP[1], UP[0]], "what is published stays");
    // Both at once.
    up.unseen(|| {
        umount(&up.target);
        umount(&staged);
    });
    within("it is published again", SOON, || up.host.mounts().contains(&up.target));
    up.until_good();
    assert_eq!(methods(&up.host)[3..], UP);
    up.host.remove_manifest("web.yaml");
    up.host.wait(&["--for=released", "pod/web"]);
    assert_released(&up.host);
}

#[test]
fn a_volume_that_was_mounted_over_is_touched_by_nobody_until_that_is_gone() {
    let up = up();
    for removed in [false, true] {
        stranger(&up.target);
        fs::write(up.target.join("precious"), "mine").expect("the stranger can write");
        if removed {
            up.host.remove_manifest("web.yaml");
        }
        up.assert_blocked(&["tmpfs", "stranger", "handle-data"], &UP);
        assert!(up.target.join("precious").exists());
        if !removed {
            umount(&up.target);
            up.until_good();
            assert_eq!(methods(&up.host), UP, "it was there all the time");
        }
    }
    up.goes_without(&up.target);
    assert_eq!(methods(&up.host)[2..], DOWN);
}

#[test]
fn a_volume_that_became_another_mount_is_touched_by_nobody_until_that_is_gone() {
    let up = up();
    up.unseen(|| {
        umount(&up.target);
        stranger(&up.target);
    });
    up.assert_blocked(&["stranger", "handle-data"], &UP);
    umount(&up.target);
    within("it is published again", SOON, || up.host.mounts().contains(&up.target));
    up.until_good();
    up.unseen(|| {
        umount(&up.target);
        stranger(&up.target);
        up.host.remove_manifest("web.yaml");
    });
    up.assert_blocked(&["stranger", "handle-data"], &[UP[0], UP[1], UP[1]]);
    up.goes_without(&up.target);
}

#[test]
fn a_volume_with_a_mount_below_is_not_taken_down() {
    let up = up();
    let below = up.target.join("below");
    fs::create_dir(&below).expect("a directory");
    stranger(&below);
    fs::write(below.join("precious"), "mine").expect("the stranger can write");
    two_readings(&up.host);
    assert_eq!(methods(&up.host), UP);
    up.until_good();
    up.host.remove_manifest("web.yaml");
    up.assert_blocked(&["below", text(&below)], &UP);
    assert!(below.join("precious").exists());
    up.goes_without(&below);
}

#[test]
fn a_directory_that_is_no_mount_any_more_and_has_files_is_not_mounted_over() {
    let up = up();
    up.unseen(|| {
        umount(&up.target);
        fs::write(up.target.join("precious"), "mine").expect("the bare directory takes it");
    });
    up.assert_blocked(&[text(&up.target)], &UP);
    up.host.remove_manifest("web.yaml");
    two_readings(&up.host);
    assert_eq!(methods(&up.host), UP);
    fs::remove_file(up.target.join("precious")).expect("it is still there");
    up.host.volumectl(&["retry"]);
    up.host.wait(&["--for=released", "pod/web"]);
    assert_released(&up.host);
}

#[test]
fn a_staging_that_was_covered_or_exchanged_is_touched_by_nobody_until_that_is_gone() {
    for exchanged in [false, true] {
        let up = up();
        let staged = staging(&up.host);
        up.unseen(|| {
            if exchanged {
                umount(&staged);
            }
            stranger(&staged);
        });
        up.assert_blocked(&["stranger", "handle-data"], &UP);
        umount(&staged);
        if exchanged {
            within("it is staged again", SOON, || up.host.mounts().contains(&staged));
        }
        up.until_good();
        let calls = methods(&up.host);
        assert_eq!(calls.len(), if exchanged { 3 } else { 2 }, "{calls:?}");
        stranger(&staged);
        fs::write(staged.join("precious"), "mine").expect("the stranger can write");
        until_blocked(&up.host, "web", "obstacle");
        up.host.remove_manifest("web.yaml");
        until("it is unpublished", || methods(&up.host).len() > calls.len());
        let calls: Vec<&str> = calls.iter().map(String::as_str).chain([DOWN[0]]).collect();
        two_readings(&up.host);
        assert_eq!(methods(&up.host), calls, "it is not unstaged");
        assert!(staged.join("precious").exists());
        assert!(up.host.explain().contains("stranger"), "{}", up.host.explain());
        up.goes_without(&staged);
    }
}

#[test]
fn a_staging_with_a_mount_below_is_not_unstaged() {
    let up = up();
    let below = staging(&up.host).join("below");
    fs::create_dir(&below).expect("a directory");
    stranger(&below);
    up.host.remove_manifest("web.yaml");
    until("it is unpublished", || methods(&up.host).len() > 2);
    two_readings(&up.host);
    assert_eq!(methods(&up.host)[2..], [DOWN[0]]);
    assert!(up.host.explain().contains(text(&below)), "{}", up.host.explain());
    up.goes_without(&below);
}

#[test]
fn a_block_volume_that_vanished_is_shown_again() {
    let (up, paths) = block_up();
    let nodes = Nodes::of(&[&paths.map, &paths.published]);
    for gone in [&[&paths.map][..], &[&paths.published], &[&paths.map, &paths.published]] {
        // The map is held by its lock.
        up.unseen(|| {
            for path in gone {
                run("umount", &["--lazy", text(path)]);
            }
        });
        let time = within("it is shown again", SOON, || {
            [&paths.map, &paths.published].iter().all(|path| up.host.mounts().contains(path))
        });
        println!("FIGURE: a vanished block volume is back after {time:?}");
        up.host.wait(&["pod/web"]);
        assert_eq!(nodes.locks().len(), 1, "one lock");
        assert!(fs::metadata(&paths.link).is_ok());
    }
    up.host.remove_manifest("web.yaml");
    up.host.wait(&["--for=released", "pod/web"]);
    assert_released(&up.host);
    assert_eq!(nodes.locks(), Vec::<String>::new());
}

/// A device that is nobody's volume.
struct Device(String);

impl Device {
    fn new(host: &TestHost) -> Self {
        let image = host.path("stranger.img");
        fs::File::create(&image).and_then(|file| file.set_len(1 << 20)).expect("an image");
        Self(run("losetup", &["--find", "--show", text(&image)]).trim().to_owned())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ended = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

fn a_foreign_device_on(place: impl Fn(&BlockPaths) -> PathBuf, exchanged: bool) {
    let (up, paths) = block_up();
    let path = place(&paths);
    let device = Device::new(&up.host);
    let calls = methods(&up.host);
    let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
    up.unseen(|| {
        if exchanged {
            // The map is held by its lock.
            run("umount", &["--lazy", text(&path)]);
        }
        run("mount", &["--bind", &device.0, text(&path)]);
    });
    up.assert_blocked(&[text(&path)], &calls);
    up.host.remove_manifest("web.yaml");
    two_readings(&up.host);
    assert_eq!(methods(&up.host), calls, "nobody is called");
    let detail = until_blocked(&up.host, "web", "obstacle");
    assert!(detail.contains(text(&path)), "{detail}");
    umount(&path);
    drop(device);
    up.host.wait(&["--for=released", "pod/web"]);
    assert_released(&up.host);
}

#[test]
fn a_foreign_device_on_the_published_path_stops_every_call() {
    a_foreign_device_on(|paths| paths.published.clone(), false);
    a_foreign_device_on(|paths| paths.published.clone(), true);
}

#[test]
fn a_foreign_device_on_the_pod_s_map_stops_every_call() {
    a_foreign_device_on(|paths| paths.map.clone(), false);
    a_foreign_device_on(|paths| paths.map.clone(), true);
}
