//! Compiles `proto/` without a system protoc and generates the messages, clients and servers of `src/proto`.
//!
//! The contract marks the fields that hold credentials (`csi_secret`). This script reads the marks from the compiled
//! descriptors, takes the derived `Debug` away from every message that has such a field and writes one that hides the values:
//! a secret field that is added to the contract is hidden without anybody thinking of it.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use protox::prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor, Value};

const CONTRACTS: [&str; 3] = ["csi.proto", "pluginregistration.proto", "volumed.proto"];

/// Fields that may hold credentials although the contract does not mark them: mount options, where some drivers take
/// passwords (csi.md 2.8), and the context of a publication, where the pod's service account tokens go (csi.md 2.10).
const SECRET_TOO: [&str; 2] =
    ["csi.v1.VolumeCapability.MountVolume.mount_flags", "csi.v1.NodePublishVolumeRequest.volume_context"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(CONTRACTS)?;
    let pool = compiler.descriptor_pool();
    let redacted = messages_with_secrets(&pool)?;

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets no OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    fs::write(out.join("csi_redacted.rs"), redacting_debug(&redacted)?)?;
    write_test_support(&out, &pool)?;

    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .btree_map(".")
        .skip_debug(redacted.iter().map(|message| format!(".{}", message.full_name())))
        .type_attribute(".volumed.v1", "#[derive(serde::Serialize)]")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// Returns the messages that have a field whose value must never be printed.
///
/// Messages that contain one of these need nothing: their derived `Debug` asks ours.
fn messages_with_secrets(pool: &DescriptorPool) -> Result<Vec<MessageDescriptor>, Box<dyn Error>> {
    let mut unseen = BTreeSet::from(SECRET_TOO);
    let mut found = Vec::new();
    for message in pool.all_messages() {
        let mut secrets = false;
        for field in message.fields() {
            unseen.remove(field.full_name());
            secrets |= is_secret(&field)?;
        }
        if secrets && message.package_name() != "csi.v1" {
            return Err(format!(
                "{} has a secret field, which only csi.v1 is built for",
                message.full_name()
            )
            .into());
        }
        if secrets {
            found.push(message);
        }
    }
    if let Some(field) = unseen.first() {
        return Err(format!("build.rs names {field}, which the contract does not have").into());
    }
    Ok(found)
}

fn is_secret(field: &FieldDescriptor) -> Result<bool, Box<dyn Error>> {
    let mark = field
        .parent_pool()
        .get_extension_by_name("csi.v1.csi_secret")
        .ok_or("the contract does not declare csi_secret")?;
    let marked = matches!(*field.options().get_extension(&mark), Value::Bool(true));
    Ok(marked || SECRET_TOO.contains(&field.full_name()))
}

/// Writes a `Debug` for each of the messages, to be included in the module of the generated ones.
fn redacting_debug(messages: &[MessageDescriptor]) -> Result<String, Box<dyn Error>> {
    let mut code = String::new();
    for message in messages {
        let name = message.full_name();
        writeln!(code, "impl ::core::fmt::Debug for {} {{", rust_path(message))?;
        writeln!(code, "    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{")?;
        writeln!(code, "        f.debug_struct({:?})", message.name())?;
        for field in message.fields() {
            if field.containing_oneof().is_some() {
                return Err(
                    format!("{name} has a oneof beside a secret field: teach build.rs to print it").into()
                );
            }
            // A secret field of a type that `Hidden` does not know, or named like a Rust keyword, does not compile.
            let value = format!("&self.{}", field.name());
            let value = if is_secret(&field)? { format!("&super::Hidden({value})") } else { value };
            writeln!(code, "            .field({:?}, {value})", field.name())?;
        }
        writeln!(code, "            .finish()\n    }}\n}}")?;
    }
    Ok(code)
}

/// Writes what the tests of `src/proto` need to try every message by its name: a function that decodes and prints one, and
/// the names with nothing left out.
fn write_test_support(out: &Path, pool: &DescriptorPool) -> Result<(), Box<dyn Error>> {
    let ours = |package: &str| package == "csi.v1";
    let mut code = String::from(
        "/// Decodes `bytes` as the CSI message `name` and prints it with `Debug`.\n\
         fn debug_of(name: &str, bytes: &[u8]) -> String {\n    match name {\n",
    );
    for message in pool.all_messages().filter(|m| ours(m.package_name()) && !m.is_map_entry()) {
        writeln!(
            code,
            "        {:?} => format!(\"{{:?}}\", <csi::{} as prost::Message>::decode(bytes).unwrap()),",
            message.full_name(),
            rust_path(&message)
        )?;
    }
    code.push_str("        _ => panic!(\"no message {name}\"),\n    }\n}\n");
    fs::write(out.join("csi_debug_of.rs"), code)?;
    Ok(())
}

/// Returns the path of a generated type below its package's module, as prost names it: `volume_capability::MountVolume`.
fn rust_path(message: &MessageDescriptor) -> String {
    let mut path = upper_camel(message.name());
    let mut parent = message.parent_message();
    while let Some(outer) = parent {
        path = format!("{}::{path}", snake(outer.name()));
        parent = outer.parent_message();
    }
    path
}

/// `RPC` is `Rpc`; every other name of the contract is upper camel case already.
fn upper_camel(name: &str) -> String {
    match name.split_at_checked(1) {
        Some((first, rest)) if name.chars().all(char::is_uppercase) => {
            format!("{first}{}", rest.to_lowercase())
        }
        _ => name.to_owned(),
    }
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}
