//! File systems that hang or died, asked by the real child process; and the child itself. Needs root.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

mod isolated;

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use volumed::host::{Host, HostError};

use isolated::{World, children, eventually, isolated};

/// As long as a file system has for its answer, and the machine some time for all else.
const ONE_ANSWER: Duration = Duration::from_secs(9);

const PROGRAM: &str = env!("CARGO_BIN_EXE_volumed");

#[test]
fn usage_has_every_path_and_what_hangs_costs_its_own_answer_only() {
    isolated("usage_has_every_path_and_what_hangs_costs_its_own_answer_only", async {
        let world = World::new();
        let full = world.tmpfs("pods/full");
        std::fs::write(full.join("file"), vec![0; 1 << 20]).unwrap();
        let missing = world.root.join("pods/missing");
        // More of them than threads at first, and all before the healthy ones.
        let hung: Vec<_> = (0..40).map(|n| world.fuse(&format!("pods/hung{n}"))).collect();
        let mut paths: Vec<PathBuf> = hung.iter().map(|(point, _)| point.clone()).collect();
        paths.extend([full.clone(), missing.clone(), full.join("file")]);
        let began = Instant::now();
        let usage = world.linux.usage(paths.clone()).await.unwrap();
        assert!(began.elapsed() < ONE_ANSWER, "{:?}", began.elapsed());
        assert_eq!(usage.len(), paths.len());
        let expected = nix::sys::statvfs::statvfs(&full).unwrap();
        let size = expected.fragment_size();
        for path in [&full, &full.join("file")] {
            let found = usage[path].clone().unwrap();
            assert_eq!(found.total_bytes, expected.blocks() * size);
            assert_eq!(found.available_bytes, expected.blocks_available() * size);
            assert_eq!(found.used_bytes, 1 << 20);
            assert_eq!(found.total_inodes, expected.files());
            assert_eq!(found.free_inodes, expected.files_free());
        }
        let why = usage[&missing].clone().unwrap_err().to_string();
        assert!(why.contains("No such file"), "{why}");
        for (point, _) in &hung {
            let why = usage[point].clone().unwrap_err().to_string();
            assert!(why.contains("did not answer within 5 s"), "{why}");
        }
        eventually("the child's end", || children().is_empty()).await;
    });
}

#[test]
fn a_fuse_server_that_ended_is_dead_and_one_that_hangs_is_not() {
    isolated("a_fuse_server_that_ended_is_dead_and_one_that_hangs_is_not", async {
        let world = World::new();
        let (dead, server) = world.fuse("pods/dead");
        drop(server);
        let (hung, _server) = world.fuse("pods/hung");
        let well = world.tmpfs("pods/well");
        let missing = world.root.join("pods/missing");
        let link = world.root.join("pods/link");
        symlink(&dead, &link).unwrap();
        let began = Instant::now();
        let found =
            world.linux.dead_mounts(vec![hung, dead.clone(), well.clone(), missing, link]).await.unwrap();
        assert!(began.elapsed() < ONE_ANSWER, "{:?}", began.elapsed());
        assert_eq!(found.keys().collect::<Vec<_>>(), [&dead]);
        assert!(found[&dead].contains("Transport endpoint is not connected"), "{found:?}");
        let began = Instant::now();
        assert!(world.linux.dead_mounts(vec![well]).await.unwrap().is_empty());
        assert!(began.elapsed() < Duration::from_secs(4), "waited for nothing: {:?}", began.elapsed());
    });
}

#[test]
fn nobody_is_asked_by_a_child_when_there_is_no_question() {
    isolated("nobody_is_asked_by_a_child_when_there_is_no_question", async {
        let world = World::new();
        let linux =
            volumed::host::Linux::open(&world.root).unwrap().with_child_program("/nonexistent".into());
        assert!(linux.usage(Vec::new()).await.unwrap().is_empty());
        assert!(linux.dead_mounts(Vec::new()).await.unwrap().is_empty());
        let error = linux.usage(vec![world.root.clone()]).await.unwrap_err();
        assert!(
            matches!(&error, HostError::Io { path, .. } if path == Path::new("/nonexistent")),
            "{error:?}"
        );
    });
}

#[test]
fn a_child_holds_nothing_that_volumed_was_started_with() {
    isolated("a_child_holds_nothing_that_volumed_was_started_with", async {
        let world = World::new();
        // As a socket unit's listener: open, and not close-on-exec.
        let file = std::fs::File::open("/dev/null").unwrap();
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let (hung, _server) = world.fuse("pods/hung");
        let named = || children().into_iter().find(|(_, name)| name == "volumed-child");
        tokio::select! {
            done = world.linux.dead_mounts(vec![hung]) => assert!(done.is_err(), "{done:?} before it was looked at"),
            () = eventually("a child", || named().is_some()) => {}
        }
        // Killed when the future was dropped, but it may still be there: look at one that is let live.
        eventually("its end", || children().is_empty()).await;
        let mut inherits = Command::new(PROGRAM)
            .args(["--internal-child", &std::process::id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the child", || named().is_some()).await;
        let open: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", inherits.id()))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        inherits.kill().unwrap();
        inherits.wait().unwrap();
        let expected = ["0", "1", "2"];
        assert!(file.as_raw_fd() > 2);
        assert!(open.iter().all(|fd| expected.contains(&fd.as_str())), "{open:?}");
    });
}

#[test]
fn a_child_dies_with_its_parent() {
    isolated("a_child_dies_with_its_parent", async {
        let top = tempfile::tempdir().unwrap();
        let pipe = top.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Held open, so that the child waits for its request and finds no end of it.
        let _request = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
        let mut parent = Command::new("sh")
            .args(["-c", "\"$1\" --internal-child $$ < \"$2\" & echo $!; wait", "sh", PROGRAM])
            .arg(&pipe)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pid = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        let status = PathBuf::from(format!("/proc/{}/status", pid.trim()));
        let status = || std::fs::read_to_string(&status).unwrap_or_default();
        eventually("a child that listens", || status().contains("Name:\tvolumed-child")).await;
        parent.kill().unwrap();
        parent.wait().unwrap();
        eventually("its end", || status().is_empty() || status().contains("State:\tZ")).await;
    });
}

#[test]
fn a_child_of_nobody_ends_at_once() {
    let output = |arguments: &[&str]| {
        let output = Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for argument in ["--internal-child", "--internal-unmounter"] {
        for arguments in [&[argument][..], &[argument, "1"], &[argument, "x"]] {
            let text = output(arguments);
            assert!(text.contains("only volumed itself"), "{text}");
        }
    }
}
