//! What is known of a CSI driver.

use std::path::PathBuf;

use serde::Serialize;

use super::Millis;

/// What a driver said of itself when it registered; read again after each reconnect.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct DriverInfo {
    /// From GetPluginInfo; empty when the driver did not say.
    pub version: String,
    /// Its name of this node; empty when NodeGetInfo is unimplemented and not needed (csi.md 11).
    pub node_id: String,
    /// 0: no limit known.
    pub max_volumes: i64,
    /// Node STAGE_UNSTAGE_VOLUME.
    pub stage_unstage: bool,
    /// Node SINGLE_NODE_MULTI_WRITER.
    pub single_node_multi_writer: bool,
    /// Node EXPAND_VOLUME.
    pub expand_volume: bool,
    /// Node VOLUME_MOUNT_GROUP.
    pub volume_mount_group: bool,
    /// Node GET_VOLUME_STATS or VOLUME_CONDITION: NodeGetVolumeStats may be called (csi.md 2.4).
    pub volume_stats: bool,
    /// Node GET_VOLUME_HEALTH (1.13).
    pub volume_health: bool,
    /// Controller PUBLISH_UNPUBLISH_VOLUME on this socket.
    pub publish_unpublish: bool,
    /// Names of all node, controller and plugin capabilities, for people; unknown ones as their number.
    pub capabilities: Vec<String>,
}

/// Whether the driver answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Connection {
    /// Registered, and `info` is of the process that answers now.
    Ready,
    /// It answers, and says that it is not ready yet (Probe `ready: false`): calls wait.
    Starting {
        /// What it said.
        reason: String,
    },
    /// It was there and does not answer; its volumes stay.
    Disconnected {
        /// Why volumed thinks so.
        reason: String,
    },
}

/// How volumed came to know the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum DriverOrigin {
    /// `[drivers."name"] endpoint` in the configuration; beats a registration.
    Configured,
    /// This socket in `plugins_registry`.
    Registered {
        /// The registration socket.
        socket: PathBuf,
    },
}

/// One driver as of now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DriverState {
    /// Whether it answers.
    pub connection: Connection,
    /// What it said.
    pub info: DriverInfo,
    /// The socket that is called.
    pub endpoint: PathBuf,
    /// How it came to be known.
    pub origin: DriverOrigin,
    /// Since when `connection` is so.
    pub since: Millis,
    /// Why its last Probe says that it is not well; `None` while it is. Shown only: calls are made.
    pub unwell: Option<String>,
    /// Other instances of the same name that would take over, newest first.
    pub standby: Vec<PathBuf>,
}
