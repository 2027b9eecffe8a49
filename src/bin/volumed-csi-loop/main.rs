//! The bundled CSI driver: arguments -> configuration -> one call.

mod administration;
mod arguments;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

use arguments::Arguments;
use volumed::loop_driver::{self, Config, Ending};
use volumed::telemetry;

/// EX_USAGE of sysexits.h.
const USAGE: u8 = 64;
/// EX_CONFIG of sysexits.h.
const CONFIG: u8 = 78;
/// What a panic ends in.
const BROKEN: u8 = 101;

fn main() -> ExitCode {
    // Before anything else: the driver starts itself again for what may hang in the kernel.
    if let Some(ended) = loop_driver::as_child() {
        return ended;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(asked_or_wrong) => {
            let _printed = asked_or_wrong.print();
            return ExitCode::from(if asked_or_wrong.use_stderr() { misuse() } else { 0 });
        }
    };
    if let Some(command) = arguments.command {
        return administration::run(command);
    }
    let file = arguments.driver.config.clone();
    let config = match Config::load(file.as_deref(), arguments.driver.flags()) {
        Ok(config) => config,
        Err(error) => {
            let _printed = writeln!(std::io::stderr(), "volumed-csi-loop: {:#}", anyhow::Error::from(error));
            return ExitCode::from(CONFIG);
        }
    };
    match run(&config) {
        Ok(Ending::Stopped) => ExitCode::SUCCESS,
        Ok(Ending::Broken) => ExitCode::from(BROKEN),
        Err(error) => {
            tracing::error!("cannot start: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A daemon's misuse is told to systemd, a command's is volumectl's. Flags of the driver and commands exclude each other, so a
/// command comes first.
fn misuse() -> u8 {
    let first = std::env::args_os().nth(1);
    if first.is_some_and(|word| word == "volume" || word == "snapshot") { 1 } else { USAGE }
}

fn run(config: &Config) -> anyhow::Result<Ending> {
    telemetry::start(tracing::level_filters::LevelFilter::INFO).context("cannot begin to log")?;
    Ok(loop_driver::run(config)?)
}
