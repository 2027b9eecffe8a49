//! A process that has something of a test's, as long as the test wants.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "every test binary uses a part of it, and helper functions are not covered by the allow-in-tests settings"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A child process that said "ready" and ends with this value.
pub struct Holder(pub Child);

impl Holder {
    /// Runs a script, whose `$1` is the argument, and waits until it has got to its end; there it stays.
    pub fn start(script: &str, argument: &Path) -> Self {
        Self::run(&mut Command::new("sh"), script, argument)
    }

    /// The same in a mount namespace of its own, a copy of ours, which receives what is mounted in ours later where the
    /// propagation is `slave`, and does not where it is `private`.
    pub fn start_elsewhere(propagation: &str, script: &str, argument: &Path) -> Self {
        let mut unshare = Command::new("unshare");
        Self::run(unshare.args(["--mount", "--propagation", propagation, "sh"]), script, argument)
    }

    fn run(shell: &mut Command, script: &str, argument: &Path) -> Self {
        shell.args(["-c", &format!("set -e; {script}; echo ready; read -r _"), "sh"]).arg(argument);
        let mut holder = Self(shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(holder.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _told = self.0.stdin.take().map(|mut stdin| stdin.write_all(b"\n"));
        let _ended = self.0.wait();
    }
}
