//! The mount tables of all mount namespaces, each read once, for those who must not overlook a mount.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::place::InUse;
use super::processes::{Task, is_gone};
use crate::host::mount_table;
use crate::model::Mount;

/// All mounts of all namespaces.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// Mount ids are unique in the whole kernel.
    pub(super) by_id: BTreeMap<u64, Mount>,
    /// The ids of each namespace, by its link's text (`mnt:[4026531841]`), with a task that lives there.
    pub(super) namespaces: BTreeMap<OsString, (Vec<u64>, Task)>,
}

/// Returns a path of a mount as a path inside its file system.
pub(super) fn inside(mount: &Mount, path: &Path) -> Option<PathBuf> {
    let below = path.strip_prefix(&mount.point).ok()?;
    // Joining an empty path would add a slash, which Path's comparison does not mind.
    Some(mount.root.join(below))
}

/// Reads the mount table of each namespace once.
pub(super) fn survey(tasks: &[Task]) -> Result<Mounts, InUse> {
    let mut by_namespace: BTreeMap<OsString, Vec<&Task>> = BTreeMap::new();
    for task in tasks {
        if let Some(namespace) = task.link("ns/mnt")? {
            by_namespace.entry(namespace.into_os_string()).or_default().push(task);
        }
    }
    let mut mounts = Mounts::default();
    for (namespace, members) in &by_namespace {
        let Some((table, task)) = whole_table(members)? else { continue };
        let ids = table.iter().map(|mount| mount.id).collect();
        mounts.by_id.extend(table.into_iter().map(|mount| (mount.id, mount)));
        mounts.namespaces.insert(namespace.clone(), (ids, task));
    }
    // A namespace can be kept by a bind mount of its file alone (snapd does that): nobody's mountinfo shows its mounts.
    let pinned = mounts.by_id.values().find(|mount| {
        mount.fs_type == "nsfs"
            && mount.root.to_str().is_some_and(|r| r.trim_start_matches('/').starts_with("mnt:["))
            && !mounts.namespaces.contains_key(mount.root.as_os_str())
    });
    match pinned {
        Some(mount) => Err(InUse(format!(
            "an unknown user: the mount namespace kept at {} cannot be looked into",
            mount.point.display()
        ))),
        None => Ok(mounts),
    }
}

/// Reads a namespace's table from a member that sees all of it: one that is not chrooted. `None`: all members are gone.
fn whole_table(members: &[&Task]) -> Result<Option<(Vec<Mount>, Task)>, InUse> {
    let mut chrooted = None;
    for task in members {
        let Some(root) = task.link("root")? else { continue };
        let text = match task.read("mountinfo") {
            Ok(text) => text,
            Err(e) if is_gone(&e) => continue,
            Err(e) => return Err(task.hidden("mountinfo", &e)),
        };
        let table = mount_table::parse(&text).map_err(|e| task.hidden("mountinfo", &e))?;
        // A root on a detached mount also reads as "/", but shows no mount at it.
        let whole = root == Path::new("/") && table.iter().any(|line| line.mount.point == Path::new("/"));
        if whole {
            return Ok(Some((table.into_iter().map(|line| line.mount).collect(), (*task).clone())));
        }
        chrooted = Some(task);
    }
    match chrooted {
        // Kernel threads on their way up and tasks that ended meanwhile are no members any more.
        None => Ok(None),
        Some(task) => Err(InUse(format!(
            "an unknown user: the mount namespace of {} can only be seen from its chroot",
            task.name()
        ))),
    }
}
