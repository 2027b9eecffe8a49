//! `/proc/<pid>/mountinfo` as values (proc(5)): octal escapes, optional fields, names that are not UTF-8, and roots that
//! were deleted under their mount.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::shown_root;
use crate::model::Mount;

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host) struct Line {
    /// What the model knows of it.
    pub(in crate::host) mount: Mount,
    /// The peer group (`shared:N`): mounts made below it reach all mounts with the same number.
    pub(in crate::host) peer_group: Option<u64>,
    /// The peer group that this mount follows (`master:N`): mounts made and taken away there are here too, not the other
    /// way round.
    pub(in crate::host) master: Option<u64>,
}

/// Reads a whole mountinfo. A line that is not understood is an error and not left out: a mount that is not seen could be
/// taken for none.
///
/// # Errors
/// `InvalidData` with the line's number and beginning.
pub(in crate::host) fn parse(text: &[u8]) -> io::Result<Vec<Line>> {
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
    let root = shown_root(&unescape(fields.next()?)).to_vec();
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

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::super::DELETED;
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
                    mount: Mount { id, parent, device, root, point, fs_type, source, read_only },
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
        assert!(lines[1].mount.read_only && lines[1].peer_group.is_none());
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
}
