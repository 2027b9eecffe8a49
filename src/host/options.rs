//! The options of mount(8): sorted out for the kernel, told alike however they are written, and looked for in what is mounted.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

/// The options, sorted out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// Those of the mount.
    pub(super) attributes: MountAttrFlags,
    /// The file system itself, not only this mount.
    pub(super) read_only: bool,
    /// The file system's own.
    pub(super) own: Vec<String>,
}

impl Options {
    /// Takes options as they are given: each may be several, with commas between them.
    pub(super) fn of(given: &[String]) -> Self {
        let mut found = Self { attributes: MountAttrFlags::empty(), read_only: false, own: Vec::new() };
        for option in each(given) {
            match option {
                "rw" | "defaults" | "suid" | "dev" | "exec" | "atime" | "relatime" | "diratime" => {}
                "ro" => found.read_only = true,
                "nosuid" => found.attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID,
                "nodev" => found.attributes |= MountAttrFlags::MOUNT_ATTR_NODEV,
                "noexec" => found.attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC,
                "noatime" => found.attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME,
                "strictatime" => found.attributes |= MountAttrFlags::MOUNT_ATTR_STRICTATIME,
                "nodiratime" => found.attributes |= MountAttrFlags::MOUNT_ATTR_NODIRATIME,
                own => found.own.push(own.to_owned()),
            }
        }
        found
    }

    /// Returns those that every file system has.
    pub(super) fn common(&self) -> Self {
        Self { attributes: self.attributes, read_only: self.read_only, own: Vec::new() }
    }
}

/// What a bind mount has otherwise than its source; by default nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    set: MountAttrFlags,
    clear: MountAttrFlags,
}

impl Default for Attributes {
    fn default() -> Self {
        Self { set: MountAttrFlags::empty(), clear: MountAttrFlags::empty() }
    }
}

impl Attributes {
    /// Takes those of the source, and of these options those that are a mount's.
    pub fn also(options: &[String], read_only: bool) -> Self {
        let mut set = Options::of(options).attributes;
        set.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
        // It is one of several values, and takes the place of another.
        let access_times = MountAttrFlags::MOUNT_ATTR_NOATIME | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
        let clear = if set.intersects(access_times) {
            MountAttrFlags::MOUNT_ATTR__ATIME
        } else {
            MountAttrFlags::empty()
        };
        Self { set, clear }
    }

    /// Takes those of these options, whatever the source has; read-only stays as it is there.
    pub fn only(options: &[String]) -> Self {
        let clear = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR__ATIME
            | MountAttrFlags::MOUNT_ATTR_NODIRATIME;
        Self { set: Options::of(options).attributes, clear }
    }

    /// As `only`, and read-only where these options say so.
    pub fn exactly(options: &[String]) -> Self {
        let mut only = Self::only(options);
        only.set.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only(options));
        only
    }

    /// Returns whether what is mounted has them.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn are_on(self, mounted: &OwnedFd) -> Result<bool, Errno> {
        let found = rustix::fs::fstatvfs(mounted)?.f_flag;
        let read_only = found.contains(StatVfsMountFlags::RDONLY)
            || !self.set.contains(MountAttrFlags::MOUNT_ATTR_RDONLY);
        let others = self.set - MountAttrFlags::MOUNT_ATTR_RDONLY;
        Ok(read_only && attributes(found).contains(others))
    }

    /// Returns what is set, and what is cleared before that.
    pub(in crate::host) fn bits(self) -> (u64, u64) {
        (self.set.bits().into(), self.clear.bits().into())
    }
}

/// Returns whether options ask for what nobody can write to.
pub fn read_only(given: &[String]) -> bool {
    Options::of(given).read_only
}

/// Returns the options that are the file system's own: all of its mounts have them.
pub fn of_the_file_system(given: &[String]) -> BTreeSet<String> {
    Options::of(given).own.into_iter().collect()
}

/// Returns options one by one and in order: of two lists that say the same it is the same.
pub fn ordered(given: &[String]) -> BTreeSet<&str> {
    each(given).collect()
}

fn each(given: &[String]) -> impl Iterator<Item = &str> {
    given.iter().flat_map(|option| option.split(',')).map(str::trim).filter(|option| !option.is_empty())
}

/// What can be seen of how something is mounted: not the file system's own options, of which the kernel shows some, and in words
/// of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Nobody can write to it: because of the mount, or of its file system.
    pub read_only: bool,
    /// The group of its root directory.
    pub group: u32,
    attributes: MountAttrFlags,
}

impl Seen {
    /// Returns whether it may have been mounted with these options.
    pub fn goes_with(&self, options: &[String]) -> bool {
        let wanted = Options::of(options);
        self.attributes == wanted.attributes && (self.read_only || !wanted.read_only)
    }
}

impl Seen {
    /// Looks at a mount by a descriptor of its root directory.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn of(root: &OwnedFd) -> Result<Self, Errno> {
        let flags = rustix::fs::fstatvfs(root)?.f_flag;
        let group = rustix::fs::fstat(root)?.st_gid;
        let read_only = flags.contains(StatVfsMountFlags::RDONLY);
        Ok(Self { read_only, group, attributes: attributes(flags) })
    }
}

fn attributes(flags: StatVfsMountFlags) -> MountAttrFlags {
    let mut found = MountAttrFlags::empty();
    for (flag, attribute) in [
        (StatVfsMountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (StatVfsMountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (StatVfsMountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (StatVfsMountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    ] {
        if flags.contains(flag) {
            found |= attribute;
        }
    }
    // Without an option it is relatime.
    if !flags.intersects(StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME) {
        found |= MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(given: &[&str]) -> Vec<String> {
        given.iter().map(|&option| option.to_owned()).collect()
    }

    #[test]
    fn options_are_the_same_however_they_are_written() {
        let (one, other) = (
            options(&["noatime,nodev", "errors=panic"]),
            options(&["errors=panic", "nodev ", "", "noatime"]),
        );
        assert_eq!(ordered(&one), ordered(&other));
        assert_ne!(ordered(&one), ordered(&options(&["noatime,nodev"])));
    }

    #[test]
    fn what_is_mounted_shows_the_attributes_of_its_options() {
        let seen = |flags| Seen { read_only: false, group: 0, attributes: attributes(flags) };
        let relatime = seen(StatVfsMountFlags::RELATIME);
        let noatime = seen(StatVfsMountFlags::NOATIME | StatVfsMountFlags::NODEV);
        let strict = seen(StatVfsMountFlags::empty());
        for (mounted, given, fits) in [
            (relatime, &["discard"][..], true),
            (relatime, &["noatime"], false),
            (relatime, &["strictatime"], false),
            (relatime, &["ro"], false),
            (noatime, &["nodev,noatime"], true),
            (noatime, &["noatime"], false),
            (strict, &["strictatime"], true),
            (strict, &[], false),
        ] {
            assert_eq!(mounted.goes_with(&options(given)), fits, "{mounted:?} {given:?}");
        }
        assert!(Seen { read_only: true, ..relatime }.goes_with(&options(&["ro"])));
    }
}
