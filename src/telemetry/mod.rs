//! The journal: what happened, told once, as lines with fields.
//!
//! Under systemd lines go to journald with their fields, elsewhere to stderr as text. Fields have no prefix, because
//! tracing-journald writes a field `csi_driver` as `CSI_DRIVER`, and so the names operators search for (peers.md 5.3:
//! `VOLUME_CLAIM`, `CSI_DRIVER`, `GRPC_CODE`, ...) and `MESSAGE_ID` come out as they are documented.

mod plain;
mod tell;

use std::os::unix::fs::MetadataExt as _;

use tracing::level_filters::LevelFilter;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt};

pub use tell::tell;

/// Begins to log, at `level` for volumed's own lines and at warn for those of the libraries; `VOLUMED_LOG`, in the form of
/// tracing-subscriber's filters, beats it.
///
/// # Errors
/// When something else in this process logs already.
pub fn start(level: LevelFilter) -> Result<(), TryInitError> {
    let ours = EnvFilter::try_from_env("VOLUMED_LOG")
        .unwrap_or_else(|_unset| EnvFilter::new(format!("warn,volumed={level}")));
    let journal = if is_connected_to_journal() { tracing_journald::layer().ok() } else { None };
    let layer = match journal {
        Some(journal) => {
            let priorities = PriorityMappings {
                info: Priority::Informational,
                debug: Priority::Debug,
                ..PriorityMappings::new()
            };
            let journal = journal
                .with_field_prefix(None)
                .with_syslog_identifier("volumed".to_owned())
                .with_priority_mappings(priorities);
            journal.boxed()
        }
        None => fmt::layer::<Registry>()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .with_target(false)
            .fmt_fields(plain::Plain)
            .boxed(),
    };
    tracing_subscriber::registry().with(layer).with(ours).try_init()
}

/// systemd sets JOURNAL_STREAM to device and inode of the journal's stream; a child that redirected its stderr has inherited
/// the variable and is not connected (systemd.exec(5)).
fn is_connected_to_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").ok();
    let stream = stream.as_deref().and_then(|stream| stream.split_once(':'));
    let numbers = stream.and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    let stderr = std::fs::metadata("/proc/self/fd/2").ok().map(|stderr| (stderr.dev(), stderr.ino()));
    numbers.is_some() && numbers == stderr
}
