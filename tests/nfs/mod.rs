//! A mount.nfs of the tests' own: what it mounts is a directory of this host. The name of the server says how it behaves, and
//! beside the directory it notes how it was called.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::expect_used,
    reason = "every test binary uses a part of it, which may fail loudly"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// `mount.nfs SERVER:/PATH DIRECTORY -n -o OPTIONS`
const HELPER: &str = r#"#!/bin/bash
server=${1%:/*}
path=/${1#*:/}
echo "$*" >>"$path.log"
refuse() { echo "mount.nfs: $1" >&2; exit 32; }
case $server in
  unresolved) refuse "Failed to resolve server $server: Name or service not known" ;;
  refused) refuse "Connection refused" ;;
  timeout) refuse "Connection timed out for $1 on $2" ;;
  noexport) refuse "mounting $1 failed, reason given by server: No such file or directory" ;;
  denied) refuse "access denied by server while mounting $1" ;;
  old) refuse "Protocol not supported" ;;
  options) refuse "an incorrect mount option was specified for $2" ;;
  stale) refuse "Stale file handle" ;;
  odd) refuse "the moon is full" ;;
  liar) exit 0 ;;
  hangs) echo $$ >"$path.pid"; exec sleep 600 ;;
  silent)
    # A file system that never answers as long as somebody has its server's end.
    exec 3<>/dev/fuse
    mount --internal-only --types fuse --options fd=3,rootmode=40000,user_id=0,group_id=0 "$1" "$2" || exit 32
    setsid sleep 600 >/dev/null 2>&1 <&- &
    echo $! >"$path.pid"
    ;;
  *) mount --bind "$path" "$2" ;;
esac
"#;

/// Writes the helper.
pub fn write_helper(path: &Path) {
    fs::write(path, HELPER).expect("a program");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

/// Returns how the helper was called for a directory.
pub fn calls(path: &Path) -> Vec<String> {
    let log = fs::read_to_string(format!("{}.log", path.display())).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

/// Returns the process that the helper left or is.
pub fn process(path: &Path) -> Option<i32> {
    fs::read_to_string(format!("{}.pid", path.display())).ok()?.trim().parse().ok()
}
