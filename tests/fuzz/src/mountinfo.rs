//! The kernel's mount table, and whatever else a `/proc` of a container runtime may show in its place.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use volumed::host::parse_mountinfo;
use volumed::model::{Mount, MountTable, MountsAt};

/// No line is left out; what is understood is understood the same way again when it is written as the kernel does; and the
/// table finds every mount at its path and below its parents.
pub fn check(bytes: &[u8]) {
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()).count();
    let mounts = match parse_mountinfo(bytes) {
        Ok(mounts) => mounts,
        Err(error) => return super::assert_fit_for_people("the error", &error.to_string(), 2048),
    };
    assert_eq!(mounts.len(), lines, "a line was left out");
    for mount in &mounts {
        // What is left of "//deleted//deleted", which no kernel writes, is taken off once more.
        if mount.root.as_os_str().as_bytes().ends_with(b"//deleted") {
            continue;
        }
        let written = written(mount);
        let again = parse_mountinfo(&written);
        let shown = String::from_utf8_lossy(&written);
        assert_eq!(again.ok().as_deref(), Some(std::slice::from_ref(mount)), "written as {shown:?}");
        assert!(mount.identity().same_but_device(&mount.identity()));
    }

    let table = MountTable::new(mounts.clone());
    assert_eq!(table.iter().count(), lines, "the table has another number of mounts");
    assert!(table.changes_since(&table).is_empty(), "a table differs from itself");
    let from_nothing = MountTable::default();
    let changes = table.changes_since(&from_nothing);
    assert!(changes.is_sorted(), "changes are not ordered");
    assert_eq!(from_nothing.changes_since(&table), changes, "coming and going are not the same places");
    for mount in &mounts {
        let found = match table.at(&mount.point) {
            MountsAt::None => false,
            MountsAt::One(one) => one == mount,
            MountsAt::Stacked(more) => more.len() > 1 && more.contains(mount),
        };
        assert!(found, "nothing is found at {}", mount.point.display());
        assert!(changes.contains(&mount.point.as_path()));
        let parent = mount.point.parent().unwrap_or(Path::new("/"));
        let below = |above: &Path| table.below(above).filter(|m| *m == mount).count();
        assert_eq!(below(&mount.point), 0, "{} is below itself", mount.point.display());
        if mount.point.is_absolute() && mount.point != Path::new("/") {
            assert!(below(parent) > 0, "{} is not below its parent", mount.point.display());
        }
        assert!(table.below(parent).all(|m| m.point.starts_with(parent) && m.point != parent));
    }
}

/// Writes a line as the kernel does.
fn written(mount: &Mount) -> Vec<u8> {
    let Mount { id, parent, device: (major, minor), root, point, fs_type, source, read_only } = mount;
    let mut line = format!("{id} {parent} {major}:{minor} ").into_bytes();
    escape(&mut line, root.as_os_str().as_bytes());
    line.push(b' ');
    escape(&mut line, point.as_os_str().as_bytes());
    line.extend(if *read_only { b" ro,relatime" } else { b" rw,relatime" });
    line.extend(if *read_only { b" shared:7".as_slice() } else { b"" });
    line.extend(b" - ");
    escape(&mut line, fs_type.as_bytes());
    line.push(b' ');
    escape(&mut line, source.as_bytes());
    line.extend(b" rw\n");
    line
}

fn escape(line: &mut Vec<u8>, name: &[u8]) {
    for byte in name {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => line.extend(format!("\\{byte:03o}").bytes()),
            other => line.push(*other),
        }
    }
}
