//! Nothing is taken from who still has it (design rule 4).

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

mod drift;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use drift::{assert_released, block_paths, count, methods, staging, text, two_readings, until_blocked};
use support::objects::{block, device_user};
use support::seen::{explanation, records};
use support::{Process, TestHost, claim, pod_using, pod_with_claim, until};

const UP: [&str; 2] = ["NodeStageVolume", "NodePublishVolume"];
const DOWN: [&str; 2] = ["NodeUnpublishVolume", "NodeUnstageVolume"];

/// Starts a process that has something, and waits until it has it.
fn holder(host: &TestHost, command: &[&str], has: impl Fn(u32) -> bool) -> Process {
    let (program, arguments) = command.split_first().expect("a program");
    let mut process = Command::new(program);
    process.args(arguments);
    let process = host.spawn(process, "holder.log");
    until("the holder has it", || has(process.pid()));
    process
}

/// Brings a pod with a volume up, and returns a file in it.
fn pod_with_a_file(host: &TestHost) -> PathBuf {
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let file = staging(host).join("file");
    fs::write(&file, "data").expect("the volume can be written");
    file
}

/// Whether a process has a path, or a device of this name, open.
fn has_open(pid: u32, path: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|found| found == path)
}

/// The staging of a pod that is gone waits for a process, which is named.
fn assert_unstage_waits(host: &TestHost, holder: &Process, words: &[&str]) {
    let detail = until_said(host, "pid ");
    for word in words.iter().copied().chain([&*format!("pid {}", holder.pid())]) {
        assert!(detail.contains(word), "{word:?} is not said: {detail}");
    }
    two_readings(host);
    assert_eq!(methods(host), [UP[0], UP[1], DOWN[0]], "it is not unstaged\n{}", host.explain());
    assert!(host.mounts().contains(&staging(host)));
}

/// Waits until volumectl says something of the volumes, and returns all that it says.
fn until_said(host: &TestHost, words: &str) -> String {
    let said = || String::from_utf8_lossy(&host.volumectl(&["list", "-o", "json"]).stdout).into_owned();
    until(&format!("{words:?} is said\n{}", host.logs()), || said().contains(words));
    said()
}

#[test]
fn a_private_copy_in_another_mount_namespace_keeps_the_staging() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let staged = staging(&host);
    let ours = fs::read_link("/proc/self/ns/mnt").expect("a namespace");
    let copied = |pid: u32| {
        let running =
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep");
        running && fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|theirs| theirs != ours)
    };
    let command = ["unshare", "--mount", "--propagation", "private", "--", "sleep", "600"];
    let holder = holder(&host, &command, copied);
    host.remove_manifest("web.yaml");
    assert_unstage_waits(&host, &holder, &["sleep", "another mount namespace", text(&staged)]);
    holder.kill();
    assert_released(&host);
    assert_eq!(methods(&host)[2..], DOWN);
}

#[test]
fn an_open_file_of_a_volume_s_own_file_system_keeps_the_staging() {
    for file_system in ["tmpfs", "ext4"] {
        let host = TestHost::new();
        let _driver = host.fakecsi(&["--file-system", file_system]);
        let daemon = host.volumed(&[]);
        let file = pod_with_a_file(&host);
        let holder = holder(&host, &["tail", "-f", text(&file)], |pid| has_open(pid, &file));
        host.remove_manifest("web.yaml");
        assert_unstage_waits(&host, &holder, &["tail", text(&file)]);
        // A restart forgets nothing of it.
        daemon.kill();
        let _daemon = host.volumed(&[]);
        assert_unstage_waits(&host, &holder, &["tail", text(&file)]);
        holder.kill();
        assert_released(&host);
        assert_eq!(methods(&host)[2..], DOWN, "{file_system}");
    }
}

#[test]
fn a_holder_whose_name_is_no_text_is_named() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--file-system", "tmpfs"]);
    let _daemon = host.volumed(&[]);
    let file = pod_with_a_file(&host);
    let named = host.path("named");
    // Nobody writes to the pipe, so it reads for good; the other descriptor is the volume's.
    let script =
        "printf 'a\\377z' > /proc/$$/comm && mkfifo \"$1\" && exec 3< \"$0\" 4<> \"$1\" && read -r line <&4";
    let holder = holder(&host, &["sh", "-c", script, text(&file), text(&named)], |pid| {
        fs::read(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == b"a\xffz\n") && has_open(pid, &file)
    });
    host.remove_manifest("web.yaml");
    assert_unstage_waits(&host, &holder, &["a\u{fffd}z", text(&file)]);
    holder.kill();
    assert_released(&host);
}

/// A process's files are shown no more before they are closed; tail's inotify makes that take some milliseconds.
#[test]
fn who_is_about_to_end_keeps_the_staging_until_then() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--file-system", "tmpfs"]);
    let _daemon = host.volumed(&[]);
    for round in 1..=5 {
        let file = pod_with_a_file(&host);
        let holder = holder(&host, &["tail", "-f", text(&file)], |pid| has_open(pid, &file));
        host.remove_manifest("web.yaml");
        until_said(&host, "pid ");
        holder.signal("-KILL");
        // Each makes volumed look again.
        until("it is released", || {
            host.volumectl(&["retry", "pod/web"]);
            records(&host).is_empty()
        });
        assert_eq!(count(&host, "NodeUnstageVolume"), round, "the driver is asked once, when nobody has it");
    }
}

#[test]
fn who_begins_to_use_a_volume_again_is_asked_anew() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--file-system", "tmpfs"]);
    let daemon = host.volumed(&[]);
    let file = pod_with_a_file(&host);
    let first = holder(&host, &["tail", "-f", text(&file)], |pid| has_open(pid, &file));
    host.remove_manifest("web.yaml");
    assert_unstage_waits(&host, &first, &["tail"]);
    let second = holder(&host, &["tail", "-f", text(&file)], |pid| has_open(pid, &file));
    first.kill();
    daemon.kill();
    let _daemon = host.volumed(&[]);
    assert_unstage_waits(&host, &second, &["tail"]);
    // Wanted again, it comes up with what it has.
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    assert_eq!(methods(&host), [UP[0], UP[1], DOWN[0], UP[1]]);
    assert_eq!(fs::read_to_string(host.target("uid-web", "data").join("file")).expect("a file"), "data");
}

#[test]
fn a_process_that_has_the_device_open_keeps_it() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest(
        "db.yaml",
        &format!("{}---\n{}", block(&claim("data")), device_user(&pod_using("db", "uid-db", "data"))),
    );
    host.wait(&["pod/db"]);
    let paths = block_paths(&host, "uid-db", "data");
    let command = ["sh", "-c", "exec sleep 600 < \"$0\"", text(&paths.link)];
    let holder = holder(&host, &command, |pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
    });
    host.remove_manifest("db.yaml");
    let detail = until_blocked(&host, "db", "in-use");
    assert!(detail.contains("sleep") && detail.contains(&holder.pid().to_string()), "{detail}");
    assert!(explanation(&host, "db").contains("sleep"), "{}", explanation(&host, "db"));
    two_readings(&host);
    assert_eq!(count(&host, "NodeUnpublishVolume"), 0, "the driver is not asked");
    assert!(fs::metadata(&paths.link).is_ok(), "the device stays");
    holder.kill();
    host.wait(&["--for=released", "pod/db"]);
    assert_released(&host);
}

#[test]
fn an_operator_can_take_a_volume_from_who_has_it() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let forced = host.volumectl(&["release", "--force", "pod/web"]);
    assert!(!forced.status.success(), "what is wanted is not released: {forced:?}");
    let ours = fs::read_link("/proc/self/ns/mnt").expect("a namespace");
    let command = ["unshare", "--mount", "--propagation", "private", "--", "sleep", "600"];
    let mut holder = holder(&host, &command, |pid| {
        let running =
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep");
        running && fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|theirs| theirs != ours)
    });
    host.remove_manifest("web.yaml");
    assert_unstage_waits(&host, &holder, &["sleep"]);
    let unforced = host.volumectl(&["release", "pod/web"]);
    two_readings(&host);
    assert_eq!(count(&host, "NodeUnstageVolume"), 0, "without force it waits: {unforced:?}");
    let forced = host.volumectl(&["release", "--force", "pod/web"]);
    assert!(forced.status.success(), "{forced:?}\n{}", host.explain());
    assert_released(&host);
    assert!(holder.is_running(), "nobody is killed for it");
    assert!(daemon.pid() > 0);
}

#[test]
fn an_operator_can_take_a_device_from_who_has_it() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest(
        "db.yaml",
        &format!("{}---\n{}", block(&claim("data")), device_user(&pod_using("db", "uid-db", "data"))),
    );
    host.wait(&["pod/db"]);
    // By a path that is not the pod's: what is open through the driver's own mount no umount takes away.
    let device = support::loop_devices(&host.path("driver")).pop().expect("the driver's device");
    let command = ["sh", "-c", "exec sleep 600 < \"$0\"", text(&device)];
    let mut holder = holder(&host, &command, |pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
    });
    host.remove_manifest("db.yaml");
    until_blocked(&host, "db", "in-use");
    let forced = host.volumectl(&["release", "--force", "pod/db"]);
    assert!(forced.status.success(), "{forced:?}\n{}", host.explain());
    host.wait(&["--for=released", "pod/db"]);
    until("the record is gone", || records(&host).is_empty());
    assert!(holder.is_running(), "nobody is killed for it");
    // The driver's loop device goes with the last who has it open.
    holder.kill();
    until("the device is gone", || support::loop_devices(&host.path("")).is_empty());
    assert_released(&host);
}

/// A control group with a unit's name, where systemd would make it; gone when dropped.
struct Unit {
    name: String,
    directory: PathBuf,
}

impl Unit {
    /// Says NOT-RUN where nobody can make control groups.
    fn new(test: &str) -> Option<Self> {
        let Some(hierarchy) = control_groups() else {
            println!("NOT-RUN: {test}: no hierarchy of control groups is mounted");
            return None;
        };
        let name = format!("volumed-test-{}.service", std::process::id());
        let directory = hierarchy.join(&name);
        if let Err(error) = fs::create_dir(&directory) {
            println!("NOT-RUN: {test}: {} cannot be made: {error}", directory.display());
            return None;
        }
        Some(Self { name, directory })
    }

    fn take_in(&self, process: &Process) {
        let members = self.directory.join("cgroup.procs");
        fs::write(&members, process.pid().to_string()).expect("a process can be put into the group");
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // Its processes are ended; they may still be on their way out.
        until("the control group is empty", || fs::remove_dir(&self.directory).is_ok());
    }
}

/// Where systemd's control groups are, or would be: its own hierarchy of version 1 or hybrid, else that of version 2.
fn control_groups() -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let of = |kind: &str| {
        let line = table
            .lines()
            .find(|line| line.rsplit_once(" - ").is_some_and(|(_, end)| is_hierarchy(end, kind)));
        line.and_then(|line| line.split(' ').nth(4)).map(PathBuf::from)
    };
    of("name=systemd").or_else(|| of("cgroup2"))
}

/// Whether the end of a line of the mount table, `TYPE SOURCE OPTIONS`, is of a hierarchy.
fn is_hierarchy(end: &str, kind: &str) -> bool {
    let words = end.split([' ', ',']);
    end.starts_with("cgroup") && words.into_iter().any(|word| word == kind)
}

#[test]
fn the_unit_of_who_has_a_volume_is_named() {
    let Some(unit) = Unit::new("the_unit_of_who_has_a_volume_is_named") else { return };
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--file-system", "tmpfs"]);
    let _daemon = host.volumed(&[]);
    let file = pod_with_a_file(&host);
    let holder = holder(&host, &["tail", "-f", text(&file)], |pid| has_open(pid, &file));
    unit.take_in(&holder);
    host.remove_manifest("web.yaml");
    assert_unstage_waits(&host, &holder, &["tail", &unit.name, text(&file)]);
    for command in [&["list"][..], &["status", "pod/web"], &["explain", "pod/web"]] {
        let shown = String::from_utf8_lossy(&host.volumectl(command).stdout).into_owned();
        let who = format!("pid {} (tail, {})", holder.pid(), unit.name);
        assert!(shown.contains(&who), "volumectl {command:?} does not name {who}:\n{shown}");
    }
    holder.kill();
    assert_released(&host);
}
