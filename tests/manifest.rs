//! The manifest reader from the outside: real directories, real events. Every line of bad input that concerns reading has
//! its test here: the message names file, object, field and remedy, other objects are unaffected, and nothing that was there
//! becomes absent.

#![expect(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests fail by panicking")]

#[path = "reading/directories.rs"]
mod directories;
#[path = "reading/world.rs"]
mod world;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use volumed::manifest::Manifests;
use volumed::model::Problem;

use world::{DEADLINE, World, pod, pods, problem};

#[tokio::test]
async fn a_pod_appears_and_goes() {
    let mut world = World::new();
    world.until("a first reading", |m| m.reading.generation > 0).await;
    world.put("a/x.yaml", &pod("x"));
    let seen = world.until_pods(&["x"]).await;
    assert!(seen.reading.is_complete() && seen.problems.is_empty(), "{seen:#?}");
    fs::remove_file(world.path("a/x.yaml")).expect("remove");
    world.until_pods(&["x*"]).await;
    world.until_pods(&[]).await;
    world.end().await;
}

/// Breaks `a/x.yaml` in some way beside a good pod, and sees that both pods stay and the file is named.
async fn broken_in_this_way(text: &[u8]) -> (Problem, Arc<Manifests>) {
    let mut world = World::new();
    world.put("a/x.yaml", &pod("x"));
    world.put("a/y.yaml", &pod("y"));
    world.until_pods(&["x", "y"]).await;
    let file = world.path("a/x.yaml");
    fs::write(&file, text).expect("write");
    world.until("x stale", |m| pods(m) == ["x*", "y"]).await;
    let now = world.reread_past_grace().await;
    assert_eq!(pods(&now), ["x*", "y"]);
    let problem = problem(&now, &file).clone();
    assert!(!problem.warning);
    // Mended, it is good again.
    world.put("a/x.yaml", &pod("x"));
    let mended = world.until_pods(&["x", "y"]).await;
    assert!(mended.problems.is_empty() && mended.reading.is_complete(), "{mended:#?}");
    world.end().await;
    (problem, now)
}

#[tokio::test]
async fn unparsable_and_truncated_yaml_keeps_the_last_good_version() {
    let (problem, now) = broken_in_this_way(b"apiVersion: v1\nkind: Pod\nmetadata: {name: x\n").await;
    assert!(problem.position.is_some_and(|(line, _)| line >= 3), "{problem}");
    assert!(!now.reading.is_complete(), "what was moved into it since is not known");
    broken_in_this_way(b"\xff\xfe\x00").await;
    broken_in_this_way(b"").await;
    broken_in_this_way(&[0; 4096]).await;
}

#[tokio::test]
async fn wrong_types_duplicate_keys_and_lost_names_keep_the_last_good_version() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: 5}\n";
    let (problem, _) = broken_in_this_way(text.as_bytes()).await;
    assert_eq!(problem.field.as_deref(), Some("spec.containers"));
    assert_eq!(problem.object.map(|o| o.to_string()).as_deref(), Some("Pod default/x"));
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, name: z}\nspec: {containers: []}\n";
    let (problem, _) = broken_in_this_way(text.as_bytes()).await;
    assert!(problem.detail.contains("duplicate"), "{problem}");
    for name in ["", "name: x/y", "name: ..", "name: \"x\\0\"", &format!("name: {}", "x".repeat(300))] {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{{name}}}\nspec: {{containers: []}}\n");
        let (problem, _) = broken_in_this_way(text.as_bytes()).await;
        assert_eq!(problem.field.as_deref(), Some("metadata.name"));
    }
    let bad_uid = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, uid: a/b}\nspec: {containers: []}\n";
    broken_in_this_way(bad_uid.as_bytes()).await;
}

#[tokio::test]
async fn a_20_mib_file_and_an_alias_bomb_keep_the_last_good_version() {
    let (problem, now) = broken_in_this_way(&vec![b' '; 20 << 20]).await;
    assert!(problem.detail.contains("20971520 bytes"), "{problem}");
    assert!(!now.reading.is_complete(), "a file that was not read may say anything");
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..10 {
        bomb.push_str(&format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", ")));
    }
    broken_in_this_way(bomb.as_bytes()).await;
}

#[tokio::test]
async fn a_broken_file_that_was_never_good_makes_the_reading_incomplete() {
    let mut world = World::new();
    world.put("a/x.yaml", "apiVersion: [");
    world.put("a/y.yaml", &pod("y"));
    let seen = world.until_pods(&["y"]).await;
    let file = world.path("a/x.yaml");
    assert!(seen.reading.incomplete.iter().any(|p| p.path == file), "{seen:#?}");
    // Nothing becomes absent meanwhile.
    fs::remove_file(world.path("a/y.yaml")).expect("remove");
    assert_eq!(pods(&*world.reread_past_grace().await), ["y*"]);
    // The operator accepts the file as it is; until it changes.
    world.handle.approve().await;
    let seen = world.until_pods(&[]).await;
    assert!(seen.reading.is_complete());
    assert!(!problem(&seen, &file).detail.is_empty());
    world.put("a/x.yaml", "apiVersion: [[");
    world.until("incomplete again", |m| !m.reading.is_complete()).await;
    world.end().await;
}

#[tokio::test]
async fn an_invalid_pod_without_a_good_version_is_broken_and_a_pv_only_a_problem() {
    let mut world = World::new();
    world.put(
        "a/x.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: 5}\n---\n\
         apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: pv}\nspec: {capacity: 5}\n",
    );
    let seen = world.until("a broken pod", |m| m.objects.broken_pods.len() == 1).await;
    let (object, why) = seen.objects.broken_pods.values().next().expect("one");
    assert_eq!(object.to_string(), "Pod default/x");
    assert_eq!(why.field.as_deref(), Some("spec.containers"));
    assert!(seen.problems.iter().any(|p| p.field.as_deref() == Some("spec.capacity")), "{seen:#?}");
    assert!(seen.objects.volumes.is_empty() && seen.reading.is_complete());
    world.end().await;
}

#[tokio::test]
async fn a_file_that_is_being_written_is_not_read_even_if_something_else_happens() {
    let mut world = World::new();
    world.put("a/x.yaml", &pod("x"));
    world.until_pods(&["x"]).await;
    let file = world.path("a/x.yaml");
    // The first half would parse: as a pod without its volumes.
    let text = pod("x");
    let half = text.find("spec").expect("a spec");
    let mut writer = fs::File::create(&file).expect("open");
    writer.write_all(&text.as_bytes()[..half]).expect("write");
    world.put("a/y.yaml", &pod("y"));
    let seen = world.until("y, and x as it was", |m| pods(m) == ["x", "y"]).await;
    assert!(!seen.reading.is_complete());
    let why = problem(&seen, &file);
    assert!(why.detail.contains("being written"), "{why}");
    let x = |m: &Manifests| {
        let found = m.objects.pods.values().find(|p| p.object.metadata.name.as_deref() == Some("x"));
        found.and_then(|p| p.object.spec.as_ref()?.volumes.as_ref().map(Vec::len))
    };
    assert_eq!(x(&seen), Some(1));
    fs::remove_file(world.path("a/y.yaml")).expect("remove");
    assert_eq!(pods(&*world.reread_past_grace().await), ["x", "y*"]);
    writer.write_all(&text.as_bytes()[half..]).expect("write");
    drop(writer);
    let seen = world.until("a complete reading", |m| m.reading.is_complete()).await;
    assert_eq!(x(&seen), Some(1));
    world.until_pods(&["x"]).await;
    world.end().await;
}

#[tokio::test]
async fn of_two_definitions_the_first_file_counts_and_the_other_is_reported() {
    let mut world = World::new();
    world.put("a/1.yaml", &pod("x"));
    world.put("a/2.yaml", &pod("x").replace("/data", "/other"));
    let uid = |name: &str| {
        pod(name).replace("{name: ", "{uid: one-uid, name: ").replacen(
            "{uid: one-uid, name: data,",
            "{name: data,",
            1,
        )
    };
    world.put("b/1.yaml", &uid("one"));
    world.put("b/2.yaml", &uid("two"));
    let seen = world.until_pods(&["one", "x"]).await;
    for (first, second, field) in
        [("a/1.yaml", "a/2.yaml", "metadata.name"), ("b/1.yaml", "b/2.yaml", "metadata.uid")]
    {
        let why = problem(&seen, &world.path(second));
        assert_eq!(why.field.as_deref(), Some(field));
        assert!(why.to_string().contains(&*world.path(first).to_string_lossy()), "{why}");
    }
    assert!(seen.reading.is_complete());
    // The first goes: its pod stays until that is sure, then the other takes over.
    fs::remove_file(world.path("b/1.yaml")).expect("remove");
    world.until_pods(&["one*", "x"]).await;
    world.until_pods(&["two", "x"]).await;
    world.end().await;
}

#[tokio::test]
async fn unknown_fields_are_warned_of_and_the_object_is_used() {
    let mut world = World::new();
    world.put("a/x.yaml", &pod("x").replace("spec:\n", "spec:\n  volumez: []\n"));
    let seen = world.until_pods(&["x"]).await;
    let why = problem(&seen, &world.path("a/x.yaml"));
    assert!(why.warning && seen.reading.is_complete());
    assert_eq!(why.field.as_deref(), Some("spec.volumez"));
    world.end().await;
}

#[tokio::test]
async fn a_fifo_a_device_a_socket_or_a_directory_named_like_a_manifest_is_a_problem_and_not_opened() {
    let mut world = World::new();
    world.put("a/y.yaml", &pod("y"));
    let fifo = world.path("a/fifo.yaml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let socket = world.path("a/socket.yaml");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let directory = world.path("a/directory.yaml");
    fs::create_dir(&directory).expect("a directory");
    let device = world.path("a/device.yaml");
    symlink("/dev/zero", &device).expect("a link");
    let seen = world.until("four problems", |m| m.reading.incomplete.len() == 4).await;
    for (path, what) in
        [(fifo, "a FIFO"), (socket, "a socket"), (directory, "a directory"), (device, "a device")]
    {
        let why = problem(&seen, &path);
        assert!(why.detail.contains(what), "{why}");
    }
    assert_eq!(pods(&seen), ["y"]);
    world.handle.approve().await;
    let seen = world.reread().await;
    assert!(seen.reading.is_complete(), "{seen:#?}");
    world.end().await;
}

#[tokio::test]
async fn a_file_that_others_can_write_is_not_read() {
    let mut world = World::new();
    world.put("a/x.yaml", &pod("x"));
    world.until_pods(&["x"]).await;
    let file = world.path("a/x.yaml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("chmod");
    let seen = world.until_pods(&["x*"]).await;
    let why = problem(&seen, &file);
    assert!(why.detail.contains("written by everyone") && why.remedy.contains("chmod"), "{why}");
    assert!(!seen.reading.is_complete());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
    world.until_pods(&["x"]).await;
    if nix::unistd::geteuid().is_root() {
        nix::unistd::chown(&file, Some(65534.into()), None).expect("chown");
        let seen = world.until_pods(&["x*"]).await;
        assert!(problem(&seen, &file).detail.contains("uid 65534"), "{seen:#?}");
    }
    world.end().await;
}

#[tokio::test]
async fn a_dangling_symlink_hides_what_it_may_say_and_is_read_when_its_target_comes() {
    let mut world = World::new();
    let target = world.path("far/away/x.yaml");
    let link = world.path("a/x.yaml");
    symlink(&target, &link).expect("a link");
    let seen = world.until("incomplete", |m| !m.reading.incomplete.is_empty()).await;
    assert!(problem(&seen, &link).detail.contains("leads nowhere"));
    fs::create_dir_all(target.parent().expect("a parent")).expect("directories");
    world.put("far/away/x.yaml", &pod("x"));
    world.until_pods(&["x"]).await;
    // An edit behind the link is seen.
    world.put("far/away/x.yaml", &pod("z"));
    world.until_pods(&["x*", "z"]).await;
    world.until_pods(&["z"]).await;
    // The target goes: the pod stays.
    fs::remove_file(&target).expect("remove");
    world.until_pods(&["z*"]).await;
    assert_eq!(pods(&*world.reread_past_grace().await), ["z*"]);
    world.end().await;
}

#[tokio::test]
async fn an_editors_save_never_loses_the_pod() {
    let mut world = World::new();
    world.put("a/x.yaml", &pod("x"));
    world.until_pods(&["x"]).await;
    let file = world.path("a/x.yaml");
    let mut readings = world.manifests.clone();
    for turn in 0..5 {
        // As vim does: away, anew, the old one removed.
        fs::rename(&file, world.path("a/x.yaml~")).expect("away");
        fs::write(world.path("a/4913"), "").expect("probe");
        fs::remove_file(world.path("a/4913")).expect("probe");
        fs::write(&file, pod("x").replace("/data", &format!("/data{turn}"))).expect("anew");
        fs::remove_file(world.path("a/x.yaml~")).expect("remove");
        let path = format!("/data{turn}");
        let done = |m: &Manifests| {
            let all = m.objects.pods.values().next();
            assert!(all.is_some(), "the pod was lost: {m:#?}");
            all.is_some_and(|p| {
                let mounts = p.object.spec.as_ref().and_then(|s| s.containers[0].volume_mounts.as_ref());
                p.stale.is_none() && mounts.is_some_and(|m| m[0].mount_path == path)
            })
        };
        timeout(DEADLINE, readings.wait_for(|m| done(m))).await.expect("in time").expect("alive");
    }
    world.end().await;
}

#[tokio::test]
async fn editors_files_and_dot_files_are_no_manifests() {
    let mut world = World::new();
    for name in ["a/.x.yaml", "a/x.yaml~", "a/#x.yaml#", "a/x.yaml.swp", "a/x.txt"] {
        fs::write(world.path(name), pod("x")).expect("write");
    }
    world.put("a/y.yml", &pod("y"));
    let seen = world.until_pods(&["y"]).await;
    assert!(seen.problems.is_empty() && seen.reading.is_complete());
    assert_eq!(seen.reading.directories[&world.path("a")].files, 1);
    world.end().await;
}

#[tokio::test]
async fn a_pod_with_500_volumes_is_a_pod() {
    let mut world = World::new();
    let mut text = "apiVersion: v1\nkind: Pod\nmetadata: {name: many}\nspec:\n  containers:\n  - name: c\n    volumeMounts:\n".to_owned();
    for i in 0..500 {
        text.push_str(&format!("    - {{name: v{i}, mountPath: /v{i}}}\n"));
    }
    text.push_str("  volumes:\n");
    for i in 0..500 {
        text.push_str(&format!("  - name: v{i}\n    persistentVolumeClaim: {{claimName: c{i}}}\n"));
    }
    world.put("a/x.yaml", &text);
    let seen = world.until_pods(&["many"]).await;
    assert!(seen.problems.is_empty());
    world.end().await;
}

#[tokio::test]
async fn a_thousand_pods_appear_and_one_more_is_cheap() {
    let mut world = World::new();
    for i in 0..1000 {
        fs::write(world.path(&format!("b/p{i}.yaml")), pod(&format!("p{i}"))).expect("write");
    }
    world.until("all", |m| m.objects.pods.len() == 1000 && m.reading.is_complete()).await;
    // By then no file is so young that another write may have left its stamp.
    world.reread_past_grace().await;
    let began = Instant::now();
    world.reread().await;
    let unchanged = began.elapsed();
    let began = Instant::now();
    world.put("a/one-more.yaml", &pod("one-more"));
    world.until("one more", |m| m.objects.pods.len() == 1001).await;
    // For the report; a bound that only a parse of everything would break.
    eprintln!("unchanged: {unchanged:?}, one more: {:?}", began.elapsed());
    assert!(unchanged < Duration::from_secs(2), "{unchanged:?}");
    world.end().await;
}

#[tokio::test]
async fn nothing_is_read_when_nothing_happens() {
    let mut world = World::new();
    world.put("a/x.yaml", &pod("x"));
    world.until_pods(&["x"]).await;
    let before = world.reread_past_grace().await.reading.generation;
    // Its own reading, other files and other directories are no reason.
    fs::write(world.path("a/notes.txt"), "x").expect("write");
    fs::write(world.path("other.yaml"), "x").expect("write");
    let none = timeout(Duration::from_millis(300), world.manifests.changed()).await;
    assert!(
        none.is_err(),
        "read again for nothing: {} after {before}",
        world.manifests.borrow().reading.generation
    );
    assert!(world.handle.ping().await);
    world.end().await;
}
