//! The recordings under `tests/fixtures/kubelet-1.36`: what they say, in the form the tests compare with.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// Where the recorded kubelet had its root directory.
pub const THEIR_ROOT: &str = "/var/lib/kubelet-capture";

/// One line of `root.jsonl`, or of what lies below our own root.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Entry {
    pub path: String,
    pub kind: String,
    pub mode: String,
    pub uid: u32,
    pub gid: u32,
    pub target: Option<String>,
    pub content: Option<String>,
    /// In place of `content` where it is no text.
    pub hex: Option<String>,
}

/// Everything below a root directory, by path relative to it.
pub type Tree = BTreeMap<String, Entry>;

/// A call that a driver got: `NodeStageVolume`, ... and the request, paths relative to the root directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub driver: String,
    pub method: String,
    pub request: Value,
}

impl Call {
    /// Its one text, to sort and compare by.
    pub fn text(&self) -> String {
        format!("{} {} {}", self.driver, self.method, self.request)
    }
}

fn file(recording: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kubelet-1.36").join(recording).join(name)
}

fn read(recording: &str, name: &str) -> String {
    let path = file(recording, name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns all phases that there are.
pub fn phases() -> BTreeSet<String> {
    let names = |directory: &Path| -> Vec<String> {
        let entries =
            std::fs::read_dir(directory).expect("the recordings").map(|entry| entry.expect("an entry"));
        let directories = entries.filter(|entry| entry.file_type().expect("a type").is_dir());
        directories.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect()
    };
    let all = file("", "");
    let of = |scenario: String| {
        let phases = names(&all.join(&scenario));
        phases.into_iter().map(move |phase| format!("{scenario}/{phase}"))
    };
    names(&all).into_iter().flat_map(of).collect()
}

/// Returns all API objects of a phase (`a/running`).
pub fn objects(recording: &str) -> Vec<Value> {
    let all: BTreeMap<String, Vec<Value>> =
        serde_json::from_str(&read(recording, "objects.json")).expect("lists of objects");
    let mut all: Vec<Value> = all.into_values().flatten().collect();
    // Local volumes of a kind that volumed does not support, so that it waits for them. A kubelet's are not taken over in any case: of
    // a directory that is refused as foreign (root_local), which is not at rest; and of the devices that some of them are
    // this host may have others by the same names, which no test may touch.
    for object in &mut all {
        if let Some(local) = object["spec"].get_mut("local") {
            local["fsType"] = Value::from("zfs");
        }
    }
    all
}

/// Returns what the kubelet's root held in a phase, as seen without the volumes' mounts. A link that leads into the root
/// begins with `<root>`.
pub fn root(recording: &str) -> Tree {
    let entries = read(recording, "root.jsonl");
    let entries = entries.lines().map(|line| serde_json::from_str::<Entry>(line).expect("an entry"));
    let relative = |mut entry: Entry| {
        entry.target = entry.target.map(|target| below_root(&target, THEIR_ROOT));
        (entry.path.clone(), entry)
    };
    entries.map(relative).collect()
}

fn below_root(target: &str, root: &str) -> String {
    match target.strip_prefix(root) {
        Some(inside) => format!("<root>{inside}"),
        None => target.to_owned(),
    }
}

/// Returns the mounts of a phase: paths relative to the root, each with `ro` or `rw`.
pub fn mounts(recording: &str) -> BTreeSet<(String, String)> {
    mounts_below(&mountinfo(recording), THEIR_ROOT)
}

/// Returns the kubelet's mount table at and below the root; nothing where the phase has none (it was rebooted).
pub fn mountinfo(recording: &str) -> String {
    optional(recording, "mountinfo.txt")
}

/// Returns the loop devices of a phase and their backing files.
pub fn loops(recording: &str) -> Vec<(String, String)> {
    let table = optional(recording, "losetup.txt");
    let rows = table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_whitespace();
        Some((columns.next()?.to_owned(), columns.last()?.to_owned()))
    });
    rows.collect()
}

/// Returns the files of the root, relative to it, that a loop device held.
pub fn locked(recording: &str) -> BTreeSet<PathBuf> {
    let backing = loops(recording).into_iter().map(|(_, backing)| PathBuf::from(backing));
    backing.filter_map(|path| Some(path.strip_prefix(THEIR_ROOT).ok()?.to_owned())).collect()
}

fn optional(recording: &str, name: &str) -> String {
    let path = file(recording, name);
    if path.exists() { read(recording, name) } else { String::new() }
}

/// Returns the mount points strictly below a directory in the text of a mountinfo file.
pub fn mounts_below(mountinfo: &str, root: &str) -> BTreeSet<(String, String)> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(4);
        let (point, options) = (fields.next()?, fields.next()?);
        let access = options.split(',').next()?;
        Some((point.strip_prefix(root)?.strip_prefix('/')?.to_owned(), access.to_owned()))
    });
    mounts.collect()
}

/// Returns the requests that a scenario's drivers got, in order of time for each driver.
pub fn calls(scenario: &str, drivers: &[&str]) -> Vec<Call> {
    let mut calls = Vec::new();
    for driver in drivers {
        for line in read(scenario, &format!("driver-{driver}.jsonl")).lines() {
            let line: Value = serde_json::from_str(line).expect("a call");
            let request = line.get("req").expect("this driver recorded its requests");
            let method = line["m"].as_str().expect("a name").to_owned();
            let request = relative(request, THEIR_ROOT);
            calls.push(Call { driver: (*driver).to_owned(), method, request });
        }
    }
    calls
}

/// Returns method and volume of every call of a driver that recorded only these.
pub fn short_calls(scenario: &str, driver: &str) -> Vec<(String, String)> {
    let lines = read(scenario, &format!("driver-{driver}.jsonl"));
    let calls = lines.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("a call");
        let method = line["m"].as_str().and_then(|m| m.rsplit('/').next()).expect("a name");
        (method.to_owned(), line["vol"].as_str().expect("a volume").to_owned())
    });
    calls.collect()
}

/// Returns a request with its paths relative to a root directory.
pub fn relative(request: &Value, root: &str) -> Value {
    let mut request = request.clone();
    for field in ["stagingTargetPath", "targetPath", "volumePath"] {
        if let Some(path) = request.get_mut(field) {
            let text = path.as_str().expect("a path");
            let inside = text.strip_prefix(root).and_then(|p| p.strip_prefix('/'));
            *path = inside.unwrap_or_else(|| panic!("{text} is not below {root}")).into();
        }
    }
    request
}

/// Reads what really lies below a directory that has no mounts in it, as a view of `shown`.
pub fn read_tree(root: &Path, shown: &Path) -> Tree {
    let shown = shown.to_str().expect("UTF-8");
    let mut tree = Tree::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let meta = std::fs::symlink_metadata(&path).expect("it is there");
            let kind = match () {
                () if meta.is_dir() => "directory",
                () if meta.is_symlink() => "link",
                () if meta.is_file() => "file",
                () => "other",
            };
            let name = path.strip_prefix(root).ok().and_then(Path::to_str).expect("UTF-8").to_owned();
            let (content, hex) = match meta.is_file().then(|| std::fs::read(&path).expect("a file")) {
                None => (None, None),
                Some(bytes) => match String::from_utf8(bytes) {
                    Ok(text) => (Some(text), None),
                    Err(other) => (None, Some(hex(other.as_bytes()))),
                },
            };
            let entry = Entry {
                path: name.clone(),
                kind: kind.to_owned(),
                mode: format!("{:04o}", meta.permissions().mode() & 0o7777),
                uid: meta.uid(),
                gid: meta.gid(),
                target: meta.is_symlink().then(|| {
                    let target = std::fs::read_link(&path).expect("a link");
                    below_root(target.to_str().expect("UTF-8"), shown)
                }),
                content,
                hex,
            };
            tree.insert(name, entry);
            if meta.is_dir() {
                directories.push(path);
            }
        }
    }
    tree
}

/// Returns bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
