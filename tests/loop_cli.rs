//! volumed-csi-loop's commands as an operator meets them where no driver is asked.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test starts the program and may panic"
)]

use std::process::{Command, Output};

/// Runs the program; returns its exit code and what it printed.
fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_volumed-csi-loop"));
    let Output { status, stdout, stderr } = command.args(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn what_cannot_be_asked_is_said_before_anybody_is_asked() {
    for (arguments, told) in [
        (&["volume", "create", "data"][..], "--size"),
        (&["volume", "create", "Data", "--size", "1Gi"], "lower-case letters"),
        (&["volume", "create", "csi-data", "--size", "1Gi"], "the driver's own"),
        (&["volume", "create", "data", "--size", "1gb"], "give a size such as 1Gi"),
        (&["volume", "create", "data", "--size", "0"], "at least one byte"),
        (&["volume", "create", "data", "--size", "1Gi", "--fs", "ntfs"], "ext4, xfs, btrfs"),
        (&["volume", "create", "data", "--size", "1Gi", "--fs", "xfs", "--block"], "cannot be used with"),
        (&["volume", "create", "data", "--from-volume", "a", "--from-snapshot", "b"], "cannot be used with"),
        (&["volume", "create", "data", "--size", "1Gi", "-o", "table"], "yaml, json, name"),
        (&["volume", "resize", "data"], "--size"),
        (&["volume", "snapshot", "data"], "<NAME>"),
        (&["volume", "delete"], "<VOLUME>"),
        (&["volume", "lst"], "list"),
        (&["volume", "list", "-o", "wide"], "table, name, json, yaml"),
        (&["snapshot", "delete"], "<SNAPSHOT>"),
    ] {
        let (code, stdout, stderr) = run(&[arguments, &["--driver-socket", "/nonexistent/s"]].concat());
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(told), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("systemctl"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn misuse_of_the_driver_itself_is_ex_usage() {
    for arguments in [&["--directory", "/x"][..], &["--dir", "/x", "volume", "list"], &["volumes"]] {
        let (code, _, stderr) = run(arguments);
        assert_eq!(code, Some(64), "{arguments:?}: {stderr}");
    }
}

#[test]
fn without_a_driver_it_says_where_it_looked_and_what_helps() {
    let size = ["--size", "1Gi"];
    for arguments in
        [&["volume", "list"][..], &["snapshot", "list"], &[&["volume", "create", "data"][..], &size].concat()]
    {
        let (code, stdout, stderr) =
            run(&[arguments, &["--driver-socket", "unix:///nonexistent/s"]].concat());
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        for told in ["/nonexistent/s", "systemctl start volumed-csi-loop", "--driver-socket", "No such file"]
        {
            assert!(stderr.contains(told), "{told}: {stderr}");
        }
    }
}

#[test]
fn help_names_the_commands_the_flags_and_the_exit_codes() {
    let (code, stdout, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for word in
        ["volume", "snapshot", "--dir", "--endpoint", "--plugins-registry", "64", "78", "101", " 3 unknown"]
    {
        assert!(stdout.contains(word), "{word}: {stdout}");
    }
    let (code, stdout, _) = run(&["volume", "--help"]);
    assert_eq!(code, Some(0));
    for word in ["create", "list", "resize", "snapshot", "delete", "--driver-socket"] {
        assert!(stdout.contains(word), "{word}: {stdout}");
    }
}

#[test]
fn the_manual_page_has_every_command_and_flag_of_the_help() {
    let page = include_str!("../man/volumed-csi-loop.8").replace("\\-", "-");
    let mut words = vec!["volume".to_owned(), "snapshot".to_owned()];
    for command in [&[][..], &["volume"], &["snapshot"], &["volume", "create"], &["volume", "resize"]] {
        let (_, help, _) = run(&[command, &["--help"]].concat());
        let flags = help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
        words.extend(flags.map(|flag| flag.trim_end_matches(',').to_owned()));
        let commands =
            help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        words.extend(commands.filter_map(|line| line.split_whitespace().next()).map(str::to_owned));
    }
    words.retain(|word| !matches!(word.as_str(), "help" | "--help" | "--version"));
    for told in ["--from-snapshot", "--driver-socket", "resize", "--plugins-registry"] {
        assert!(words.iter().any(|word| word == told), "the help has no {told}: {words:?}");
    }
    for word in words {
        assert!(page.contains(&word), "the manual page has no {word}");
    }
}
