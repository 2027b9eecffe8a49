//! Who may use whom: the import table of ARCHITECTURE.md, kept by reading every `use` and path of `src/`.

#![expect(clippy::expect_used, reason = "a test: its helpers may fail loudly")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Our modules: what each may use. `crate::BoxFuture` is everybody's, and so is `crate::mutant`, which release builds lack.
const OURS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("error", &[]),
    ("mutant", &[]),
    ("proto", &[]),
    ("config", &["error", "model"]),
    ("host", &["error", "model"]),
    ("record", &["error", "model"]),
    ("csi", &["error", "model", "proto"]),
    ("manifest", &["error", "model", "host::path", "host::lease"]),
    ("desired", &["error", "model", "manifest"]),
    ("volumes", &["error", "model", "proto", "host", "csi"]),
    ("observe", &["error", "model", "host", "csi", "record"]),
    ("plan", &["model"]),
    ("execute", &["error", "model", "record", "volumes", "host", "csi"]),
    ("claims", &["error", "model", "record", "manifest"]),
    (
        "reconcile",
        // host, record, csi and manifest: the traits and values that it is given and hands on, no call of its own.
        &[
            "error", "model", "desired", "observe", "plan", "execute", "claims", "host", "record", "csi",
            "manifest",
        ],
    ),
    ("health", &["error", "model", "proto", "host", "csi"]),
    ("control", &["error", "model", "proto"]),
    ("telemetry", &["error", "model"]),
    // desired::quantity reads sizes as Kubernetes writes them; execute::fault is where tests let a process die; the driver's
    // administration prints as volumectl does.
    (
        "loop_driver",
        &[
            "error",
            "model",
            "proto",
            "host",
            "record",
            "csi",
            "desired::quantity",
            "execute::fault",
            "control::render",
            "control::units",
            "control::yaml",
        ],
    ),
    (
        "daemon",
        &[
            "config",
            "error",
            "model",
            "proto",
            "host",
            "record",
            "csi",
            "manifest",
            "desired",
            "volumes",
            "observe",
            "plan",
            "execute",
            "claims",
            "reconcile",
            "health",
            "control",
            "telemetry",
        ],
    ),
    ("bin/volumed", &["config", "daemon", "telemetry", "error"]),
    ("bin/volumectl", &["control", "model", "error"]),
    ("bin/volumed-csi-loop", &["loop_driver", "telemetry", "error"]),
];

/// Modules of the table that may not be there yet. Any other that is not found was not looked at.
const TO_COME: &[&str] = &["claims"];

/// Crates that only some modules may use.
const FENCED: &[(&str, &[&str])] = &[
    ("k8s_openapi", &["manifest", "desired", "claims"]),
    ("serde_saphyr", &["manifest"]),
    ("serde_ignored", &["manifest"]),
    ("tonic", &["proto", "csi", "control", "loop_driver"]),
    ("tonic_prost", &["proto"]),
    ("prost", &["proto"]),
    // The daemon binds and accepts sockets and answers signals; telemetry asks which stream stderr is.
    ("nix", &["host"]),
    ("rustix", &["host"]),
    ("libc", &["host"]),
    ("inotify", &["manifest", "csi"]),
    ("axum", &["telemetry"]),
    ("prometheus_client", &["telemetry"]),
    ("tracing_subscriber", &["telemetry"]),
    ("tracing_journald", &["telemetry"]),
    ("clap", &["bin/volumed", "bin/volumectl", "bin/volumed-csi-loop"]),
    ("anyhow", &["bin/volumed", "bin/volumectl", "bin/volumed-csi-loop"]),
    ("toml", &["config", "loop_driver"]),
    ("sd_notify", &["daemon", "loop_driver"]),
];

/// One source file: its module, its code without comments, strings and tests.
struct Source {
    path: PathBuf,
    module: String,
    code: String,
}

fn sources(root: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("src can be listed") {
            let path = entry.expect("src can be listed").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root).expect("it is below src").to_owned();
                // Test modules may use what the tests need.
                if relative.file_stem().is_some_and(|stem| {
                    let stem = stem.to_string_lossy();
                    stem == "tests" || stem.ends_with("_tests") || stem.ends_with("_properties")
                }) {
                    continue;
                }
                let text = fs::read_to_string(&path).expect("a source can be read");
                found.push(Source { module: module_of(&relative), code: code_of(&text), path: relative });
            }
        }
    }
    found
}

fn module_of(relative: &Path) -> String {
    let parts: Vec<String> =
        relative.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    match parts.as_slice() {
        [bin, name, ..] if bin == "bin" => format!("bin/{name}"),
        [module, ..] => module.clone(),
        [] => String::new(),
    }
}

/// Drops comments, and everything from `#[cfg(test)]` on `mod tests {` to the end of the file.
fn code_of(text: &str) -> String {
    let text = text.find("#[cfg(test)]\nmod tests {").map_or(text, |at| &text[..at]);
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// Returns the paths that follow `crate::` (two names deep), braces opened.
fn own_paths(code: &str) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for (at, prefix) in code.match_indices("crate::").chain(code.match_indices("volumed::")) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let end = group.find("};").unwrap_or(group.len());
            paths.extend(group[..end].split(',').map(|name| two_names(name.trim())));
        } else {
            paths.insert(two_names(rest));
        }
    }
    paths.retain(|path| !path.is_empty());
    paths
}

fn two_names(text: &str) -> String {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    text[..end].split("::").filter(|name| !name.is_empty()).take(2).collect::<Vec<_>>().join("::")
}

fn allowed(module: &str, path: &str, may: &[&str]) -> bool {
    let first = path.split("::").next().unwrap_or("");
    first == module
        || first == "BoxFuture"
        || first == "mutant"
        || may.iter().any(|ok| *ok == first || *ok == path)
}

fn own_violations(sources: &[Source]) -> Vec<String> {
    let table: BTreeMap<&str, &[&str]> = OURS.iter().copied().collect();
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| source.module != "lib") {
        let Some(may) = table.get(source.module.as_str()) else {
            wrong.push(format!(
                "{}: the module {} is not in the table",
                source.path.display(),
                source.module
            ));
            continue;
        };
        for path in own_paths(&source.code) {
            let is_module = table.contains_key(path.split("::").next().unwrap_or(""));
            if is_module && !allowed(&source.module, &path, may) {
                wrong.push(format!(
                    "{} uses {path}; {} may use {may:?}",
                    source.path.display(),
                    source.module
                ));
            }
        }
    }
    wrong
}

fn uses_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '"' | '.' | '-' | '/'))
            && after.starts_with("::")
    })
}

fn fence_violations(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, may) in FENCED {
        for source in sources {
            if uses_crate(&source.code, name) && !may.contains(&source.module.as_str()) {
                wrong.push(format!(
                    "{} uses the crate {name}, which belongs in {may:?}",
                    source.path.display()
                ));
            }
        }
    }
    wrong
}

#[test]
fn every_module_uses_only_what_the_table_allows() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let found: BTreeSet<&str> = sources.iter().map(|source| source.module.as_str()).collect();
    let listed = OURS.iter().map(|(module, _)| *module);
    let unseen: Vec<&str> = listed.filter(|m| !found.contains(m) && !TO_COME.contains(m)).collect();
    assert!(unseen.is_empty(), "no source was found of {unseen:?}");
    let mut wrong = own_violations(&sources);
    wrong.extend(fence_violations(&sources));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_violation_is_found() {
    let source = |module: &str, code: &str| Source {
        path: format!("{module}/x.rs").into(),
        module: module.to_owned(),
        code: code_of(code),
    };
    let bad = [
        source("plan", "use crate::host::Host;"),
        source("plan", "fn f() { crate::csi::x(); }"),
        source("model", "use crate::{error::Chain, BoxFuture};"),
        source("manifest", "use crate::host::Linux;"),
        source("manifest", "use crate::host::pathless;"),
        source("unlisted", "use crate::model::Step;"),
        // A module that is yet to come has its place all the same.
        source("plan", "use crate::claims::Claim;"),
        source("claims", "use crate::host::Host;"),
    ];
    for one in bad {
        assert_eq!(own_violations(&[one]).len(), 1);
    }
    assert_eq!(fence_violations(&[source("plan", "use nix::mount::umount;")]).len(), 1);
    let good = [
        source("plan", "// use crate::host::Host;\nuse crate::model::Step;"),
        source("manifest", "use crate::host::path::X;"),
        source("execute", "use crate::{record::Store, BoxFuture};"),
    ];
    assert!(own_violations(&good).is_empty());
}

#[test]
fn unsafe_code_stays_in_the_host_s_raw_files() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let with: Vec<String> = sources
        .iter()
        .filter(|source| source.code.contains("unsafe {") || source.code.contains("unsafe fn"))
        .map(|source| source.path.display().to_string())
        .collect();
    assert!(with.iter().all(|path| path.starts_with("host/")), "unsafe outside host: {with:?}");
}
