//! The real host on a directory of its own, without privileges: what is made, seen and removed below a root.

#![expect(
    clippy::unwrap_used,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use volumed::host::{Directory, Host, HostError, Linux, Removal, Seen, Tree};
use volumed::model::{Layout, RootPath, VOL_DATA};

const SPEC: &str = "pods/u1/volumes/kubernetes.io~csi/pv1";

fn at(path: &str) -> RootPath {
    RootPath::new(path).unwrap()
}

fn directory(path: &str, mode: u32, exact: bool) -> Directory {
    Directory { path: at(path), mode, exact }
}

fn host() -> (tempfile::TempDir, Linux, PathBuf) {
    let top = tempfile::tempdir().unwrap();
    let linux = Linux::open(&top.path().join("root")).unwrap();
    let root = linux.root().to_owned();
    (top, linux, root)
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A publication as the CSI volume type makes it.
fn tree(content: &[u8]) -> Tree {
    Tree {
        directories: vec![directory(SPEC, 0o750, false)],
        files: vec![(at(SPEC).join(VOL_DATA), content.to_vec(), 0o644)],
    }
}

#[tokio::test]
async fn the_root_and_its_own_directories_are_made_as_a_kubelet_does() {
    let (_top, linux, root) = host();
    for path in [root.clone(), root.join("pods"), root.join("plugins"), root.join("plugins_registry")] {
        assert_eq!(mode(&path), 0o750, "{}", path.display());
    }
    assert!(!linux.boot().0.is_empty());
}

#[tokio::test]
async fn a_root_behind_a_symlink_is_known_by_its_real_path() {
    let top = tempfile::tempdir().unwrap();
    std::fs::create_dir(top.path().join("real")).unwrap();
    symlink("real", top.path().join("link")).unwrap();
    let linux = Linux::open(&top.path().join("link")).unwrap();
    let direct = Linux::open(&top.path().join("real")).unwrap();
    assert_eq!(linux.root(), direct.root());
    assert!(linux.root().ends_with("real") && linux.root().is_absolute());
}

#[tokio::test]
async fn directories_get_the_mode_asked_for_whatever_the_umask() {
    let (_top, linux, root) = host();
    let directories = vec![directory("pods/u/volumes/kubernetes.io~empty-dir/cache", 0o777, true)];
    linux.create(Tree { directories, files: Vec::new() }).await.unwrap();
    assert_eq!(mode(&root.join("pods/u/volumes/kubernetes.io~empty-dir/cache")), 0o777);
    assert_eq!(mode(&root.join("pods/u/volumes/kubernetes.io~empty-dir")), 0o750);
    assert_eq!(mode(&root.join("pods/u")), 0o750);
}

#[tokio::test]
async fn an_existing_directory_keeps_its_mode_unless_it_must_be_exact() {
    let (_top, linux, root) = host();
    let path = root.join("pods/u");
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    for (exact, expected) in [(false, 0o700), (true, 0o2777)] {
        let directories = vec![directory("pods/u", 0o2777, exact)];
        linux.create(Tree { directories, files: Vec::new() }).await.unwrap();
        assert_eq!(mode(&path), expected);
    }
}

#[tokio::test]
async fn a_file_that_is_right_is_not_written_again() {
    let (_top, linux, root) = host();
    let file = root.join(SPEC).join(VOL_DATA);
    linux.create(tree(b"one")).await.unwrap();
    let first = std::fs::metadata(&file).unwrap();
    assert_eq!(mode(&file), 0o644);
    linux.create(tree(b"one")).await.unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().ino(), first.ino());
    for other in [&b"two"[..], b"on", b"one and more", b""] {
        linux.create(tree(other)).await.unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), other);
    }
    assert_eq!(std::fs::read_dir(root.join(SPEC)).unwrap().count(), 1, "no temporary file stays");
}

#[tokio::test]
async fn what_a_crash_left_half_written_is_replaced_and_removed() {
    let (_top, linux, root) = host();
    let leftover = root.join(SPEC).join(".vol_data.json.volumed");
    linux.create(tree(b"one")).await.unwrap();
    std::fs::write(&leftover, "half").unwrap();
    linux.create(tree(b"two")).await.unwrap();
    assert!(!leftover.try_exists().unwrap());
    std::fs::write(&leftover, "half").unwrap();
    let removal =
        Removal { files: vec![at(SPEC).join(VOL_DATA)], directories: vec![at(SPEC)], ..Removal::default() };
    linux.remove(removal.clone()).await.unwrap();
    assert!(!root.join(SPEC).try_exists().unwrap());
    linux.remove(removal).await.unwrap();
}

#[tokio::test]
async fn no_directory_is_removed_unless_it_is_empty() {
    let (_top, linux, root) = host();
    linux.create(tree(b"one")).await.unwrap();
    let mine = root.join(SPEC).join("somebody's data");
    std::fs::write(&mine, "data").unwrap();
    let must = Removal { directories: vec![at(SPEC)], ..Removal::default() };
    assert!(matches!(linux.remove(must).await, Err(HostError::NotEmpty { .. })));
    let may = Removal { if_empty: vec![at(SPEC), at("pods/u1")], ..Removal::default() };
    linux.remove(may).await.unwrap();
    assert_eq!(std::fs::read(&mine).unwrap(), b"data");
}

#[tokio::test]
async fn a_known_file_that_is_something_else_stays() {
    let (top, linux, root) = host();
    let victim = top.path().join("victim");
    std::fs::write(&victim, "data").unwrap();
    std::fs::create_dir_all(root.join(SPEC)).unwrap();
    let known = root.join(SPEC).join(VOL_DATA);
    let removal = Removal { files: vec![at(SPEC).join(VOL_DATA)], ..Removal::default() };
    symlink(&victim, &known).unwrap();
    assert!(matches!(
        linux.remove(removal.clone()).await,
        Err(HostError::WrongKind { found: "a symlink", .. })
    ));
    std::fs::remove_file(&known).unwrap();
    std::fs::create_dir(&known).unwrap();
    assert!(matches!(linux.remove(removal).await, Err(HostError::WrongKind { found: "a directory", .. })));
    assert!(known.is_dir() && victim.is_file());
}

#[tokio::test]
async fn look_tells_the_kinds_apart() {
    let (_top, linux, root) = host();
    let seen = async |name: &str| linux.look(at(&format!("pods/{name}"))).await.unwrap();
    let pods = root.join("pods");
    assert_eq!(seen("absent").await, Seen::Absent);
    assert_eq!(seen("absent/below").await, Seen::Absent);
    std::fs::create_dir(pods.join("dir")).unwrap();
    assert_eq!(seen("dir").await, Seen::EmptyDirectory);
    std::fs::write(pods.join("dir/file"), "").unwrap();
    assert_eq!(seen("dir").await, Seen::Directory);
    assert_eq!(seen("dir/file").await, Seen::EmptyFile);
    std::fs::write(pods.join("dir/file"), "x").unwrap();
    assert_eq!(seen("dir/file").await, Seen::Other);
    symlink("dir", pods.join("link")).unwrap();
    assert_eq!(seen("link").await, Seen::Symlink);
    assert!(matches!(
        linux.look(at("pods/link/file")).await,
        Err(HostError::WrongKind { found: "a symlink", path, .. }) if path == pods.join("link")
    ));
}

/// Every operation, with each directory on the way replaced by a symlink to the same tree somewhere else.
#[tokio::test]
async fn no_operation_follows_a_symlink_on_its_way() {
    for depth in 1..=5 {
        let (top, linux, root) = host();
        linux.create(tree(b"one")).await.unwrap();
        std::fs::create_dir(root.join(SPEC).join("mount")).unwrap();
        let component: PathBuf = Path::new(SPEC).components().take(depth).collect();
        let outside = top.path().join("outside");
        std::fs::rename(root.join(&component), &outside).unwrap();
        symlink(&outside, root.join(&component)).unwrap();
        let below = outside.join(Path::new(SPEC).strip_prefix(&component).unwrap());

        let say = |what: &str| format!("{what}, symlink at {}", component.display());
        let symlink_found = |e: HostError| matches!(e, HostError::WrongKind { found: "a symlink", .. });
        assert!(symlink_found(linux.create(tree(b"two")).await.unwrap_err()), "{}", say("create"));
        let more = Tree { directories: vec![directory(&format!("{SPEC}/new"), 0o750, true)], files: vec![] };
        assert!(symlink_found(linux.create(more).await.unwrap_err()), "{}", say("create"));
        assert!(symlink_found(linux.look(at(SPEC).join("mount")).await.unwrap_err()), "{}", say("look"));
        let file = Removal { files: vec![at(SPEC).join(VOL_DATA)], ..Removal::default() };
        assert!(symlink_found(linux.remove(file).await.unwrap_err()), "{}", say("remove"));
        let must = Removal { directories: vec![at(SPEC).join("mount")], ..Removal::default() };
        assert!(symlink_found(linux.remove(must).await.unwrap_err()), "{}", say("remove"));
        let cleared = linux.remove_empty_dir(at(SPEC).join("mount")).await.unwrap_err();
        assert!(symlink_found(cleared), "{}", say("remove_empty_dir"));
        for found in linux.volumes_on_disk().await.unwrap() {
            assert_eq!(found.vol_data, None, "{}", say("volumes_on_disk"));
        }

        assert_eq!(std::fs::read(below.join(VOL_DATA)).unwrap(), b"one");
        assert!(below.join("mount").is_dir() && !below.join("new").try_exists().unwrap());
    }
}

#[tokio::test]
async fn a_symlink_in_place_of_a_file_is_not_written_through() {
    let (top, linux, root) = host();
    let victim = top.path().join("victim");
    std::fs::write(&victim, "data").unwrap();
    std::fs::create_dir_all(root.join(SPEC)).unwrap();
    symlink(&victim, root.join(SPEC).join(VOL_DATA)).unwrap();
    assert!(matches!(linux.create(tree(b"x")).await, Err(HostError::WrongKind { found: "a symlink", .. })));
    std::fs::remove_file(root.join(SPEC).join(VOL_DATA)).unwrap();
    symlink(&victim, root.join(SPEC).join(".vol_data.json.volumed")).unwrap();
    linux.create(tree(b"x")).await.unwrap();
    assert_eq!(std::fs::read(&victim).unwrap(), b"data");
    assert_eq!(std::fs::read(root.join(SPEC).join(VOL_DATA)).unwrap(), b"x");
}

#[tokio::test]
async fn volumes_on_disk_are_listed_with_whose_they_are() {
    let (_top, linux, root) = host();
    let layout = Layout::new(&root);
    let driver = volumed::model::DriverName::new("d.example.com").unwrap();
    let staged = layout.csi_volume(&driver, "h");
    let data = volumed::model::VolData::staging(&driver, "h");
    linux.create(tree(b"{\"driverName\":\"d\"}\n")).await.unwrap();
    linux
        .create(Tree {
            directories: vec![
                Directory { path: layout.csi_staging(&driver, "h"), mode: 0o750, exact: false },
                Directory { path: layout.csi_staging(&driver, "orphan"), mode: 0o750, exact: false },
                directory("plugins/kubernetes.io/csi/pv/old/globalmount", 0o750, false),
            ],
            files: vec![
                (staged.join(VOL_DATA), data.to_bytes(), 0o644),
                (at("pods/u2/volumes/kubernetes.io~csi/cut").join(VOL_DATA), b"{\"driverN".to_vec(), 0o644),
                (at("pods/u2/volumes/kubernetes.io~csi/huge").join(VOL_DATA), vec![b' '; 70_000], 0o644),
            ],
        })
        .await
        .unwrap();
    std::fs::create_dir_all(root.join("pods/u2/volumeDevices/kubernetes.io~csi")).unwrap();
    symlink("/dev/null", root.join("pods/u2/volumeDevices/kubernetes.io~csi/raw")).unwrap();
    // What is being put into its place at this moment is nobody's, and not shown as such.
    symlink("/dev/null", root.join("pods/u2/volumeDevices/kubernetes.io~csi/.next.volumed")).unwrap();

    let found = linux.volumes_on_disk().await.unwrap();
    let by = |path: &RootPath| found.iter().find(|f| f.path == *path).unwrap_or_else(|| panic!("{path:?}"));
    let published = by(&at(SPEC));
    assert_eq!(published.vol_data.as_ref().unwrap().get("driverName"), Some("d"));
    let (pod, plugin, spec) = published.publication.as_ref().unwrap();
    assert_eq!((pod.as_str(), plugin.as_str(), spec.as_str()), ("u1", "kubernetes.io~csi", "pv1"));
    assert_eq!(by(&staged).vol_data, Some(data));
    assert_eq!((by(&staged).publication.is_none(), by(&staged).empty), (true, false));
    assert!(by(&layout.csi_volume(&driver, "orphan")).empty);
    for broken in ["cut", "huge"] {
        let volume = by(&at(&format!("pods/u2/volumes/kubernetes.io~csi/{broken}")));
        assert_eq!((&volume.vol_data, volume.empty), (&None, false));
    }
    let block = by(&at("pods/u2/volumeDevices/kubernetes.io~csi/raw"));
    assert_eq!((&block.vol_data, block.empty, block.publication.is_some()), (&None, false, true));
    let old = by(&at("plugins/kubernetes.io/csi/pv/old"));
    assert_eq!((old.part, old.empty), (volumed::host::Part::OldStaging, true));
    assert_eq!(found.len(), 7, "{found:#?}");
}

#[tokio::test]
async fn a_thousand_volumes_are_made_and_removed_at_once() {
    let (_top, linux, root) = host();
    let all = (0..1000).map(|i| {
        let linux = &linux;
        async move {
            let spec = at(&format!("pods/u{i}/volumes/kubernetes.io~csi/pv"));
            let files = vec![(spec.join(VOL_DATA), b"{}\n".to_vec(), 0o644)];
            linux.create(Tree { directories: vec![], files }).await.unwrap();
            let mut if_empty = vec![];
            let mut up = spec.parent();
            while let Some(parent) = up.filter(|p| p.as_path() != Path::new("pods")) {
                if_empty.push(parent.clone());
                up = parent.parent();
            }
            let removal = Removal {
                files: vec![spec.join(VOL_DATA)],
                directories: vec![spec],
                if_empty,
                ..Removal::default()
            };
            linux.remove(removal).await.unwrap();
        }
    });
    // Polled together on one task.
    let mut all: Vec<_> = all.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        all.retain_mut(|f| f.as_mut().poll(cx).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert_eq!(std::fs::read_dir(root.join("pods")).unwrap().count(), 0);
}
