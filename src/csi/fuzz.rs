//! What the fuzz targets (`tests/fuzz`) call: plugins' and drivers' decoded answers -> what is believed of them, by the
//! registry's own code, without a socket.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Code, Status};

use super::info::{self, Capabilities};
use super::text::Secrets;
use super::{CallError, client, plugin};
use crate::error::Chain;
use crate::model::{DriverInfo, DriverName};
use crate::proto::csi::{
    ControllerGetCapabilitiesResponse, GetPluginCapabilitiesResponse, GetPluginInfoResponse,
    NodeGetCapabilitiesResponse, NodeGetInfoResponse, plugin_capability,
};
use crate::proto::registration::PluginInfo;

/// A driver's answers to the questions that are asked of a new one.
#[derive(Debug, Default)]
pub struct Answers {
    /// `GetPluginInfo`
    pub plugin: GetPluginInfoResponse,
    /// `GetPluginCapabilities`
    pub plugin_can: GetPluginCapabilitiesResponse,
    /// `ControllerGetCapabilities`
    pub controller_can: ControllerGetCapabilitiesResponse,
    /// `NodeGetCapabilities`
    pub node_can: NodeGetCapabilitiesResponse,
    /// `NodeGetInfo`
    pub node: NodeGetInfoResponse,
}

/// Returns the driver and its socket that a registration comes to.
///
/// # Errors
/// Why it is refused, as the plugin and the operator are told.
pub fn registration(
    socket: &Path,
    info: PluginInfo,
    configured: &BTreeSet<DriverName>,
) -> Result<(DriverName, PathBuf), String> {
    plugin::checked(socket, info, configured).map_err(|refusal| plugin::said(&refusal))
}

/// Returns what a driver is known by.
///
/// # Errors
/// Why its answers cannot be used.
pub fn driver_info(name: &DriverName, answers: Answers) -> Result<DriverInfo, String> {
    let Answers { plugin, plugin_can, controller_can, node_can, node } = answers;
    let understood = || {
        let version = info::plugin_said(&plugin, name)?;
        let mut can = Capabilities { plugin: info::plugin_can(plugin_can)?, ..Capabilities::default() };
        if can.serves(plugin_capability::service::Type::ControllerService) {
            can.controller = info::controller_can(controller_can)?;
        }
        can.node = info::node_can(node_can)?;
        Ok(info::understood(version, &can, info::node_said(node)?))
    };
    understood().map_err(|error: info::InfoError| Chain(&error).to_string())
}

/// Returns what is kept of a driver's error, after a call that carried these secrets.
pub fn call_error(code: i32, message: &str, secrets: &BTreeMap<String, String>) -> CallError {
    let status = Status::new(Code::from(code), message);
    client::call_error("NodeStageVolume", &status, Duration::from_secs(120), &Secrets::of(secrets))
}
