//! A driver's answers and errors. The first byte says which of them the others are.

use std::collections::BTreeMap;

use prost::Message;
use volumed::csi::fuzz::{Answers, call_error, driver_info};
use volumed::model::DriverName;
use volumed::proto::csi::{
    ControllerGetCapabilitiesResponse, GetPluginCapabilitiesResponse, GetPluginInfoResponse,
    NodeGetCapabilitiesResponse, NodeGetInfoResponse, PluginCapability, plugin_capability,
};

const NAME: &str = "d.example.com";

/// What is believed of a driver is within the contract's limits; what it says in an error has no secret of ours, no control
/// character and an end.
pub fn check(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let mut answers = sound();
    let understood = match kind % 6 {
        0 => take(bytes, &mut answers.plugin),
        1 => take(bytes, &mut answers.plugin_can),
        2 => take(bytes, &mut answers.controller_can),
        3 => take(bytes, &mut answers.node_can),
        4 => take(bytes, &mut answers.node),
        _ => return error(bytes),
    };
    if understood {
        info(answers);
    }
}

/// The answers of a driver that is in order.
fn sound() -> Answers {
    let service = plugin_capability::service::Type::ControllerService;
    let service = plugin_capability::Service { r#type: i32::from(service) };
    Answers {
        plugin: GetPluginInfoResponse { name: NAME.to_owned(), ..GetPluginInfoResponse::default() },
        plugin_can: GetPluginCapabilitiesResponse {
            capabilities: vec![PluginCapability { r#type: Some(plugin_capability::Type::Service(service)) }],
        },
        controller_can: ControllerGetCapabilitiesResponse::default(),
        node_can: NodeGetCapabilitiesResponse::default(),
        node: NodeGetInfoResponse { node_id: "node-1".to_owned(), ..NodeGetInfoResponse::default() },
    }
}

fn take<M: Message + Default>(bytes: &[u8], place: &mut M) -> bool {
    match M::decode(bytes) {
        Ok(message) => {
            *place = message;
            true
        }
        Err(_) => false,
    }
}

fn info(answers: Answers) {
    let name = DriverName::new(NAME).expect("a name");
    let said_name = answers.plugin.name.clone();
    let node = answers.node.clone();
    match driver_info(&name, answers) {
        Ok(info) => {
            assert_eq!(said_name, NAME, "a driver of another name was accepted");
            assert_eq!(
                (info.node_id.as_str(), info.max_volumes),
                (&*node.node_id, node.max_volumes_per_node)
            );
            super::assert_fit_for_people("the node's id", &format!("id {}", info.node_id), 256 + 3);
            super::assert_fit_for_people("the version", &format!("version {}", info.version), 128 + 8);
            assert!(info.max_volumes >= 0, "{} volumes", info.max_volumes);
            assert!(info.capabilities.len() <= 3 * 256 && info.capabilities.is_sorted());
            for capability in &info.capabilities {
                super::assert_fit_for_people("a capability", capability, 80);
            }
            let topology = node.accessible_topology.map(|t| t.segments).unwrap_or_default();
            let size: usize = topology.iter().map(|(k, v)| k.len() + v.len()).sum();
            assert!(size <= 4096, "a topology of {size} bytes was accepted");
        }
        Err(why) => super::assert_fit_for_people("the refusal", &why, 1024),
    }
}

/// A code, then what the request carried as secrets, then what the driver said, with a byte 0xFF between them.
fn error(bytes: &[u8]) {
    let Some((code, bytes)) = bytes.split_first() else { return };
    let mut texts: Vec<String> =
        bytes.split(|b| *b == 0xFF).map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    let message = texts.pop().unwrap_or_default();
    let secrets: BTreeMap<String, String> =
        texts.iter().enumerate().map(|(i, secret)| (i.to_string(), secret.clone())).collect();
    let error = call_error(i32::from(*code), &message, &secrets);
    assert!((1..=16).contains(&error.code.0) || *code == 0, "code {} of {code}", error.code.0);
    assert!(error.sent, "a driver that answered was reached");
    super::assert_fit_for_people("the error", &error.to_string(), 1024 + 64);
    for secret in &texts {
        // What volumed itself writes may be a secret too: stars where one was, dots where the text was cut.
        if secret.len() >= 4 && !secret.contains(['*', '.']) {
            assert!(!error.message.contains(secret), "{secret:?} is in {:?}", error.message);
        }
    }
}
