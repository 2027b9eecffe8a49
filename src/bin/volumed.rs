//! The daemon: arguments -> configuration -> one call.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use tracing::level_filters::LevelFilter;

use volumed::config::{Config, Flags, LogLevel};
use volumed::daemon::{self, Ending, Options};
use volumed::telemetry;

/// Does on a plain systemd host what the kubelet's volume manager does: manifests in a directory become mounted volumes.
#[derive(Debug, Parser)]
#[command(name = "volumed", version, after_help = EXIT_CODES)]
struct Arguments {
    /// The configuration; each flag below beats its key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A directory of manifests; repeatable.
    #[arg(long, value_name = "DIR")]
    manifest_dir: Vec<PathBuf>,
    /// The kubelet's root directory.
    #[arg(long, value_name = "DIR")]
    root_dir: Option<PathBuf>,
    /// Where the records are kept.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The control socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// This node's name; the host's without it.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Only says what is wrong with the configuration and the flags.
    #[arg(long)]
    check_config: bool,
    /// For tests: run where mounts do not reach PID 1's mount namespace.
    #[arg(long)]
    allow_private_mounts: bool,
}

const EXIT_CODES: &str = "\
Exit codes: 0 stopped as told (mounts stay); 1 cannot run here; 64 wrong arguments; 78 wrong configuration; \
101 a task of the daemon broke and it has to be started again.";

/// EX_USAGE of sysexits.h.
const USAGE: u8 = 64;
/// EX_CONFIG of sysexits.h.
const CONFIG: u8 = 78;
/// What a panic ends in.
const BROKEN: u8 = 101;

fn main() -> ExitCode {
    // Before anything else: the daemon starts itself again for what may hang in the kernel.
    if let Some(ended) = daemon::as_child() {
        return ended;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(asked_or_wrong) => {
            let _printed = asked_or_wrong.print();
            return ExitCode::from(if asked_or_wrong.use_stderr() { USAGE } else { 0 });
        }
    };
    let flags = Flags {
        manifest_dir: arguments.manifest_dir,
        root_dir: arguments.root_dir,
        state_dir: arguments.state_dir,
        socket: arguments.socket,
        node_name: arguments.node_name,
    };
    let config = match Config::load(arguments.config.as_deref(), &flags) {
        Ok(config) => config,
        Err(error) => {
            complain(&error.into());
            return ExitCode::from(CONFIG);
        }
    };
    if arguments.check_config {
        return ExitCode::SUCCESS;
    }
    let options = Options {
        config_file: arguments.config,
        flags,
        allow_private_mounts: arguments.allow_private_mounts,
    };
    match run(&config, &options) {
        Ok(Ending::Stopped) => ExitCode::SUCCESS,
        Ok(Ending::Broken) => ExitCode::from(BROKEN),
        Err(error) => {
            // In the journal with its priority, or on stderr.
            tracing::error!("cannot start: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config, options: &Options) -> anyhow::Result<Ending> {
    let level = match config.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    telemetry::start(level).context("cannot begin to log")?;
    Ok(daemon::run(config, options)?)
}

fn complain(error: &anyhow::Error) {
    let _printed = writeln!(std::io::stderr(), "volumed: {error:#}");
}
