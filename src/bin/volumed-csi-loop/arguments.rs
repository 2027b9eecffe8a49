//! What can be asked of volumed-csi-loop: to be the driver, or to look after the volumes of one that runs.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use volumed::loop_driver::{Flags, admin};

/// A CSI driver whose volumes are image files in a directory of this host.
#[derive(Debug, Parser)]
#[command(name = "volumed-csi-loop", version, after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) driver: Driver,
    /// Without one it is the driver itself.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

const EXIT_CODES: &str = "\
Exit codes of the driver: 0 stopped as told (mounts stay); 1 cannot run here; 64 wrong arguments; 78 wrong configuration; \
101 a call broke and the driver has to be started again.

Exit codes of volume and snapshot: 0 done; 1 usage, or the driver does not answer or refuses; 3 unknown volume or snapshot.";

#[derive(Debug, Args)]
pub(crate) struct Driver {
    /// The configuration; each flag below beats its key.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
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

impl Driver {
    /// Returns what beats the configuration file.
    pub(crate) fn flags(self) -> Flags {
        let Self { config: _, name, dir, endpoint, node_id, plugins_registry } = self;
        Flags { name, dir, endpoint, node_id, plugins_registry }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes, lists, grows, copies and deletes volumes of a running driver.
    Volume {
        #[command(flatten)]
        target: Target,
        #[command(subcommand)]
        command: Volume,
    },
    /// Lists and deletes snapshots of a running driver.
    Snapshot {
        #[command(flatten)]
        target: Target,
        #[command(subcommand)]
        command: Snapshot,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    /// The driver's socket, with or without unix://. Without it that of /etc/volumed/csi-loop.toml, or the default.
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) driver_socket: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Makes a volume and prints its PersistentVolume, to be put into the manifest directory. Given again, it prints it again.
    Create(Create),
    /// Lists the volumes.
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Makes a volume larger.
    Resize {
        #[arg(value_name = "VOLUME")]
        volume: String,
        /// The size it is to have at least: 2Gi, 500M.
        #[arg(long, value_parser = admin::size, value_name = "SIZE")]
        size: u64,
        #[command(flatten)]
        output: Output,
    },
    /// Takes a snapshot of a volume, which may be in use.
    Snapshot {
        #[arg(value_name = "VOLUME")]
        volume: String,
        /// The snapshot's name.
        #[arg(value_parser = admin::new_name, value_name = "NAME")]
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Deletes a volume that is not in use, and all that is in it.
    Delete {
        #[arg(value_name = "VOLUME")]
        volume: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The name of the volume and of its PersistentVolume.
    #[arg(value_parser = admin::new_name, value_name = "NAME")]
    pub(crate) name: String,
    /// Its size: 1Gi, 500M. A copy without it is as large as what it is made from.
    #[arg(long, value_parser = admin::size, value_name = "SIZE", required_unless_present = "source")]
    pub(crate) size: Option<u64>,
    /// Its file system; ext4 without it, a copy's is that of what it is made from.
    #[arg(long, value_parser = PossibleValuesParser::new(admin::file_systems()), value_name = "FSTYPE")]
    pub(crate) fs: Option<String>,
    /// A block device instead of a file system.
    #[arg(long, conflicts_with = "fs")]
    pub(crate) block: bool,
    /// Whether its room on the host is taken as it is written to (thin, as without it) or at once (thick).
    #[arg(long, value_parser = ["thin", "thick"], value_name = "HOW")]
    pub(crate) allocation: Option<String>,
    /// What it is kept in: an image (as without it; a copy as what it is made from) or, where the host's file system has project
    /// quotas, a directory.
    #[arg(long, value_parser = ["image", "directory"], conflicts_with = "block", value_name = "WHAT")]
    pub(crate) backing: Option<String>,
    /// A copy of this snapshot.
    #[arg(long, group = "source", value_name = "SNAPSHOT")]
    pub(crate) from_snapshot: Option<String>,
    /// A copy of this volume.
    #[arg(long, group = "source", value_name = "VOLUME")]
    pub(crate) from_volume: Option<String>,
    /// How to print the manifest.
    #[arg(short, long, value_enum, default_value = "yaml", value_name = "FORMAT")]
    pub(crate) output: ManifestFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Lists the snapshots.
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Deletes a snapshot. Volumes made from it stay.
    Delete {
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
        #[command(flatten)]
        output: Output,
    },
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
    /// Only names.
    Name,
    /// For programs.
    Json,
    /// The same as YAML.
    Yaml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ManifestFormat {
    /// As manifests are written.
    Yaml,
    /// The same as JSON.
    Json,
    /// Only the name.
    Name,
}
