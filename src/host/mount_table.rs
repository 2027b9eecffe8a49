//! `/proc/<pid>/mountinfo` as values (proc(5)): octal escapes, optional fields, names that are not UTF-8, and roots that
//! were deleted under their mount.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::model::{Mount, MountTable};

/// What the kernel puts after the root of a bind mount whose source directory was removed. A name has no `/`, so it cannot
/// be part of one. The mount is the one it was, so its root is kept without it.
const DELETED: &[u8] = b"//deleted";

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// What the model knows of it.
    pub(super) mount: Mount,
    /// The peer group (`shared:N`): mounts made below it reach all mounts with the same number.
    pub(super) peer_group: Option<u64>,
    /// The peer group that this mount follows (`master:N`): mounts made and taken away there are here too, not the other
    /// way round.
    pub(super) master: Option<u64>,
}

/// Reads a whole mountinfo. A line that is not understood is an error and not left out: a mount that is not seen could be
/// taken for none.
///
/// # Errors
/// `InvalidData` with the line's number and beginning.
pub(super) fn parse(text: &[u8]) -> io::Result<Vec<Line>> {
    /// Shown of a line, in characters.
    const SHOWN: usize = 120;
    (1_usize..)
        .zip(text.split(|b| *b == b'\n'))
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| {
            parse_line(line).ok_or_else(|| {
                let shown: String = String::from_utf8_lossy(line).chars().take(SHOWN).collect();
                let problem = format!("line {number} is not one of mountinfo: {shown:?}");
                io::Error::new(io::ErrorKind::InvalidData, problem)
            })
        })
        .collect()
}

/// Reads a whole mountinfo as the model has it, in the kernel's order. For the fuzz targets (`tests/fuzz`) too.
///
/// # Errors
/// As `parse`.
pub fn mounts(text: &[u8]) -> io::Result<Vec<Mount>> {
    Ok(parse(text)?.into_iter().map(|line| line.mount).collect())
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<Line> {
    // Fields are split at single blanks: an empty source is an empty field.
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let mut device = fields.next()?.splitn(2, |b| *b == b':');
    let device = (number(device.next()?)?, number(device.next()?)?);
    let root = unescape(fields.next()?);
    let root = root.strip_suffix(DELETED).unwrap_or(&root).to_vec();
    let point = unescape(fields.next()?);
    let options = fields.next()?;
    let (mut peer_group, mut master) = (None, None);
    loop {
        match fields.next()? {
            b"-" => break,
            // Further tags (`propagate_from:N`, `unbindable`, future ones) say nothing that is asked for.
            tag => {
                if let Some(group) = tag.strip_prefix(b"shared:") {
                    peer_group = Some(number(group)?);
                } else if let Some(group) = tag.strip_prefix(b"master:") {
                    master = Some(number(group)?);
                }
            }
        }
    }
    let fs_type = text(fields.next()?);
    let source = text(fields.next()?);
    let super_options = fields.next().unwrap_or_default();
    let mount = Mount {
        id,
        parent,
        device,
        root: path(root),
        point: path(point),
        fs_type,
        source,
        read_only: has_ro(options) || has_ro(super_options),
        shared: peer_group.is_some(),
    };
    Some(Line { mount, peer_group, master })
}

fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    // `parse` alone takes "+1", which the kernel never writes.
    field.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(field).ok()?.parse().ok()).flatten()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

fn has_ro(options: &[u8]) -> bool {
    options.split(|b| *b == b',').any(|option| option == b"ro")
}

/// Undoes `\040`; a backslash before anything else stands for itself.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'\\'
            && let [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] = tail
        {
            out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = tail;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// The mount table of the namespace that it was opened in, read again only when the kernel says that it changed.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    cached: Arc<MountTable>,
    /// `cached` is not what the kernel has. The kernel reports a change once per descriptor, so it is kept here until read.
    stale: bool,
}

impl Reader {
    /// Opens the calling thread's mountinfo; nothing is read yet.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { file: open()?, cached: Arc::default(), stale: true })
    }

    /// Returns the table if what was read last still holds. Costs one poll.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(super) fn current(&mut self) -> io::Result<Option<Arc<MountTable>>> {
        self.stale |= changed(&self.file)?;
        Ok((!self.stale).then(|| Arc::clone(&self.cached)))
    }

    /// Returns the table, after reading it if it changed.
    ///
    /// # Errors
    /// When it cannot be read or understood; the next call tries again.
    pub(super) fn read(&mut self) -> io::Result<Arc<MountTable>> {
        /// A table is read in several pieces. Since Linux 5.8 no mount that stays is left out when others come and go
        /// between two pieces, so after a few tries to get a quiet moment the last reading is good enough: the change
        /// after it is reported by the next poll.
        const TRIES: usize = 3;
        for _ in 0..TRIES {
            if let Some(current) = self.current()? {
                return Ok(current);
            }
            self.file.rewind()?;
            let mut text = Vec::new();
            self.file.read_to_end(&mut text)?;
            self.cached = Arc::new(MountTable::new(mounts(&text)?));
            self.stale = false;
        }
        Ok(Arc::clone(&self.cached))
    }
}

/// Opens the calling thread's mountinfo: a descriptor stays with the namespace that it was opened in.
pub(super) fn open() -> io::Result<File> {
    File::open("/proc/thread-self/mountinfo")
}

/// Asks once, without waiting, whether the table changed since this descriptor was last asked.
fn changed(file: &File) -> io::Result<bool> {
    let mut fds = [PollFd::new(file, PollFlags::PRI)];
    let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(ready > 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// Writes a line as the kernel does.
    fn format(line: &Line, deleted: bool) -> Vec<u8> {
        let escape = |bytes: &[u8]| {
            let mut out = Vec::new();
            for b in bytes {
                match b {
                    b' ' | b'\t' | b'\n' | b'\\' | b'#' => out.extend(format!("\\{b:03o}").bytes()),
                    other => out.push(*other),
                }
            }
            out
        };
        let Mount { id, parent, device: (major, minor), root, point, fs_type, source, read_only, .. } =
            &line.mount;
        let mut out = format!("{id} {parent} {major}:{minor} ").into_bytes();
        out.extend(escape(root.as_os_str().as_bytes()));
        out.extend(if deleted { DELETED } else { b"" });
        out.push(b' ');
        out.extend(escape(point.as_os_str().as_bytes()));
        out.extend(if *read_only { b" ro,relatime".iter() } else { b" rw,relatime".iter() });
        if let Some(group) = line.peer_group {
            out.extend(format!(" shared:{group}").bytes());
        }
        if let Some(group) = line.master {
            out.extend(format!(" master:{group} propagate_from:7").bytes());
        }
        out.extend(b" - ");
        out.extend(escape(fs_type.as_bytes()));
        out.push(b' ');
        out.extend(escape(source.as_bytes()));
        out.extend(b" rw,errors=continue\n");
        out
    }

    fn any_path() -> impl Strategy<Value = PathBuf> {
        // Any bytes but NUL; not ending in what the kernel adds itself.
        prop::collection::vec(1u8..=255, 0..24)
            .prop_map(|bytes| path([b"/".as_slice(), &bytes].concat()))
            .prop_filter("the kernel's own suffix", |p| !p.as_os_str().as_bytes().ends_with(DELETED))
    }

    fn any_line() -> impl Strategy<Value = Line> {
        (
            any::<(u64, u64)>(),
            any::<(u32, u32)>(),
            (any_path(), any_path()),
            ("[a-z0-9.]{1,8}", "[^\0]{0,12}"),
            any::<bool>(),
            any::<(Option<u64>, Option<u64>)>(),
        )
            .prop_map(
                |(
                    (id, parent),
                    device,
                    (root, point),
                    (fs_type, source),
                    read_only,
                    (peer_group, master),
                )| Line {
                    mount: Mount {
                        id,
                        parent,
                        device,
                        root,
                        point,
                        fs_type,
                        source,
                        read_only,
                        shared: peer_group.is_some(),
                    },
                    peer_group,
                    master,
                },
            )
    }

    proptest! {
        #[test]
        fn what_the_kernel_writes_is_read_back(lines in prop::collection::vec((any_line(), any::<bool>()), 0..8)) {
            let text: Vec<u8> = lines.iter().flat_map(|(line, deleted)| format(line, *deleted)).collect();
            let expected: Vec<Line> = lines.into_iter().map(|(line, _)| line).collect();
            prop_assert_eq!(parse(&text).unwrap(), expected);
        }

        #[test]
        fn junk_is_an_error_and_no_panic(junk in prop::collection::vec(any::<u8>(), 0..200)) {
            let _result = parse(&junk);
        }

        #[test]
        fn a_damaged_line_is_no_panic(line in any_line(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut text = format(&line, false);
            let at = at.index(text.len());
            text[at] = byte;
            let _result = parse(&text);
        }
    }

    #[test]
    fn optional_fields_and_an_empty_source_keep_their_places() {
        let text =
            b"36 35 98:0 /a\\040b /mnt\\011x rw,nosuid shared:12 master:3 propagate_from:4 - tmpfs  rw\n\
                     37 36 0:5 / / ro - ext4 /dev/vda rw\n";
        let lines = parse(text).unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].mount.root, PathBuf::from("/a b"));
        assert_eq!(lines[0].mount.point, PathBuf::from("/mnt\tx"));
        assert_eq!((lines[0].peer_group, lines[0].master), (Some(12), Some(3)));
        assert_eq!(lines[0].mount.source, "");
        assert!(lines[1].mount.read_only && !lines[1].mount.shared);
    }

    #[test]
    fn a_deleted_root_is_the_same_root() {
        let lines = parse(b"36 35 98:0 /srv/x//deleted /mnt rw - ext4 /dev/vda rw\n").unwrap();
        assert_eq!(lines[0].mount.root, PathBuf::from("/srv/x"));
    }

    #[test]
    fn a_line_that_is_not_understood_is_not_left_out() {
        assert!(parse(b"37 36 0:5 / / ro - ext4 /dev/vda rw\n36 35 98:0 /a /b rw\n").is_err());
    }

    #[test]
    fn the_real_table_is_understood_and_read_once() {
        let mut reader = Reader::open().unwrap();
        assert!(reader.current().unwrap().is_none(), "nothing was read yet");
        assert!(reader.read().unwrap().iter().any(|m| m.point == Path::new("/")));
    }
}
