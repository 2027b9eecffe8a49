//! A manifest file: any bytes, read as YAML and as JSON.

use std::path::{Component, Path};
use std::sync::Arc;

use volumed::desired::{Node, ResolvedWant, Resolver};
use volumed::manifest::Manifests;
use volumed::manifest::fuzz::readings;
use volumed::model::{
    DiskSource, KeySource, Layout, Lifecycle, Lun, PodUid, Problem, PublicationId, RootPath, Wanted,
    WantedVolume,
};

/// The longest text of a problem, in bytes: its sentences are ours, and what it quotes is shortened.
const SENTENCE: usize = 2048;

/// A manifest that was good before the bytes took its place.
const BEFORE: &[u8] = br#"{"apiVersion": "v1", "kind": "Pod",
"metadata": {"name": "before", "uid": "before"}, "spec": {"containers": []}}"#;

/// Of `BEFORE`.
const BEFORE_UID: &str = "before";

/// The beginning of a file that is one Secret, as far as its data.
const SECRET: &str = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: s\ndata:\n";

/// What no message may repeat where it is a value of `SECRET`.
const VALUE: &str = "s3cr3t";

/// Every name that comes out of a file stays within its directory, every limit of the contract is kept, every problem says
/// where it is, and nothing goes because of what was not understood.
pub fn check(bytes: &[u8]) {
    for name in ["/m/x.yaml", "/m/x.json"] {
        let file = Path::new(name);
        let now = [(file, bytes)];
        let [first] = readings(&[&now]).try_into().expect("one reading");
        problems(file, bytes, &first);
        wishes(&first);
        what_was_there(file, bytes);
    }
}

fn problems(file: &Path, bytes: &[u8], manifests: &Manifests) {
    let text = std::str::from_utf8(bytes).ok();
    let blank = bytes.iter().all(|b| *b == 0 || b.is_ascii_whitespace());
    let breaks = |c: &char| matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let lines = 1 + String::from_utf8_lossy(bytes).chars().filter(breaks).count();
    for problem in &manifests.problems {
        let Problem { path, position, object, field, detail, remedy, warning: _ } = problem;
        assert_eq!(path, file, "{problem}");
        match position {
            Some((line, column)) => {
                let within = usize::try_from(*line).is_ok_and(|line| (1..=lines).contains(&line));
                assert!(within && *column >= 1, "{problem:?} is at no place of {lines} lines");
            }
            None => assert!(blank, "{problem:?} says no place"),
        }
        super::assert_fit_for_people("a detail", detail, SENTENCE);
        super::assert_fit_for_people("a remedy", remedy, SENTENCE);
        super::assert_fit_for_people("a problem", &problem.to_string(), 4 * SENTENCE);
        for name in object.iter().map(ToString::to_string).chain(field.clone()) {
            super::assert_fit_for_people("a name", &name, SENTENCE);
        }
    }
    if let Some(text) = text
        && is_secret_value(text)
    {
        let told = manifests.problems.iter().find(|p| p.to_string().contains(VALUE));
        assert!(told.is_none(), "a secret's value is told: {told:?}");
    }
}

/// Whether the text is `SECRET` and nothing else, with `VALUE` as a whole value once in its data.
fn is_secret_value(text: &str) -> bool {
    let Some(data) = text.strip_prefix(SECRET) else { return false };
    let Some((before, after)) = data.split_once(VALUE) else { return false };
    before.ends_with(": ")
        && after.starts_with('\n')
        && !after.contains(VALUE)
        && !data.contains("---")
        && !data.contains("kind")
}

fn wishes(manifests: &Manifests) {
    let layout = Layout::new("/root");
    let node = Node { name: "node".to_owned(), ..Node::default() };
    let resolved = Resolver::new(node).resolve(&Arc::new(manifests.clone()));
    for (uid, pod) in resolved.pods.iter() {
        assert_eq!(&pod.identity.uid, uid);
        for (name, volume) in &pod.volumes {
            match &volume.want {
                ResolvedWant::Held(hold) => {
                    super::assert_fit_for_people("a hold", &hold.detail, 2 * SENTENCE);
                    super::assert_fit_for_people("a hold's remedy", &hold.remedy, 2 * SENTENCE);
                }
                ResolvedWant::Wanted { id, wanted, .. } => {
                    assert!(wanted.names.contains(name), "{name} is not among {:?}", wanted.names);
                    paths(&layout, uid, id, wanted);
                    limits(manifests, wanted);
                }
            }
        }
    }
}

/// Everything that would be made lies where it belongs.
fn paths(layout: &Layout, pod: &PodUid, id: &PublicationId, wanted: &Wanted) {
    assert_eq!(&id.pod, pod);
    let below = |path: &RootPath, above: &str| {
        let path = path.as_path();
        assert!(path.components().all(|c| matches!(c, Component::Normal(_))), "{}", path.display());
        let names = path.iter().map(std::ffi::OsStr::len);
        assert!(names.clone().all(|length| length <= 255), "{}", path.display());
        let rest =
            path.strip_prefix(above).unwrap_or_else(|_| panic!("{} is not in {above}", path.display()));
        assert!(rest.iter().count() >= 1);
    };
    let volumes = format!("pods/{}/volumes/{}", id.pod.as_str(), id.plugin.directory());
    below(&layout.publication(id), &volumes);
    below(&layout.target(id), &volumes);
    match &wanted.volume {
        WantedVolume::Csi(csi) => {
            let driver = format!("plugins/kubernetes.io/csi/{}", csi.driver.as_str());
            below(&layout.csi_staging(&csi.driver, &csi.handle), &driver);
            let devices = "plugins/kubernetes.io/csi/volumeDevices";
            for path in [layout.block_staging(&id.spec), layout.block_target(id), layout.block_map(id)] {
                below(&path, devices);
            }
        }
        WantedVolume::Local(local) => {
            assert!(local.path.is_absolute(), "{}", local.path.display());
            assert!(!local.path.components().any(|c| c == Component::ParentDir), "{}", local.path.display());
        }
        WantedVolume::Device(device) => {
            let (mounts, devices) = match &device.disk {
                DiskSource::Path(path) => {
                    assert!(path.is_absolute(), "{}", path.display());
                    assert!(!path.components().any(|c| c == Component::ParentDir), "{}", path.display());
                    (
                        "plugins/kubernetes.io/local-volume/mounts",
                        "plugins/kubernetes.io~local-volume/volumeDevices",
                    )
                }
                DiskSource::Lun(Lun::Iscsi(_)) => {
                    ("plugins/kubernetes.io/iscsi/iface-default", "plugins/kubernetes.io/iscsi/volumeDevices")
                }
                DiskSource::Lun(Lun::Fc(_)) => {
                    ("plugins/kubernetes.io/fc", "plugins/kubernetes.io/fc/volumeDevices")
                }
            };
            let staged = layout.device_staging(&device.disk, &id.spec);
            below(&staged, mounts);
            if device.disk.lun().is_some() {
                // One name, whatever is in it: nothing of it is a directory of its own.
                assert_eq!(staged.as_path().parent(), Some(Path::new(mounts)), "{staged:?}");
            }
            let raw = layout.raw_staging(&device.disk, &id.spec);
            for path in [raw, layout.raw_device(id), layout.block_target(id), layout.block_map(id)] {
                below(&path, devices);
            }
            if let Some(KeySource::Credential(name)) = &device.key {
                assert!(!name.is_empty() && !name.contains('/') && name != "." && name != "..", "{name}");
            }
        }
        WantedVolume::Nfs(nfs) => {
            assert!(
                nfs.path.starts_with('/') && !nfs.path.split('/').any(|name| name == ".."),
                "{}",
                nfs.path
            );
            assert!(!nfs.server.is_empty() && !nfs.server.starts_with('-'), "{}", nfs.server);
            let odd = |c: char| c.is_whitespace() || c.is_control() || c == ',' || c == '/';
            assert!(!nfs.server.contains(odd), "{}", nfs.server);
        }
        WantedVolume::EmptyDir { .. } => {
            below(&layout.empty_dir_marker(&id.pod, &id.spec), &format!("pods/{}/plugins", id.pod.as_str()));
        }
        WantedVolume::HostPath { path } => {
            assert!(path.is_absolute(), "{}", path.display());
            assert!(!path.components().any(|c| c == Component::ParentDir), "{}", path.display());
        }
    }
}

/// What is longer than the contract lets a driver expect (csi.md 2.1) is warned of: a kubelet would send it.
fn limits(manifests: &Manifests, wanted: &Wanted) {
    let WantedVolume::Csi(csi) = &wanted.volume else { return };
    let warned = |field: &str| {
        let about = |p: &&Problem| p.warning && p.field.as_deref().is_some_and(|f| f.ends_with(field));
        manifests.problems.iter().any(|p| about(&p))
    };
    assert!(!csi.handle.is_empty(), "no handle");
    let context: usize = csi.volume_context.iter().map(|(k, v)| k.len() + v.len()).sum();
    let flags: usize = csi.mount_flags.iter().map(String::len).sum();
    for (field, length, limit) in [
        ("volumeHandle", csi.handle.len(), 128),
        ("volumeAttributes", context, 4096),
        ("mountOptions", flags, 4096),
    ] {
        assert!(length <= limit || warned(field), "{field} has {length} bytes, and nobody was warned");
    }
    if csi.lifecycle == Lifecycle::Ephemeral {
        assert!(csi.handle.starts_with("csi-") && csi.handle.len() == 68, "{}", csi.handle);
    }
}

/// The file took the place of a good one: its pod stays as long as the file may still mean it.
fn what_was_there(file: &Path, bytes: &[u8]) {
    let uid = PodUid::new(BEFORE_UID).expect("a name");
    let (before, now) = ([(file, BEFORE)], [(file, bytes)]);
    let [good, second, third] = readings(&[&before, &now, &now]).try_into().expect("three readings");
    assert!(good.reading.is_complete() && good.objects.pods.contains_key(&uid));
    assert!(second.objects.pods.contains_key(&uid), "gone after one reading");
    if !third.reading.is_complete() {
        assert!(third.objects.pods.contains_key(&uid), "gone though not everything was understood");
    }
}
