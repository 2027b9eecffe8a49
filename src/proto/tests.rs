//! That every message shows no credentials, and that the contract on the wire is the one that was agreed.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::csi;
use descriptors::{Enum, Field, File, Message};

include!(concat!(env!("OUT_DIR"), "/csi_debug_of.rs"));

/// `descriptor.proto` as far as these tests read it. prost-types has all of it but the extensions, and the marks of the
/// contract are extensions.
mod descriptors {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct FileSet {
        #[prost(message, repeated, tag = 1)]
        pub(super) file: Vec<File>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct File {
        #[prost(string, tag = 2)]
        pub(super) package: String,
        #[prost(message, repeated, tag = 4)]
        pub(super) messages: Vec<Message>,
        #[prost(message, repeated, tag = 5)]
        pub(super) enums: Vec<Enum>,
        #[prost(message, repeated, tag = 6)]
        pub(super) services: Vec<Service>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Message {
        #[prost(string, tag = 1)]
        pub(super) name: String,
        #[prost(message, repeated, tag = 2)]
        pub(super) fields: Vec<Field>,
        #[prost(message, repeated, tag = 3)]
        pub(super) nested: Vec<Self>,
        #[prost(message, repeated, tag = 4)]
        pub(super) enums: Vec<Enum>,
        #[prost(message, optional, tag = 7)]
        pub(super) options: Option<Options>,
        #[prost(message, repeated, tag = 8)]
        pub(super) oneofs: Vec<Oneof>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Field {
        #[prost(string, tag = 1)]
        pub(super) name: String,
        #[prost(uint32, tag = 3)]
        pub(super) number: u32,
        #[prost(enumeration = "prost_types::field_descriptor_proto::Label", tag = 4)]
        pub(super) label: i32,
        #[prost(enumeration = "prost_types::field_descriptor_proto::Type", tag = 5)]
        pub(super) kind: i32,
        #[prost(string, tag = 6)]
        pub(super) type_name: String,
        #[prost(message, optional, tag = 8)]
        pub(super) options: Option<Options>,
        #[prost(uint32, optional, tag = 9)]
        pub(super) oneof: Option<u32>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Oneof {
        #[prost(string, tag = 1)]
        pub(super) name: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Enum {
        #[prost(string, tag = 1)]
        pub(super) name: String,
        #[prost(message, repeated, tag = 2)]
        pub(super) values: Vec<EnumValue>,
        #[prost(message, optional, tag = 3)]
        pub(super) options: Option<Options>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct EnumValue {
        #[prost(string, tag = 1)]
        pub(super) name: String,
        #[prost(int32, tag = 2)]
        pub(super) number: i32,
        #[prost(message, optional, tag = 3)]
        pub(super) options: Option<Options>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Service {
        #[prost(string, tag = 1)]
        pub(super) name: String,
        #[prost(message, repeated, tag = 2)]
        pub(super) methods: Vec<Method>,
        #[prost(message, optional, tag = 3)]
        pub(super) options: Option<Options>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Method {
        #[prost(string, tag = 1)]
        pub(super) name: String,
        #[prost(string, tag = 2)]
        pub(super) request: String,
        #[prost(string, tag = 3)]
        pub(super) response: String,
        #[prost(message, optional, tag = 4)]
        pub(super) options: Option<Options>,
        #[prost(bool, tag = 5)]
        pub(super) client_streams: bool,
        #[prost(bool, tag = 6)]
        pub(super) server_streams: bool,
    }

    /// The options of anything: the numbers agree.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Options {
        #[prost(bool, tag = 7)]
        pub(super) map_entry: bool,
        #[prost(bool, tag = 1059)]
        pub(super) csi_secret: bool,
        #[prost(bool, tag = 1060)]
        pub(super) alpha: bool,
    }
}

const FACTS: &str = include_str!("../../tests/wire/csi.facts");

/// What stands for credentials in the messages of these tests, and what for anything else.
const SECRET: &str = "hunter2";
const PLAIN: &str = "plain text";

/// What the contract does not mark and build.rs hides all the same.
const SECRET_TOO: [&str; 2] =
    ["VolumeCapability.MountVolume.mount_flags", "NodePublishVolumeRequest.volume_context"];

/// The compiled contract.
fn contract(package: &str) -> File {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    let set = descriptors::FileSet::decode(bytes.as_slice()).unwrap();
    set.file.into_iter().find(|file| file.package == package).unwrap()
}

/// All messages by their names within the package, the nested ones and the entries of maps included.
fn messages(file: &File) -> BTreeMap<String, &Message> {
    fn add<'a>(scope: &str, level: &'a [Message], all: &mut BTreeMap<String, &'a Message>) {
        for message in level {
            let name = format!("{scope}{}", message.name);
            add(&format!("{name}."), &message.nested, all);
            all.insert(name, message);
        }
    }
    let mut all = BTreeMap::new();
    add("", &file.messages, &mut all);
    all
}

fn is_map_entry(message: &Message) -> bool {
    message.options.as_ref().is_some_and(|options| options.map_entry)
}

fn is_secret(message: &str, field: &Field) -> bool {
    let marked = field.options.as_ref().is_some_and(|options| options.csi_secret);
    marked || SECRET_TOO.contains(&format!("{message}.{}", field.name).as_str())
}

fn alpha(options: Option<&descriptors::Options>) -> &'static str {
    if options.is_some_and(|options| options.alpha) { " alpha" } else { "" }
}

fn short(type_name: &str) -> &str {
    type_name.trim_start_matches('.').trim_start_matches("csi.v1.")
}

/// Describes the contract in the words of `tests/wire/csi.facts`.
fn facts(file: &File) -> BTreeSet<String> {
    let all = messages(file);
    let mut facts = BTreeSet::new();
    for service in &file.services {
        facts.insert(format!("service {}{}", service.name, alpha(service.options.as_ref())));
        for rpc in &service.methods {
            let [client, server] =
                [rpc.client_streams, rpc.server_streams].map(|streams| if streams { "stream " } else { "" });
            let (request, response) = (short(&rpc.request), short(&rpc.response));
            let fact =
                format!("rpc {}.{} ({client}{request}) returns ({server}{response})", service.name, rpc.name);
            facts.insert(fact + alpha(rpc.options.as_ref()));
        }
    }
    let mut enums: Vec<(String, &Enum)> = file.enums.iter().map(|e| (e.name.clone(), e)).collect();
    for (name, message) in &all {
        enums.extend(message.enums.iter().map(|e| (format!("{name}.{}", e.name), e)));
        if is_map_entry(message) {
            continue;
        }
        facts.insert(format!("message {name}{}", alpha(message.options.as_ref())));
        for field in &message.fields {
            let mut fact = format!("field {name}.{} = {} {}", field.name, field.number, type_of(field, &all));
            if let Some(oneof) = field.oneof {
                fact += &format!(" oneof({})", message.oneofs[usize::try_from(oneof).unwrap()].name);
            }
            if field.options.as_ref().is_some_and(|options| options.csi_secret) {
                fact += " secret";
            }
            facts.insert(fact + alpha(field.options.as_ref()));
        }
    }
    for (name, described) in enums {
        facts.insert(format!("enum {name}{}", alpha(described.options.as_ref())));
        for value in &described.values {
            let alpha = alpha(value.options.as_ref());
            facts.insert(format!("value {name}.{} = {}{alpha}", value.name, value.number));
        }
    }
    facts
}

fn type_of(field: &Field, all: &BTreeMap<String, &Message>) -> String {
    let scalar = field.kind().as_str_name().trim_start_matches("TYPE_").to_lowercase();
    let name = if field.type_name.is_empty() { scalar.as_str() } else { short(&field.type_name) };
    match all.get(name).filter(|message| is_map_entry(message)) {
        Some(entry) => format!("map<{},{}>", type_of(&entry.fields[0], all), type_of(&entry.fields[1], all))
            .replace("optional ", ""),
        None if field.label().as_str_name() == "LABEL_REPEATED" => format!("repeated {name}"),
        None => name.to_owned(),
    }
}

#[test]
fn the_compiled_contract_is_the_reference_s_fact_by_fact() {
    let compiled = facts(&contract("csi.v1"));
    let reference: BTreeSet<String> =
        FACTS.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let missing: Vec<_> = reference.difference(&compiled).collect();
    let extra: Vec<_> = compiled.difference(&reference).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing {missing:#?}, not in the reference {extra:#?}");
}

#[test]
fn nothing_of_the_contract_is_left_out() {
    let compiled = facts(&contract("csi.v1"));
    let count = |kind: &str| compiled.iter().filter(|fact| fact.starts_with(kind)).count();
    // Version 1.12 has 32 RPCs, 94 messages and 8 enums (csi.md 1.1); the rest came with 1.13.
    let counted = ["service ", "rpc ", "message ", "enum "].map(count);
    assert_eq!(counted, [5, 32 + 4, 94 + 11, 8 + 2]);
}

#[test]
fn the_registration_contract_is_the_kubelet_s() {
    let compiled = facts(&contract("pluginregistration"));
    let reference = [
        "service Registration",
        "rpc Registration.GetInfo (pluginregistration.InfoRequest) returns (pluginregistration.PluginInfo)",
        "rpc Registration.NotifyRegistrationStatus (pluginregistration.RegistrationStatus) \
         returns (pluginregistration.RegistrationStatusResponse)",
        "message InfoRequest",
        "message PluginInfo",
        "field PluginInfo.type = 1 string",
        "field PluginInfo.name = 2 string",
        "field PluginInfo.endpoint = 3 string",
        "field PluginInfo.supported_versions = 4 repeated string",
        "message RegistrationStatus",
        "field RegistrationStatus.plugin_registered = 1 bool",
        "field RegistrationStatus.error = 2 string",
        "message RegistrationStatusResponse",
    ];
    assert_eq!(compiled, reference.map(str::to_owned).into());
}

/// Encodes a message with every field set; text is `PLAIN`, or `SECRET` in secret fields and all below them.
fn filled(name: &str, all: &BTreeMap<String, &Message>, hide: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in &all[name].fields {
        let hide = hide || is_secret(name, field);
        let inner = all.contains_key(short(&field.type_name));
        let content = match field.kind().as_str_name() {
            "TYPE_MESSAGE" if inner => filled(short(&field.type_name), all, hide),
            "TYPE_MESSAGE" => Vec::new(),
            "TYPE_STRING" if is_map_entry(all[name]) && field.name == "key" => b"the key".to_vec(),
            "TYPE_STRING" if hide => SECRET.as_bytes().to_vec(),
            "TYPE_STRING" => PLAIN.as_bytes().to_vec(),
            "TYPE_BOOL" | "TYPE_INT32" | "TYPE_INT64" | "TYPE_ENUM" => {
                encode_key(field.number, WireType::Varint, &mut bytes);
                encode_varint(1, &mut bytes);
                continue;
            }
            other => panic!("teach this test to fill {name}.{}, a {other}", field.name),
        };
        encode_key(field.number, WireType::LengthDelimited, &mut bytes);
        encode_varint(u64::try_from(content.len()).unwrap(), &mut bytes);
        bytes.extend(content);
    }
    bytes
}

#[test]
fn no_message_prints_a_secret_and_each_prints_everything_else() {
    let file = contract("csi.v1");
    let all = messages(&file);
    let mut with_secrets = 0;
    for (name, message) in all.iter().filter(|(_, message)| !is_map_entry(message)) {
        let printed = debug_of(&format!("csi.v1.{name}"), &filled(name, &all, false));
        assert!(!printed.contains(SECRET), "{printed}");
        for field in &message.fields {
            let shown = match type_of(field, &all).as_str() {
                // Its value is printed under the name of the oneof.
                _ if field.oneof.is_some() => continue,
                "map<string,string>" if is_secret(name, field) => r#"{"the key": ***}"#.to_owned(),
                "map<string,string>" => format!("{{\"the key\": {PLAIN:?}}}"),
                "repeated string" if is_secret(name, field) => "[***]".to_owned(),
                "repeated string" => format!("[{PLAIN:?}]"),
                "string" => format!("{PLAIN:?}"),
                _ => String::new(),
            };
            with_secrets += usize::from(is_secret(name, field));
            assert!(printed.contains(&format!("{}: {shown}", field.name)), "{} in {printed}", field.name);
        }
    }
    let marked = FACTS.lines().filter(|line| line.split(' ').any(|word| word == "secret")).count();
    assert_eq!(with_secrets, marked + SECRET_TOO.len(), "a secret field was not tried");
}

#[test]
fn a_stage_request_prints_whose_secrets_it_has_but_not_which() {
    let secrets = BTreeMap::from([("password".to_owned(), SECRET.to_owned())]);
    let request = csi::NodeStageVolumeRequest { volume_id: "vol-1".into(), secrets, ..Default::default() };
    let printed = format!("{request:?}");
    assert!(printed.contains(r#"volume_id: "vol-1""#), "{printed}");
    assert!(printed.contains(r#"secrets: {"password": ***}"#), "{printed}");
    assert!(!format!("{request:#?}").contains(SECRET), "the alternate form prints the secret");
}
