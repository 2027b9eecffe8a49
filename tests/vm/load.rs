//! Somebody who writes to a volume in the machine, and what is seen of its file system meanwhile.

use std::collections::BTreeMap;

use super::Machine;

/// Writes files of 256 KiB into a directory until it is told to end: each is made and summed up elsewhere, written and
/// synced, and only then entered in the list of sums. A full volume is no error: it is to be grown.
pub const WRITER: &str = r#"#!/bin/bash
set -euo pipefail
number=0
while [[ ! -e /run/stop ]]; do
  head --bytes=262144 /dev/urandom >/run/block
  sum=$(sha256sum </run/block)
  until dd if=/run/block of="$1/$number" bs=64k conv=fsync status=none 2>/run/refused; do
    grep -q 'No space left' /run/refused
    [[ ! -e /run/stop ]] || exit 0
  done
  echo "${sum%-}$1/$number" >>/run/sums
  number=$((number + 1))
done
"#;

/// How large the file system at a path is, in bytes.
pub fn total_of(machine: &mut Machine, path: &str) -> u64 {
    let text = machine.sh(&format!("echo $(($(stat -f -c '%b * %S' {path})))"));
    text.trim().parse().expect("a number")
}

/// A script that succeeds when the writer, who must still be there, has written and synced so many blocks.
pub fn has_written(blocks: u64) -> String {
    format!("systemctl is-active load; (($(wc -l </run/sums) >= {blocks}))")
}

/// What PID 1's mount table says of a path: a mount made again has another id. Without what the file system says of itself,
/// the line's end: an ext4 that grew may name one option more.
pub fn mount_of(machine: &mut Machine, path: &str) -> String {
    let table = machine.sh("cat /proc/1/mountinfo");
    let lines: BTreeMap<&str, &str> =
        table.lines().filter_map(|line| Some((line.split(' ').nth(4)?, line))).collect();
    let line = lines.get(path).expect("it is mounted");
    line.rsplit_once(' ').expect("a line has many words").0.to_owned()
}
