//! The wire to the agent in the machine (`guest/agent.sh`): scripts in, their status and output out.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// What a script came to.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    /// Both of its outputs.
    pub output: String,
}

#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    read: Vec<u8>,
    number: u64,
}

impl Wire {
    /// `seed`: where the numbers of the scripts begin, so that a resumed machine's earlier answers are not taken for ours.
    pub fn new(stream: UnixStream, seed: u64) -> Self {
        Self { stream, read: Vec::new(), number: seed }
    }

    /// Waits until the agent has begun.
    ///
    /// # Errors
    ///
    /// It did not begin in time, or the machine is off.
    pub fn ready(&mut self, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        while self.line(deadline)? != "@@ready" {}
        Ok(())
    }

    /// Runs a script with bash.
    ///
    /// # Errors
    ///
    /// It did not end in time, or the machine is off. The script may still run.
    pub fn run(&mut self, script: &str, patience: Duration) -> Result<Ran, String> {
        let deadline = Instant::now() + patience;
        self.number += 1;
        let line = format!("{} {}\n", self.number, BASE64.encode(script));
        self.stream.write_all(line.as_bytes()).map_err(|error| format!("the wire: {error}"))?;
        let head = format!("@@{} ", self.number);
        loop {
            let line = self.line(deadline)?;
            // What the terminal has of an earlier answer may stand before it.
            let Some(answer) = line.split_once(&head).map(|(_, answer)| answer) else { continue };
            let (status, output) = answer.split_once(' ').unwrap_or((answer, ""));
            let output = BASE64.decode(output).map_err(|error| format!("the answer {line}: {error}"))?;
            return Ok(Ran {
                status: status.parse().map_err(|error| format!("the answer {line}: {error}"))?,
                output: String::from_utf8_lossy(&output).into_owned(),
            });
        }
    }

    fn line(&mut self, deadline: Instant) -> Result<String, String> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("no answer in time".to_owned());
            }
            self.stream.set_read_timeout(Some(left)).map_err(|error| format!("the wire: {error}"))?;
            let mut some = [0; 16384];
            match self.stream.read(&mut some) {
                Ok(0) => return Err("the machine is off".to_owned()),
                Ok(count) => self.read.extend_from_slice(&some[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(format!("the wire: {error}")),
            }
        }
    }
}
