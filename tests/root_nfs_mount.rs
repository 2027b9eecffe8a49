//! Mounts of NFS exports as the host makes them, with a mount.nfs of the tests' own: seen by nobody until they are right, and
//! given up without a trace.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

mod isolated;
mod nfs;

use std::path::{Path, PathBuf};

use isolated::{World, at, eventually, isolated};
use volumed::host::{Host as _, HostError, NfsCause, NfsMount};

/// Where the helper is.
fn tools(world: &World) -> PathBuf {
    world.top.path().join("tools")
}

fn new_world() -> World {
    let world = World::of(|linux| {
        let tools = linux.root().parent().unwrap().join("tools");
        linux
            .with_child_program(env!("CARGO_BIN_EXE_volumed").into())
            .with_tools_in(vec![tools, "/usr/bin".into()])
    });
    std::fs::create_dir(tools(&world)).unwrap();
    nfs::write_helper(&tools(&world).join("mount.nfs"));
    world.directory("pods/x");
    world
}

fn export(world: &World) -> PathBuf {
    let path = world.top.path().join("export");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("file"), "content").unwrap();
    path
}

fn mount(server: &str, path: &Path) -> NfsMount {
    NfsMount {
        server: server.to_owned(),
        path: path.to_str().unwrap().to_owned(),
        target: at("pods/x"),
        read_only: false,
        options: vec!["soft".to_owned()],
    }
}

fn mounted(world: &World) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(&world.root)).map(str::to_owned).collect()
}

fn cause(refused: Result<(), HostError>) -> (NfsCause, String) {
    match refused {
        Err(HostError::Nfs(error)) => (error.cause, error.said.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_export_is_shown_alone_and_read_only_where_that_is_wanted() {
    isolated("an_export_is_shown_alone_and_read_only_where_that_is_wanted", async {
        let world = new_world();
        let path = export(&world);
        let other = world.tmpfs("pods/other");
        for read_only in [false, true] {
            world.linux.mount_nfs(NfsMount { read_only, ..mount("nas", &path) }).await.unwrap();
            let target = world.root.join("pods/x");
            assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "content");
            assert_eq!(std::fs::write(target.join("new"), "").is_err(), read_only);
            assert_eq!(mounted(&world), [other.to_str().unwrap(), target.to_str().unwrap()]);
            nix::mount::umount(&target).unwrap();
        }
        let ways = ["soft,retry=0", "ro,soft,retry=0"];
        let target = world.root.join("pods/x");
        let expected =
            ways.map(|options| format!("nas:{} {} -n -o {options}", path.display(), target.display()));
        assert_eq!(nfs::calls(&path), expected);
    });
}

#[test]
fn a_helper_that_hangs_is_given_up_with_all_that_it_began() {
    isolated("a_helper_that_hangs_is_given_up_with_all_that_it_began", async {
        let world = new_world();
        let path = export(&world);
        // A volume whose mount the helper's namespace has no copy of: it can be unmounted meanwhile.
        let other = world.tmpfs("pods/other");
        std::fs::write(other.join("file"), "").unwrap();
        let linux = &world.linux;
        let begun = eventually("the helper's start", || nfs::process(&path).is_some());
        let (refused, ()) = tokio::join!(linux.mount_nfs(mount("hangs", &path)), async {
            begun.await;
            let helper = nfs::process(&path).unwrap();
            let table = std::fs::read_to_string(format!("/proc/{helper}/mountinfo")).unwrap();
            assert!(!table.contains("pods/other"), "{table}");
            // Its deadline comes at once.
            tokio::time::pause();
        });
        let (cause, said) = cause(refused);
        assert_eq!((cause, said.as_str()), (NfsCause::Late, "no answer within 60 s"));
        let helper = nfs::process(&path).unwrap();
        eventually("the helper's end", || {
            isolated::states(helper.unsigned_abs()).iter().all(|s| "ZX".contains(*s))
        })
        .await;
        assert_eq!(mounted(&world), [other.to_str().unwrap()]);
        tokio::time::resume();
        world.linux.mount_nfs(mount("nas", &path)).await.unwrap();
    });
}

#[test]
fn what_the_helper_did_not_do_is_told() {
    isolated("what_the_helper_did_not_do_is_told", async {
        let world = new_world();
        let path = export(&world);
        assert_eq!(cause(world.linux.mount_nfs(mount("denied", &path)).await).0, NfsCause::Denied);
        let (cause_of_liar, said) = cause(world.linux.mount_nfs(mount("liar", &path)).await);
        assert_eq!(cause_of_liar, NfsCause::Other);
        assert!(said.contains("mounted nothing"), "{said}");
        std::fs::remove_file(tools(&world).join("mount.nfs")).unwrap();
        assert_eq!(cause(world.linux.mount_nfs(mount("nas", &path)).await).0, NfsCause::NoHelper);
        assert!(mounted(&world).is_empty());
    });
}

#[test]
fn nothing_is_mounted_over_a_mount_or_over_files() {
    isolated("nothing_is_mounted_over_a_mount_or_over_files", async {
        let world = new_world();
        let path = export(&world);
        let file = world.root.join("pods/x/file");
        std::fs::write(&file, "somebody's").unwrap();
        let refused = world.linux.mount_nfs(mount("nas", &path)).await;
        assert!(matches!(refused, Err(HostError::NotEmpty { .. })), "{refused:?}");
        std::fs::remove_file(&file).unwrap();
        world.tmpfs("pods/x");
        let refused = world.linux.mount_nfs(mount("nas", &path)).await;
        assert!(matches!(refused, Err(HostError::WrongMount { .. })), "{refused:?}");
        assert_eq!(mounted(&world).len(), 1);
        assert!(nfs::calls(&path).is_empty(), "the server was asked");
    });
}
