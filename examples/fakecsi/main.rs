//! fakecsi: a CSI driver that does what it is told, also what a real one will not do on demand.
//!
//! It is an ordinary driver: Identity, Node, on request a Controller, real bind mounts from `--state DIR/<volume>`, for block
//! volumes loop devices over `--state DIR/<volume>.img`, and it registers itself below `--registry`. It accepts any volume id.
//!
//! It refuses what breaks the caller's duties (csi.md 10: 2, 4, 11, 12, 13) with FAILED_PRECONDITION and `contract violation
//! (csi.md 10, N): ...`, and more volumes than `--max-volumes` with RESOURCE_EXHAUSTED, so that a test finds every violation in
//! the log. `--lenient` lets them pass.
//!
//! ```text
//! fakecsi --endpoint /run/x/csi.sock --state /run/x/state --registry ROOT/plugins_registry --log /run/x/calls --faults /run/x/faults
//! ```
//!
//! `--log` takes one JSON object per line, two for each call (Registration's included), flushed before the call goes on:
//!
//! ```text
//! {"at":1763730000123,"id":7,"event":"begin","method":"NodeStageVolume","volume":"v1","request":{...},"process":4711}
//! {"at":1763730000125,"id":7,"event":"end","method":"NodeStageVolume","volume":"v1","code":"OK","message":""}
//! ```
//!
//! The request is whole, secrets included: the log is a test's witness. A call that is cut off has no `end`; one whose
//! caller gave up has an `end` with the code `DROPPED`.
//!
//! `--faults` is read anew at each call; a missing or empty file is no faults, a broken one makes every call INTERNAL:
//!
//! ```json
//! [{"method": "NodeStageVolume", "volume": "v1", "from": 1, "to": 2, "when": "after", "action": {"code": "UNAVAILABLE"}}]
//! ```
//!
//! * `method`: of the call, or `*`. `volume`: only of this volume.
//! * `nth`, or `from` and `to` (each may be left out): which calls, counted from 1 since the start of the process, over the
//!   calls of this method, or of this method and volume if `volume` is given. `*` counts all calls.
//!   `until_ms`: only while the process is younger than that.
//! * `when`: `before` (the default) or `after` the effect.
//! * `action`: `{"code": "UNAVAILABLE", "message": "..."}`, `"hang"`, `{"delay_ms": 500}`, `"crash"` (SIGKILL to itself),
//!   `"oversize"` (has its effect and answers 8 MiB), `"garbage"` (has its effect and answers what is no message), `"lost"` (has
//!   its effect and its answer is cut off), `"no-mount"` (answers OK and does nothing; before only), `{"leak": "text"}`
//!   (INTERNAL with the text and the whole request).
//! * Actions that only change what is answered: of Probe `{"ready": false}` and `"ready-unset"`; of NodeGetVolumeStats
//!   `{"abnormal": "message"}` and `{"usage": [{"unit": "BYTES", "total": 9, "used": 4, "available": 5}]}`; of NodeGetVolumeHealth
//!   `{"health": [{"status": "DEGRADED", "reason": "Rebuilding", "message": "..."}]}`. Units and states may be numbers.
//! * All faults that match are taken in the order of the file; the first that ends the call ends it.
//!
//! A FUSE (`--file-system fuse`) answers nothing while there is a file `.hang` in `--state DIR`.

#![expect(clippy::disallowed_methods, reason = "a test's program may start losetup without a deadline")]

mod block;
mod calls;
mod controller;
mod faults;
mod fuse;
mod mounts;
mod node;
mod own;
mod rules;
mod serve;
mod spoil;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use tokio_util::sync::CancellationToken;

/// A CSI driver for tests.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// The driver's socket, with or without unix://
    #[arg(long)]
    endpoint: String,
    /// The directory of the volumes
    #[arg(long)]
    state: PathBuf,
    /// Register in this directory
    #[arg(long)]
    registry: Option<PathBuf>,
    /// The registration socket's name, if not NAME-reg.sock
    #[arg(long, requires = "registry")]
    registration_socket: Option<PathBuf>,
    /// The driver's name
    #[arg(long, default_value = "fake.csi.volumed.io")]
    name: String,
    /// The node's id
    #[arg(long, default_value = "fake-node")]
    node_id: String,
    /// Volumes that fit on the node
    #[arg(long, default_value_t = 0)]
    max_volumes: i64,
    /// Has no STAGE_UNSTAGE_VOLUME
    #[arg(long)]
    no_stage: bool,
    /// Has PUBLISH_UNPUBLISH_VOLUME
    #[arg(long)]
    attach: bool,
    /// Has CREATE_DELETE_VOLUME (csi-sanity's node tests need it)
    #[arg(long)]
    create: bool,
    /// Has SINGLE_NODE_MULTI_WRITER
    #[arg(long)]
    multi_writer: bool,
    /// Has VOLUME_MOUNT_GROUP, and gives a volume's directory to the group
    #[arg(long)]
    mount_group: bool,
    /// Has EXPAND_VOLUME
    #[arg(long)]
    expand: bool,
    /// Has no GET_VOLUME_STATS
    #[arg(long)]
    no_stats: bool,
    /// Has VOLUME_CONDITION (1.12)
    #[arg(long)]
    condition: bool,
    /// Has GET_VOLUME_HEALTH (1.13)
    #[arg(long)]
    health: bool,
    /// What a volume with a file system is
    #[arg(long, value_enum, default_value = "directory")]
    file_system: own::FileSystem,
    /// How block volumes are published
    #[arg(long, value_enum, default_value = "bind")]
    block: block::Shown,
    /// Bytes of a new block volume, or ext4
    #[arg(long, default_value_t = 16 << 20)]
    block_size: u64,
    /// Takes calls that break the caller's duties
    #[arg(long)]
    lenient: bool,
    /// Answers OK without making directories or mounts
    #[arg(long)]
    no_mount: bool,
    /// Writes each call to this file
    #[arg(long)]
    log: Option<PathBuf>,
    /// Reads what to do wrong from this file
    #[arg(long)]
    faults: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let calls = Arc::new(calls::Calls::new(options.log.as_deref(), options.faults.clone())?);
        let served = serve::serve(&options, &calls, stop.clone());
        tokio::pin!(served);
        tokio::select! {
            result = &mut served => return result,
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        stop.cancel();
        // Calls that hang on purpose must not keep it from ending.
        match tokio::time::timeout(std::time::Duration::from_millis(500), served).await {
            Ok(result) => result,
            Err(_) => Ok(()),
        }
    })?;
    runtime.shutdown_background();
    Ok(())
}
