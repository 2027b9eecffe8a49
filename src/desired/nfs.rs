//! NFS volumes: a directory of a server, named by a PersistentVolume or by the pod itself (kubelet.md 4.7).

use std::net::Ipv6Addr;
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{NFSVolumeSource, PersistentVolumeSpec};

use super::csi::Bound;
use super::index::Index;
use super::pod::{Place, PodView, Usage};
use super::{affinity, hold, modes};
use crate::model::{Hold, NfsWant, Plugin, VolumeKey, VolumeMode, WantedVolume};

/// Options that would make something else of the mount than one that is there when mount.nfs has ended: it would be another
/// mount's copy, an old one changed, one that a process makes later, or one that mount(8) alone understands.
const OF_OTHER_MOUNTS: [&str; 18] = [
    "bind",
    "rbind",
    "move",
    "remount",
    "loop",
    "bg",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "unbindable",
    "runbindable",
    "user",
    "users",
    "owner",
    "group",
];

/// Returns the volume behind a PV with an nfs source.
///
/// # Errors
/// The hold, when it is not this node's, its server, path or options cannot be what is meant, or it is to be a block device.
pub(super) fn persistent(
    index: &Index<'_>,
    pod: &PodView<'_>,
    usage: &Usage,
    bound: &Bound<'_>,
    spec: &PersistentVolumeSpec,
    source: &NFSVolumeSource,
) -> Result<Place, Hold> {
    let name = bound.name;
    let field = format!("PersistentVolume {name}: spec.nfs");
    let (server, path) = export(&field, source)?;
    affinity::check(name, spec, index.node)?;
    if modes::volume_mode(name, spec, usage)? == VolumeMode::Block {
        return Err(hold::invalid(
            format!("PersistentVolume {name}: an NFS volume of volumeMode Block"),
            "use volumeMode Filesystem: an NFS server has directories, no block devices",
        ));
    }
    let mount_flags = spec.mount_options.clone().unwrap_or_default();
    check_options(name, &mount_flags)?;
    let access = modes::access(name, spec)?;
    let want = NfsWant {
        server,
        path,
        mount_flags,
        access_mode: access.first.to_owned(),
        read_only: bound.read_only || source.read_only == Some(true) || access.readers_only,
        single_pod: access.single_pod,
    };
    let id = pod.publication(Plugin::Nfs, name)?;
    Ok(Place { key: VolumeKey::nfs(&id.spec), id, volume: WantedVolume::Nfs(Box::new(want)) })
}

/// Returns the volume that a pod itself names.
///
/// # Errors
/// The hold, when its server or path cannot be what is meant.
pub(super) fn inline(pod: &PodView<'_>, name: &str, source: &NFSVolumeSource) -> Result<Place, Hold> {
    let (server, path) = export(&format!("{}: volume {name}: nfs", pod.identity), source)?;
    let want = NfsWant {
        server,
        path,
        mount_flags: Vec::new(),
        access_mode: modes::Access::INLINE.first.to_owned(),
        read_only: source.read_only == Some(true),
        single_pod: false,
    };
    let id = pod.publication(Plugin::Nfs, name)?;
    Ok(Place { key: VolumeKey::of_pod(&id), id, volume: WantedVolume::Nfs(Box::new(want)) })
}

/// Returns the server, an IPv6 address without its brackets, and the path.
fn export(field: &str, source: &NFSVolumeSource) -> Result<(String, String), Hold> {
    let server = source.server.strip_prefix('[').and_then(|s| s.strip_suffix(']')).unwrap_or(&source.server);
    // Of a link-local address it also says the interface.
    let is_ipv6 = server.split('%').next().is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, ',' | '/' | '[' | ']');
    let problem = if server.is_empty() {
        Some("is empty")
    } else if server.contains(odd) || server.starts_with('-') {
        Some("is no host name or address")
    } else if server.contains(':') && !is_ipv6 {
        Some("has a colon and is no IPv6 address")
    } else if source.server.starts_with('[') && !is_ipv6 {
        Some("has brackets and is no IPv6 address")
    } else {
        None
    };
    if let Some(problem) = problem {
        return Err(hold::invalid(
            format!("{field}.server {:?} {problem}", source.server),
            "write the server's name or address alone; a port goes into the PersistentVolume's spec.mountOptions, as port=N",
        ));
    }
    let path = Path::new(&source.path);
    let problem = if !path.is_absolute() {
        Some("is not an absolute path")
    } else if source.path.contains(char::is_control) {
        Some("has a control character")
    } else if path.components().any(|part| part == Component::ParentDir) {
        Some("has a ..")
    } else {
        None
    };
    match problem {
        Some(problem) => Err(hold::invalid(
            format!("{field}.path {:?} {problem}", source.path),
            "write the absolute path that the server exports, without ..",
        )),
        None => Ok((server.to_owned(), source.path.clone())),
    }
}

/// Refuses options that are not for mount.nfs.
fn check_options(name: &str, options: &[String]) -> Result<(), Hold> {
    for (i, given) in options.iter().enumerate() {
        let refused = |problem: String, remedy: &str| {
            Err(hold::invalid(format!("PersistentVolume {name}: spec.mountOptions[{i}] {problem}"), remedy))
        };
        if given.contains(char::is_control) {
            return refused(
                format!("{given:?} has a control character"),
                "write the option's characters alone",
            );
        }
        for option in given.split(',').map(str::trim) {
            let key = option.split('=').next().unwrap_or_default();
            if OF_OTHER_MOUNTS.contains(&key) || key.starts_with("x-") || key.starts_with("X-") {
                return refused(
                    format!("{option:?} is not for an NFS mount that lasts as long as its pod"),
                    "remove the option; what a pod's mount may have is in nfs(5)",
                );
            }
        }
    }
    Ok(())
}
