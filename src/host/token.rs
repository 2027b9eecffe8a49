//! Service-account tokens, in files that the configuration names.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, Stat};

use super::HostError;
use super::path::FILE;
use crate::model::Millis;

/// A token has a few kilobytes; what is longer is another file.
const MAX: u64 = 64 * 1024;

/// Reads a token and when its file was changed (`Host::read_token`). Symlinks are followed, as a projected volume has them;
/// what is checked is the file that is read.
///
/// # Errors
/// `Io` with the remedy; no byte of the file is in it.
pub(super) fn read(path: &Path) -> Result<(String, Millis), HostError> {
    let failed =
        |source: io::Error| HostError::Io { doing: "read the token file", path: path.to_owned(), source };
    // A pipe in its place does not block.
    let fd = rustix::fs::open(path, FILE, Mode::empty()).map_err(|e| failed(e.into()))?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| failed(e.into()))?;
    check(&stat, rustix::process::geteuid().as_raw()).map_err(|why| failed(invalid(why)))?;
    let token = text(fd).map_err(failed)?;
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let changed = stat.st_mtime.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000);
    Ok((token, changed))
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Whoever may write it chooses who volumed's drivers take the pod for.
fn check(stat: &Stat, own: u32) -> Result<(), String> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("it is not a regular file: name the file that holds the token".to_owned());
    }
    if stat.st_uid != 0 && stat.st_uid != own {
        return Err(format!("it belongs to user {}, who could change it: chown root it", stat.st_uid));
    }
    if stat.st_mode & 0o022 != 0 {
        let mode = stat.st_mode & 0o7777;
        return Err(format!("others than its owner may write it (mode {mode:04o}): chmod go-w it"));
    }
    Ok(())
}

fn text(fd: OwnedFd) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::from(fd).take(MAX + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX {
        return Err(invalid(format!(
            "it is longer than {MAX} bytes: name the file that holds the token alone"
        )));
    }
    let token = std::str::from_utf8(&bytes)
        .map_err(|_its_bytes_stay_here| invalid("it is not text (UTF-8): write the token anew".to_owned()))?
        .trim();
    if token.is_empty() {
        return Err(invalid("it is empty: write the token into it".to_owned()));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    fn file(directory: &tempfile::TempDir, content: &[u8], mode: u32) -> PathBuf {
        let path = directory.path().join("token");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn refusal(path: &Path) -> String {
        match read(path).unwrap_err() {
            HostError::Io { path: named, source, .. } if named == path => source.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_token_comes_trimmed_with_the_time_of_its_change_in_ms() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(&directory, b"  abc.def\n\n", 0o644);
        let changed = std::time::UNIX_EPOCH + std::time::Duration::from_micros(1_700_000_000_123_456);
        File::options().append(true).open(&path).unwrap().set_modified(changed).unwrap();
        assert_eq!(read(&path).unwrap(), ("abc.def".to_owned(), 1_700_000_000_123));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("token", &link).unwrap();
        assert_eq!(read(&link).unwrap().0, "abc.def");
        let limit = usize::try_from(MAX).unwrap();
        assert_eq!(read(&file(&directory, &vec![b'x'; limit], 0o600)).unwrap().0.len(), limit);
    }

    #[test]
    fn what_others_may_write_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        for mode in [0o620, 0o602, 0o666] {
            let why = refusal(&file(&directory, b"abc", mode));
            assert!(why.contains("chmod go-w"), "{why}");
        }
        let path = file(&directory, b"abc", 0o600);
        let mut stat = rustix::fs::stat(&path).unwrap();
        for (owner, own, fine) in [(0, 0, true), (0, 7, true), (7, 7, true), (7, 0, false), (7, 8, false)] {
            stat.st_uid = owner;
            assert_eq!(check(&stat, own).is_ok(), fine, "{owner} {own}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_without_a_byte_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let long = vec![b'x'; usize::try_from(MAX).unwrap() + 1];
        for (content, expected) in [(long.as_slice(), "longer"), (b"sec\xffret", "UTF-8"), (b" \n", "empty")]
        {
            let why = refusal(&file(&directory, content, 0o600));
            assert!(why.contains(expected) && !why.contains("sec") && !why.contains("xxx"), "{why}");
        }
        assert!(refusal(directory.path()).contains("regular file"));
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(refusal(&pipe).contains("regular file"));
        assert!(refusal(&directory.path().join("missing")).contains("No such file"));
    }
}
