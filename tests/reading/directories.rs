//! Directories and places: files that move, directories that vanish, are replaced, come later or lie behind links.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::world::{World, pod, pods, problem};

#[tokio::test]
async fn an_atomic_swap_of_a_directory_behind_links_is_one_edit() {
    let mut world = World::new();
    for (version, name) in [("..1", "x"), ("..2", "z")] {
        fs::create_dir(world.path(&format!("a/{version}"))).expect("a version");
        world.put(&format!("a/{version}/p.yaml"), &pod(name));
    }
    symlink("..1", world.path("a/..data")).expect("a link");
    symlink("..data/p.yaml", world.path("a/p.yaml")).expect("a link");
    world.until_pods(&["x"]).await;
    symlink("..2", world.path("a/..data_tmp")).expect("a link");
    fs::rename(world.path("a/..data_tmp"), world.path("a/..data")).expect("swap");
    world.until_pods(&["x*", "z"]).await;
    world.until_pods(&["z"]).await;
    world.end().await;
}

#[tokio::test]
async fn a_file_that_moves_between_directories_is_never_gone() {
    let mut world = World::new();
    world.put("a/x.yaml", &pod("x"));
    world.until_pods(&["x"]).await;
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        let place = world.path(&format!("{to}/x.yaml"));
        fs::rename(world.path(&format!("{from}/x.yaml")), &place).expect("move");
        world
            .until("the pod in its new place", |m| {
                let x = m.objects.pods.values().next();
                assert!(x.is_some(), "the pod was lost: {m:#?}");
                x.is_some_and(|p| p.stale.is_none() && p.source.file == place)
            })
            .await;
    }
    world.end().await;
}

#[tokio::test]
async fn a_directory_that_vanishes_and_returns_takes_nothing_with_it() {
    let mut world = World::new();
    world.put("a/x.yaml", &pod("x"));
    world.put("b/y.yaml", &pod("y"));
    world.until_pods(&["x", "y"]).await;
    fs::rename(world.path("a"), world.path("elsewhere")).expect("away");
    let seen = world.until_pods(&["x*", "y"]).await;
    assert!(seen.reading.incomplete.iter().any(|p| p.path == world.path("a")), "{seen:#?}");
    assert_eq!(pods(&*world.reread_past_grace().await), ["x*", "y"]);
    // Elsewhere additions still act.
    world.put("b/z.yaml", &pod("z"));
    world.until_pods(&["x*", "y", "z"]).await;
    fs::rename(world.path("elsewhere"), world.path("a")).expect("back");
    let seen = world.until_pods(&["x", "y", "z"]).await;
    assert!(seen.reading.is_complete() && seen.problems.is_empty(), "{seen:#?}");
    // And it is watched again.
    world.put("a/w.yaml", &pod("w"));
    world.until_pods(&["w", "x", "y", "z"]).await;
    world.end().await;
}

#[tokio::test]
async fn a_replaced_directory_takes_nothing_down_until_it_is_approved() {
    let mut world = World::new();
    world.put("a/x.yaml", &pod("x"));
    world.until_pods(&["x"]).await;
    fs::rename(world.path("a"), world.path("old")).expect("away");
    fs::create_dir(world.path("a")).expect("another");
    let seen = world.until("the other directory", |m| pods(m) == ["x*"]).await;
    assert!(!seen.reading.is_complete());
    let seen = world.reread_past_grace().await;
    assert_eq!(pods(&seen), ["x*"]);
    let why = problem(&seen, &world.path("a"));
    assert!(why.detail.contains("not the directory it was") && why.remedy.contains("approve"), "{why}");
    // What is in it acts at once.
    world.put("a/y.yaml", &pod("y"));
    world.until_pods(&["x*", "y"]).await;
    world.handle.approve().await;
    let seen = world.until_pods(&["y"]).await;
    assert!(seen.reading.is_complete());
    world.end().await;
}

#[tokio::test]
async fn a_directory_replaced_while_the_daemon_was_away_is_not_the_known_one() {
    let mut world = World::new();
    let seen = world.until("a first reading", |m| m.reading.is_complete()).await;
    let known: BTreeMap<_, _> = seen
        .reading
        .directories
        .iter()
        .filter_map(|(path, state)| Some((path.clone(), state.identity.clone()?)))
        .collect();
    assert_eq!(known.len(), 2);
    let root = world.end().await;
    let mut world = World::on(root, &["a", "b"], known.clone());
    world.until("complete", |m| m.reading.is_complete()).await;
    let root = world.end().await;
    fs::rename(root.path().join("a"), root.path().join("old")).expect("away");
    fs::create_dir(root.path().join("a")).expect("another");
    let mut world = World::on(root, &["a", "b"], known);
    let seen = world.until("a first reading", |m| m.reading.generation > 0).await;
    assert_eq!(seen.reading.incomplete.len(), 1, "{seen:#?}");
    assert_eq!(seen.reading.incomplete[0].path, world.path("a"));
    world.end().await;
}

#[tokio::test]
async fn a_directory_that_comes_later_is_read_when_it_comes() {
    let root = TempDir::new().expect("a directory");
    let mut world = World::on(root, &["etc/volumed/manifests"], BTreeMap::new());
    world.until("incomplete", |m| !m.reading.incomplete.is_empty()).await;
    fs::create_dir_all(world.path("etc/volumed/manifests")).expect("directories");
    world.put("etc/volumed/manifests/x.yaml", &pod("x"));
    let seen = world.until_pods(&["x"]).await;
    assert!(seen.reading.is_complete());
    world.end().await;
}

#[tokio::test]
async fn a_directory_behind_a_link_is_followed_when_the_link_is_turned() {
    let root = TempDir::new().expect("a directory");
    for name in ["one", "two"] {
        fs::create_dir_all(root.path().join(name).join("manifests")).expect("directories");
    }
    symlink("one", root.path().join("current")).expect("a link");
    let mut world = World::on(root, &["current/manifests"], BTreeMap::new());
    world.put("one/manifests/x.yaml", &pod("x"));
    world.put("two/manifests/y.yaml", &pod("y"));
    world.until_pods(&["x"]).await;
    symlink("two", world.path("next")).expect("a link");
    fs::rename(world.path("next"), world.path("current")).expect("turn");
    let seen = world.until_pods(&["x*", "y"]).await;
    assert!(!seen.reading.is_complete(), "it is another directory");
    world.end().await;
}
