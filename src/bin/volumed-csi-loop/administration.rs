//! `volume` and `snapshot`: one call of the driver's administration each, and its answer printed.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use volumed::loop_driver::admin::{self, AdminError, Client, Content, NewVolume, Source};
use volumed::loop_driver::{Config, Flags};

use super::arguments::{Command, Create, Format, ManifestFormat, Output, Snapshot, Target, Volume};

/// What a command ends in, by its exit code; volumectl's.
const OTHER: u8 = 1;
const UNKNOWN: u8 = 3;

/// Does what was asked, and says so.
pub(crate) fn run(command: Command) -> ExitCode {
    let failed = match execute(command) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failed) => failed,
    };
    // Whoever reads our output and stops has what they wanted.
    if failed.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let _printed = writeln!(io::stderr(), "volumed-csi-loop: {failed:#}");
    let unknown = failed.downcast_ref::<AdminError>().is_some_and(AdminError::is_unknown);
    ExitCode::from(if unknown { UNKNOWN } else { OTHER })
}

#[tokio::main(flavor = "current_thread")]
async fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Volume { target, command } => volume(&connect(target).await?, command).await,
        Command::Snapshot { target, command } => snapshot(&connect(target).await?, command).await,
    }
}

async fn connect(target: Target) -> anyhow::Result<Client> {
    let socket = match target.driver_socket {
        Some(socket) => {
            let path = socket.strip_prefix("unix://").or(socket.strip_prefix("unix:")).unwrap_or(&socket);
            std::path::absolute(Path::new(path))?
        }
        None => default_socket()?,
    };
    Ok(Client::connect(&socket).await?)
}

/// Where a driver without flags listens.
fn default_socket() -> anyhow::Result<PathBuf> {
    Ok(Config::load(None, Flags::default())?.endpoint)
}

async fn volume(client: &Client, command: Volume) -> anyhow::Result<()> {
    match command {
        Volume::Create(wish) => create(client, wish).await,
        Volume::List { output } => {
            let all = client.volumes().await?;
            let names = || all.iter().map(|volume| volume.handle.clone()).collect();
            print(&output, &all, || admin::volumes(&all), names)
        }
        Volume::Resize { volume, size, output } => {
            let done = client.resize(&volume, size).await?;
            print(&output, &done, || admin::resized(&done), || vec![done.handle.clone()])
        }
        Volume::Snapshot { volume, name, output } => {
            let taken = client.snapshot(&volume, &name).await?;
            print(&output, &taken, || admin::snapshot(&taken), || vec![taken.handle.clone()])
        }
        Volume::Delete { volume, output } => {
            let gone = client.delete(&volume).await?;
            print(&output, &gone, || admin::deleted("volume", &gone), || vec![gone.handle.clone()])
        }
    }
}

async fn snapshot(client: &Client, command: Snapshot) -> anyhow::Result<()> {
    match command {
        Snapshot::List { output } => {
            let all = client.snapshots().await?;
            let names = || all.iter().map(|snapshot| snapshot.handle.clone()).collect();
            print(&output, &all, || admin::snapshots(&all), names)
        }
        Snapshot::Delete { snapshot, output } => {
            let gone = client.delete_snapshot(&snapshot).await?;
            print(&output, &gone, || admin::deleted("snapshot", &gone), || vec![gone.handle.clone()])
        }
    }
}

/// Only the manifest goes to stdout: it is meant to become a file.
async fn create(client: &Client, wish: Create) -> anyhow::Result<()> {
    let source = wish.from_snapshot.map(Source::Snapshot).or(wish.from_volume.map(Source::Volume));
    let content = if wish.block { Content::Block } else { Content::FileSystem(wish.fs) };
    let name = wish.name.clone();
    let wanted = NewVolume {
        name: wish.name,
        bytes: wish.size,
        content,
        allocation: wish.allocation,
        backing: wish.backing,
        source,
    };
    let created = client.create(wanted).await?;
    let mut out = io::stdout().lock();
    match wish.output {
        ManifestFormat::Yaml => out.write_all(admin::document(&created.manifest).as_bytes())?,
        ManifestFormat::Json => {
            serde_json::to_writer_pretty(&mut out, &created.manifest)?;
            writeln!(out)?;
        }
        ManifestFormat::Name => writeln!(out, "{name}")?,
    }
    out.flush()?;
    if let Some(note) = created.note {
        writeln!(io::stderr(), "volumed-csi-loop: {note}")?;
    }
    Ok(())
}

fn print(
    output: &Output,
    answer: &impl Serialize,
    text: impl Fn() -> String,
    names: impl Fn() -> Vec<String>,
) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match output.output {
        Format::Table => out.write_all(text().as_bytes())?,
        Format::Name => {
            for name in names() {
                writeln!(out, "{name}")?;
            }
        }
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, answer)?;
            writeln!(out)?;
        }
        Format::Yaml => out.write_all(admin::document(&serde_json::to_value(answer)?).as_bytes())?,
    }
    Ok(out.flush()?)
}
