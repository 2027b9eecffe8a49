//! disktool: asks the host for one thing that it can do with a disk, as volumed does: for tests of what no volume needs yet, and
//! in a machine where no test runs.
//!
//! ```text
//! disktool ROOT inspect DEVICE
//! disktool ROOT format DEVICE KIND UUID fresh|begun
//! disktool ROOT mount DEVICE KIND UUID PLACE
//! disktool ROOT grow DEVICE KIND UUID PLACE
//! disktool ROOT luks-format DEVICE UUID KEYFILE fresh|begun
//! disktool ROOT luks-open DEVICE UUID NAME KEYFILE
//! disktool ROOT luks-close NAME UUID
//! disktool ROOT luks-grow NAME UUID KEYFILE
//! ```
//!
//! ROOT is a root directory; PLACE lies below it. `fresh` and `begun` say whether the intent may have been started before. The
//! work is done by children of `/usr/bin/volumed`. What was done is printed; an error is printed with all its causes, then
//! `written: true` or `false`, and ends it with 1.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for tests")]

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use volumed::error::Chain;
use volumed::host::{DiskGrowth, EncryptedDisks as _, Host as _, HostError, Linux};
use volumed::model::{
    DiskIdentity, DiskMount, FileSystem, FsKind, FsUuid, Intent, LuksIntent, MapperName, RootPath, Secret,
};

/// An argument that is wrong, or a refusal of the host.
enum Failure {
    Usage(String),
    Host(HostError),
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments).await {
        Ok(done) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        Err(Failure::Usage(what)) => {
            eprintln!("disktool: {what}");
            ExitCode::from(64)
        }
        Err(Failure::Host(error)) => {
            println!("{}\nwritten: {}", Chain(&error), error.may_have_written());
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[&str]) -> Result<String, Failure> {
    let [root, what @ ..] = arguments else { return Err(Failure::Usage("no root directory".to_owned())) };
    let linux = Linux::open(Path::new(root))?.with_child_program("/usr/bin/volumed".into());
    match what {
        ["inspect", device] => Ok(shown(linux.inspect_disk(device.into()).await?)),
        ["format", device, kind, uuid, begun] => {
            let (identity, file_system) = (identity(&linux, device).await?, file_system(kind, uuid)?);
            let intent = Intent { file_system, identity, least_bytes: 0, begun: is_begun(begun)? };
            Ok(shown(linux.format_disk(device.into(), intent).await?))
        }
        ["mount", device, kind, uuid, place] => {
            let (identity, file_system) = (identity(&linux, device).await?, file_system(kind, uuid)?);
            let mount = DiskMount { identity, file_system, options: Vec::new(), read_only: false };
            Ok(shown(linux.mount_disk(device.into(), mount, at(place)?).await?))
        }
        ["grow", device, kind, uuid, place] => {
            let (identity, file_system) = (identity(&linux, device).await?, file_system(kind, uuid)?);
            let growth = DiskGrowth { device: device.into(), identity, file_system, at: at(place)? };
            Ok(shown(linux.grow_disk(growth).await?))
        }
        ["luks-format", device, uuid, file, begun] => {
            let (uuid, begun, key) = (fs_uuid(uuid)?, is_begun(begun)?, key(file)?);
            let intent =
                LuksIntent { uuid, identity: identity(&linux, device).await?, least_bytes: 0, begun };
            Ok(shown(linux.format_luks(device.into(), intent, key).await?))
        }
        ["luks-open", device, uuid, name, file] => {
            let (uuid, name, key) = (fs_uuid(uuid)?, mapper_name(name)?, key(file)?);
            let identity = identity(&linux, device).await?;
            Ok(shown(linux.open_luks(device.into(), identity, uuid, name, key).await?))
        }
        ["luks-close", name, uuid] => Ok(shown(linux.close_luks(mapper_name(name)?, fs_uuid(uuid)?).await?)),
        ["luks-grow", name, uuid, file] => {
            Ok(shown(linux.grow_luks(mapper_name(name)?, fs_uuid(uuid)?, key(file)?).await?))
        }
        other => Err(Failure::Usage(format!("what is {other:?}?"))),
    }
}

fn shown(done: impl Debug) -> String {
    format!("{done:?}")
}

/// The disk as it is now: the caller would have it from its record.
async fn identity(linux: &Linux, device: &str) -> Result<DiskIdentity, Failure> {
    Ok(linux.inspect_disk(PathBuf::from(device)).await?.identity)
}

fn file_system(kind: &str, uuid: &str) -> Result<FileSystem, Failure> {
    let found = FsKind::of(kind).ok_or_else(|| Failure::Usage(format!("{kind} is no kind")))?;
    Ok(FileSystem { kind: found, uuid: fs_uuid(uuid)? })
}

fn fs_uuid(text: &str) -> Result<FsUuid, Failure> {
    FsUuid::new(text).ok_or_else(|| Failure::Usage(format!("{text} is no UUID")))
}

fn mapper_name(text: &str) -> Result<MapperName, Failure> {
    MapperName::new(text).ok_or_else(|| Failure::Usage(format!("{text} is no name")))
}

fn at(place: &str) -> Result<RootPath, Failure> {
    RootPath::new(place).ok_or_else(|| Failure::Usage(format!("{place} is no place below the root")))
}

fn is_begun(text: &str) -> Result<bool, Failure> {
    match text {
        "fresh" => Ok(false),
        "begun" => Ok(true),
        other => Err(Failure::Usage(format!("{other} is neither fresh nor begun"))),
    }
}

fn key(file: &str) -> Result<Secret, Failure> {
    Ok(Secret::new(std::fs::read(file).map_err(|error| Failure::Usage(format!("{file}: {error}")))?))
}
