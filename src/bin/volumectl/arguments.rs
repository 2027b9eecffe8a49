//! What can be asked of volumectl.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use volumed::control::names::{HandoverName, ObjectName, ScopeName};

/// Shows and steers the volumes of this host.
#[derive(Debug, Parser)]
#[command(name = "volumectl", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// volumed's control socket.
    #[arg(long, global = true, default_value = "/run/volumed/control.sock", value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// Without one: `status`.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

const EXIT_CODES: &str = "\
Objects are named pod/[NAMESPACE/]NAME and [pvc/][NAMESPACE/]NAME; without a namespace it is `default`. The pod of an adopted \
volume is foreign/UID.

Exit codes: 0 done or reached; 1 usage, or volumed does not answer or refuses; 2 `wait`: cannot be reached before a \
manifest is edited; 3 unknown object; 124 `wait`: timed out.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists all volumes: what is wanted, what is there, and why they differ.
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Shows everything about some objects, or the daemon's own state, manifest problems and foreign volumes.
    Status {
        /// None: the whole.
        #[arg(value_name = "OBJECT")]
        objects: Vec<ObjectName>,
        #[command(flatten)]
        output: Output,
    },
    /// Shows why an object is or is not published: the whole chain, the first failing link, the remedy.
    Explain {
        #[arg(required = true, value_name = "OBJECT")]
        objects: Vec<ObjectName>,
        #[command(flatten)]
        output: Output,
    },
    /// Waits until all objects are published, or released.
    Wait {
        #[arg(required = true, value_name = "OBJECT")]
        objects: Vec<ObjectName>,
        /// What to wait for. What nothing knows any more is released.
        #[arg(long = "for", value_enum, default_value = "published", value_name = "STATE")]
        goal: WaitFor,
        /// Give up after this time (`30s`, `2m`; a number is seconds). Without it there is no limit.
        #[arg(long, value_parser = timeout, value_name = "TIME")]
        timeout: Option<Duration>,
        #[command(flatten)]
        output: Output,
    },
    /// Lists the CSI drivers.
    Drivers {
        #[command(flatten)]
        output: Output,
    },
    /// Tries blocked steps again at once: of some objects, or all.
    Retry {
        #[arg(value_name = "OBJECT")]
        objects: Vec<ObjectName>,
        #[command(flatten)]
        output: Output,
    },
    /// Accepts the manifest directories as they are now, and lets the mass-delete brake go.
    Approve {
        #[command(flatten)]
        output: Output,
    },
    /// Lists foreign volumes: what lies on disk that volumed did not make, and leaves untouched.
    Foreign {
        #[command(flatten)]
        output: Output,
    },
    #[command(flatten)]
    Change(Change),
}

/// What leaves volumes alone, takes them over or lets them go.
#[derive(Debug, Subcommand)]
pub(crate) enum Change {
    /// Begins nothing more for some volumes, neither up nor down nor repairs, until `resume`; outlives a restart.
    Pause {
        #[command(flatten)]
        scope: Scopes,
        #[command(flatten)]
        output: Output,
    },
    /// Takes pauses back, named as they were paused.
    Resume {
        #[command(flatten)]
        scope: Scopes,
        #[command(flatten)]
        output: Output,
    },
    /// Makes a foreign volume volumed's own: it stays as it is until a manifest wants it, or `release`.
    Adopt {
        /// The volume's directory, as `foreign` lists it, or the path its driver was told.
        path: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Lets the disk that is there now be a volume's, in place of the recorded one. A blank one will be formatted.
    AcceptIdentity {
        /// A pod or a claim: its volumes on devices.
        #[arg(value_name = "OBJECT")]
        object: ObjectName,
        #[command(flatten)]
        output: Output,
    },
    /// Takes down what nobody wants and volumed keeps or leaves alone: a kept emptyDir, an adopted or a foreign volume.
    Release {
        /// A pod, a claim, or a path as for `adopt`.
        #[arg(value_name = "OBJECT|PATH")]
        what: HandoverName,
        /// Take down what is going although somebody still has it (see `explain`). Whoever has it gets errors and can lose data.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Scopes {
    /// Pods, claims, or driver/NAME.
    #[arg(value_name = "OBJECT|driver/NAME")]
    pub(crate) scopes: Vec<ScopeName>,
    /// Everything.
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Output {
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(crate) output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For people with room.
    Wide,
    /// Only names.
    Name,
    /// For programs.
    Json,
    /// The same as YAML.
    Yaml,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum WaitFor {
    Published,
    Released,
}

/// Takes `30s`, `2m`, `500ms`, or a number of seconds.
fn timeout(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let span: Result<jiff::SignedDuration, _> = text.parse();
    let span = span.ok().and_then(|span| Duration::try_from(span).ok());
    span.ok_or_else(|| "not a time span such as 30s or 2m".to_owned())
}
