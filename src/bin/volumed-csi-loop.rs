//! The bundled CSI driver: arguments -> configuration -> one call.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use volumed::loop_driver::{self, Config, Ending, Flags};
use volumed::telemetry;

/// A CSI driver whose volumes are image files in a directory of this host.
#[derive(Debug, Parser)]
#[command(name = "volumed-csi-loop", version, after_help = EXIT_CODES)]
struct Arguments {
    /// The configuration; each flag below beats its key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The driver's name; instances on one host need different ones.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The directory of the images; nothing else may be in it.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The driver's socket, with or without unix://
    #[arg(long, value_name = "SOCKET")]
    endpoint: Option<String>,
    /// This node's id; the host's name without it.
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// A kubelet's plugins_registry, to register itself there; without it the driver does not.
    #[arg(long, value_name = "DIR")]
    plugins_registry: Option<PathBuf>,
}

const EXIT_CODES: &str = "\
Exit codes: 0 stopped as told (mounts stay); 1 cannot run here; 64 wrong arguments; 78 wrong configuration; \
101 a call broke and the driver has to be started again.";

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
            return ExitCode::from(if asked_or_wrong.use_stderr() { USAGE } else { 0 });
        }
    };
    let flags = Flags {
        name: arguments.name,
        dir: arguments.dir,
        endpoint: arguments.endpoint,
        node_id: arguments.node_id,
        plugins_registry: arguments.plugins_registry,
    };
    let config = match Config::load(arguments.config.as_deref(), flags) {
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

fn run(config: &Config) -> anyhow::Result<Ending> {
    telemetry::start(tracing::level_filters::LevelFilter::INFO).context("cannot begin to log")?;
    Ok(loop_driver::run(config)?)
}
