//! The two programs as an operator meets them.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test starts the programs and may panic"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn volumed() -> Command {
    Command::new(env!("CARGO_BIN_EXE_volumed"))
}

fn volumectl() -> Command {
    Command::new(env!("CARGO_BIN_EXE_volumectl"))
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn check_config_says_file_line_column_key_and_remedy_and_ends_in_ex_config() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("volumed.toml");
    fs::write(&file, "# ok\nremoval-grace = \"soon\"\n").unwrap();
    let (code, _, stderr) = run(volumed().arg("--check-config").arg("--config").arg(&file));
    assert_eq!(code, Some(78), "{stderr}");
    assert!(stderr.contains(&format!("{}:2:17: removal-grace: ", file.display())), "{stderr}");
    assert!(stderr.contains("give a time span"), "{stderr}");
}

#[test]
fn check_config_is_silent_about_what_is_right() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("volumed.toml");
    fs::write(&file, "removal-grace = \"2s\"\n[drivers.\"a.b\"]\nendpoint = \"/run/a.sock\"\n").unwrap();
    let checked = run(volumed().arg("--check-config").arg("--config").arg(&file));
    assert_eq!(checked, (Some(0), String::new(), String::new()));
}

#[test]
fn a_wrong_flag_is_misuse() {
    let (code, _, stderr) = run(volumed().arg("--rootdir=/x"));
    assert_eq!(code, Some(64), "{stderr}");
    let (code, _, stderr) = run(volumectl().arg("lst"));
    assert_eq!(code, Some(1), "{stderr}");
}

#[test]
fn help_names_the_flags_the_commands_and_the_exit_codes() {
    let (code, stdout, _) = run(volumed().arg("--help"));
    assert_eq!(code, Some(0));
    for flag in ["--config", "--manifest-dir", "--root-dir", "--state-dir", "--socket", "--node-name"] {
        assert!(stdout.contains(flag), "{flag}");
    }
    let (code, stdout, _) = run(volumectl().arg("--help"));
    assert_eq!(code, Some(0));
    let looks = ["list", "status", "explain", "wait", "drivers", "foreign"];
    let changes = ["retry", "approve", "pause", "resume", "adopt", "release"];
    for word in looks.iter().chain(&changes).chain(&["--socket", "124"]) {
        assert!(stdout.contains(word), "{word}");
    }
}

#[test]
fn what_changes_something_needs_a_name_or_all_and_a_name_that_can_be() {
    for (arguments, told) in [
        (&["pause"][..], "--all"),
        (&["resume"], "--all"),
        (&["pause", "--all", "data"], "cannot be used with"),
        (&["pause", "driver/no name"], "names no driver"),
        (&["resume", "a/b/c"], "a driver is named driver/NAME"),
        (&["release"], "OBJECT|PATH"),
        (&["release", "--force"], "OBJECT|PATH"),
        (&["release", "--force", "--all"], "--all"),
        (&["release", "/r/../x"], "give the path without"),
        (&["release", "a/b/c"], "a path begins with /"),
        (&["adopt"], "<PATH>"),
        (&["list", "-o", "toml"], "yaml"),
    ] {
        // Before anybody is asked: nobody listens here.
        let (code, _, stderr) = run(volumectl().args(["--socket", "/nonexistent/s"]).args(arguments));
        assert_eq!(code, Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains(told), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("systemctl"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn without_a_daemon_volumectl_says_where_to_look() {
    let (code, _, stderr) = run(volumectl().args(["--socket", "/nonexistent/s", "list"]));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("systemctl status volumed"), "{stderr}");
}

#[test]
fn another_user_is_refused_although_the_socket_lets_it_in() {
    if !Path::new("/usr/bin/setpriv").is_file() || !volumed::host::is_root() {
        println!("NOT-RUN: another_user_is_refused_although_the_socket_lets_it_in: needs root and setpriv");
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The build directory may be closed to others.
    let program = directory.path().join("volumectl");
    // By another process: a descriptor of ours that can write to it could still be open in what another test starts.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_volumectl")).arg(&program).status().unwrap();
    assert!(copied.success(), "{copied}");
    let socket = directory.path().join("s");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(async { tokio::net::UnixListener::bind(&socket) }).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let policy = |group| volumed::control::peer::Policy { group, is_member: |_, _| false };
    let (policies, policy_now) = tokio::sync::watch::channel(policy(None));
    let (_status, status) = tokio::sync::watch::channel(volumed::model::Status::default());
    let server = volumed::control::server::Server {
        status,
        health: tokio::sync::watch::channel(std::sync::Arc::default()).1,
        requests: tokio::sync::mpsc::channel(1).0,
        policy: policy_now,
        node: "n1".to_owned(),
        ambient: std::sync::Arc::new(volumed::model::Ambient::new(1, || 0)),
        stop: tokio_util::sync::CancellationToken::new(),
    };
    runtime.spawn(server.serve(listener));

    let ask = |what: &[&str]| {
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        run(command.arg("--socket").arg(&socket).args(what))
    };
    let (code, _, stderr) = ask(&["list"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("uid 65534 may not read the status"), "{stderr}");
    // In the group it may look, and still not change anything.
    policies.send_replace(policy(Some(65534)));
    let (code, stdout, stderr) = ask(&["list"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("DESIRED"), "{stdout}");
    let (code, stdout, stderr) = ask(&["foreign", "-o", "yaml"]);
    assert_eq!((code, stdout.as_str()), (Some(0), "[]\n"), "{stderr}");
    let (code, stdout, stderr) = ask(&[]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("Manifests: not ready"), "{stdout}");
    for change in [
        &["approve"][..],
        &["retry"],
        &["pause", "--all"],
        &["resume", "--all"],
        &["adopt", "/r/x"],
        &["release", "pod/web", "--force"],
    ] {
        let (code, _, stderr) = ask(change);
        assert_eq!(code, Some(1), "{change:?}: {stderr}");
        assert!(stderr.contains("uid 65534 may not do this"), "{change:?}: {stderr}");
    }
}
