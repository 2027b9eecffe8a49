//! What a driver says of itself, checked before it is believed (csi.md 2.1, 10.35, 11).

use std::collections::BTreeMap;
use std::fmt::Display;

use super::text::{Secrets, clean};
use super::{CallError, Client, Code};
use crate::model::{DriverInfo, DriverName};
use crate::proto::csi;
use csi::{controller_service_capability, node_service_capability, plugin_capability};

/// The longest string of the contract, in bytes, where nothing else is said.
const STRING: usize = 128;
/// The longest node id, in bytes.
const NODE_ID: usize = 256;
/// The largest map of strings, in bytes of all keys and values.
const MAP: usize = 4096;
/// More capabilities than this in one answer are nonsense; the contract knows fewer than 20 per service.
const CAPABILITIES: usize = 256;

/// Why a driver cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum InfoError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the driver's answer to {method} cannot be used: {problem}")]
    Absurd { method: &'static str, problem: String },
    #[error("the driver calls itself {said:?}, not {expected}")]
    OtherName { said: String, expected: DriverName },
}

/// Asks for name, capabilities and node. `strict`: the name is all that says who it is, so it must be told
/// (a driver of the configuration; of others the registration says it).
pub(super) async fn read(client: &Client, name: &DriverName, strict: bool) -> Result<DriverInfo, InfoError> {
    let version = identify(client, name, strict).await?;
    let mut can = Capabilities { plugin: plugin_capabilities(client).await?, ..Capabilities::default() };
    if can.serves(plugin_capability::service::Type::ControllerService) {
        can.controller = controller_capabilities(client).await?;
    }
    can.node = node_capabilities(client).await?;
    let node = node_info(client, can.needs_node_id()).await?;
    Ok(understood(version, &can, node))
}

/// What a driver says it can do.
#[derive(Debug, Default)]
pub(super) struct Capabilities {
    pub(super) plugin: Vec<plugin_capability::Type>,
    /// By their numbers in the contract, which may have more of them one day.
    pub(super) controller: Vec<i32>,
    pub(super) node: Vec<i32>,
}

impl Capabilities {
    pub(super) fn serves(&self, wanted: plugin_capability::service::Type) -> bool {
        let wanted = plugin_capability::Service { r#type: i32::from(wanted) };
        self.plugin.contains(&plugin_capability::Type::Service(wanted))
    }

    fn attaches(&self) -> bool {
        let attach = controller_service_capability::rpc::Type::PublishUnpublishVolume;
        self.controller.contains(&i32::from(attach))
    }

    /// Attaching and topology name the node by its id.
    pub(super) fn needs_node_id(&self) -> bool {
        self.attaches() || self.serves(plugin_capability::service::Type::VolumeAccessibilityConstraints)
    }
}

/// Puts what a driver said together; `node_id` and `max_volumes` come from `node_said`.
pub(super) fn understood(
    version: String,
    can: &Capabilities,
    (node_id, max_volumes): (String, i64),
) -> DriverInfo {
    let node = &can.node;
    DriverInfo {
        version,
        node_id,
        max_volumes,
        stage_unstage: node.contains(&i32::from(node_service_capability::rpc::Type::StageUnstageVolume)),
        single_node_multi_writer: node
            .contains(&i32::from(node_service_capability::rpc::Type::SingleNodeMultiWriter)),
        expand_volume: node.contains(&i32::from(node_service_capability::rpc::Type::ExpandVolume)),
        volume_mount_group: node.contains(&i32::from(node_service_capability::rpc::Type::VolumeMountGroup)),
        volume_stats: node.contains(&i32::from(node_service_capability::rpc::Type::GetVolumeStats))
            || node.contains(&i32::from(node_service_capability::rpc::Type::VolumeCondition)),
        volume_health: node.contains(&i32::from(node_service_capability::rpc::Type::GetVolumeHealth)),
        publish_unpublish: can.attaches(),
        capabilities: capability_names(&can.plugin, &can.controller, node),
    }
}

/// Returns the driver's version after a look at its name.
async fn identify(client: &Client, name: &DriverName, strict: bool) -> Result<String, InfoError> {
    match client.plugin_info().await {
        Err(error) if error.code == Code::UNIMPLEMENTED && !strict => Ok(String::new()),
        said => plugin_said(&said?, name),
    }
}

pub(super) fn plugin_said(said: &csi::GetPluginInfoResponse, name: &DriverName) -> Result<String, InfoError> {
    const METHOD: &str = "GetPluginInfo";
    if said.name != name.as_str() {
        let said = clean(&said.name.chars().take(80).collect::<String>(), &Secrets::default());
        return Err(InfoError::OtherName { said, expected: name.clone() });
    }
    short(METHOD, "vendor_version", &said.vendor_version, STRING)?;
    small(METHOD, "manifest", &said.manifest)?;
    Ok(clean(&said.vendor_version, &Secrets::default()))
}

async fn plugin_capabilities(client: &Client) -> Result<Vec<plugin_capability::Type>, InfoError> {
    match client.plugin_capabilities().await {
        Err(error) if error.code == Code::UNIMPLEMENTED => Ok(Vec::new()),
        answer => plugin_can(answer?),
    }
}

pub(super) fn plugin_can(
    answer: csi::GetPluginCapabilitiesResponse,
) -> Result<Vec<plugin_capability::Type>, InfoError> {
    few("GetPluginCapabilities", answer.capabilities.len())?;
    Ok(answer.capabilities.into_iter().filter_map(|capability| capability.r#type).collect())
}

async fn controller_capabilities(client: &Client) -> Result<Vec<i32>, InfoError> {
    match client.controller_capabilities().await {
        Err(error) if error.code == Code::UNIMPLEMENTED => Ok(Vec::new()),
        answer => controller_can(answer?),
    }
}

pub(super) fn controller_can(answer: csi::ControllerGetCapabilitiesResponse) -> Result<Vec<i32>, InfoError> {
    few("ControllerGetCapabilities", answer.capabilities.len())?;
    let number = |capability: csi::ControllerServiceCapability| {
        capability.r#type.map(|controller_service_capability::Type::Rpc(rpc)| rpc.r#type)
    };
    Ok(answer.capabilities.into_iter().filter_map(number).collect())
}

async fn node_capabilities(client: &Client) -> Result<Vec<i32>, InfoError> {
    node_can(client.node_capabilities().await?)
}

pub(super) fn node_can(answer: csi::NodeGetCapabilitiesResponse) -> Result<Vec<i32>, InfoError> {
    few("NodeGetCapabilities", answer.capabilities.len())?;
    let number = |capability: csi::NodeServiceCapability| {
        capability.r#type.map(|node_service_capability::Type::Rpc(rpc)| rpc.r#type)
    };
    Ok(answer.capabilities.into_iter().filter_map(number).collect())
}

/// Returns the node's id and how many volumes it takes. UNIMPLEMENTED is accepted where nothing needs them (csi.md 11).
async fn node_info(client: &Client, needed: bool) -> Result<(String, i64), InfoError> {
    match client.node_info().await {
        Err(error) if error.code == Code::UNIMPLEMENTED && !needed => Ok((String::new(), 0)),
        said => node_said(said?),
    }
}

pub(super) fn node_said(said: csi::NodeGetInfoResponse) -> Result<(String, i64), InfoError> {
    const METHOD: &str = "NodeGetInfo";
    if said.node_id.is_empty() {
        return Err(absurd(METHOD, "node_id is empty"));
    }
    short(METHOD, "node_id", &said.node_id, NODE_ID)?;
    if said.node_id.chars().any(char::is_control) {
        return Err(absurd(METHOD, "node_id has control characters"));
    }
    if said.max_volumes_per_node < 0 {
        return Err(absurd(METHOD, format!("max_volumes_per_node is {}", said.max_volumes_per_node)));
    }
    if let Some(topology) = &said.accessible_topology {
        small(METHOD, "accessible_topology", &topology.segments)?;
    }
    Ok((said.node_id, said.max_volumes_per_node))
}

fn absurd(method: &'static str, problem: impl Display) -> InfoError {
    InfoError::Absurd { method, problem: problem.to_string() }
}

fn short(method: &'static str, field: &str, text: &str, limit: usize) -> Result<(), InfoError> {
    if text.len() > limit {
        return Err(absurd(method, format!("{field} has {} bytes, more than {limit}", text.len())));
    }
    Ok(())
}

fn small(method: &'static str, field: &str, map: &BTreeMap<String, String>) -> Result<(), InfoError> {
    let size: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAP {
        return Err(absurd(method, format!("{field} has {size} bytes, more than {MAP}")));
    }
    Ok(())
}

fn few(method: &'static str, count: usize) -> Result<(), InfoError> {
    if count > CAPABILITIES {
        return Err(absurd(method, format!("{count} capabilities, more than {CAPABILITIES}")));
    }
    Ok(())
}

/// Returns `plugin/CONTROLLER_SERVICE`, `node/STAGE_UNSTAGE_VOLUME`, `node/99`, ...: sorted, each once.
fn capability_names(plugin: &[plugin_capability::Type], controller: &[i32], node: &[i32]) -> Vec<String> {
    let plugin = plugin.iter().map(|capability| match capability {
        plugin_capability::Type::Service(service) => {
            name("plugin", service.r#type, |t: plugin_capability::service::Type| t.as_str_name())
        }
        plugin_capability::Type::VolumeExpansion(expansion) => {
            name("plugin/expansion", expansion.r#type, |t: plugin_capability::volume_expansion::Type| {
                t.as_str_name()
            })
        }
    });
    let controller = controller.iter().map(|number| {
        name("controller", *number, |t: controller_service_capability::rpc::Type| t.as_str_name())
    });
    let node = node
        .iter()
        .map(|number| name("node", *number, |t: node_service_capability::rpc::Type| t.as_str_name()));
    let mut names: Vec<String> = plugin.chain(controller).chain(node).collect();
    names.sort();
    names.dedup();
    names
}

fn name<T: TryFrom<i32>>(service: &str, number: i32, known: impl Fn(T) -> &'static str) -> String {
    match T::try_from(number) {
        Ok(capability) => format!("{service}/{}", known(capability)),
        Err(_) => format!("{service}/{number}"),
    }
}
