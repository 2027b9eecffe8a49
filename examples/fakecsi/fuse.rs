//! The smallest FUSE: an empty directory, served by a thread of this process, so that it dies when the process is killed
//! (linux/fuse.h, version 7.31).

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::MsFlags;
use tonic::Status;

use crate::mounts::failed;

const VERSION: (u32, u32) = (7, 31);
/// The bytes of `fuse_in_header`.
const HEADER: usize = 40;
/// The bytes of the largest write; none comes, but the kernel wants room for one.
const MAX_WRITE: u32 = 4096;

/// Mounts an empty directory. While a file is at `hang`, nothing is answered.
pub(crate) fn mount(at: &Path, hang: PathBuf) -> Result<(), Status> {
    let device = Path::new("/dev/fuse");
    // std opens with O_CLOEXEC: no child keeps the file system alive.
    let file = File::options().read(true).write(true).open(device);
    let file = file.map_err(|error| failed("open", device, &error))?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", file.as_raw_fd());
    nix::mount::mount(Some("fakecsi"), at, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|error| failed("mount a FUSE at", at, &error.into()))?;
    std::thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(move || serve(file, &hang))
        .map(drop)
        .map_err(|error| failed("serve a FUSE at", at, &error))
}

/// Answers until the file system is unmounted.
fn serve(mut file: File, hang: &Path) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = match file.read(&mut buffer) {
            Ok(length) => length,
            // The request was interrupted before it was read.
            Err(error) if [libc::ENOENT, libc::EINTR].contains(&error.raw_os_error().unwrap_or(0)) => {
                continue;
            }
            Err(_unmounted) => return,
        };
        let Some(request) = buffer.get(..length).and_then(Request::parse) else { continue };
        while hang.exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(answer) = request.answer() {
            // ENOENT: who asked has gone.
            let _gone = file.write(&answer);
        }
    }
}

/// A request, as far as it matters.
struct Request {
    opcode: u32,
    unique: u64,
}

impl Request {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        Some(Self {
            opcode: u32::from_ne_bytes(header.get(4..8)?.try_into().ok()?),
            unique: u64::from_ne_bytes(header.get(8..16)?.try_into().ok()?),
        })
    }

    /// Returns `fuse_out_header` and what follows; `None` for what wants no answer.
    fn answer(&self) -> Option<Vec<u8>> {
        let result = match self.opcode {
            // FORGET, INTERRUPT, BATCH_FORGET
            2 | 36 | 42 => return None,
            // LOOKUP
            1 => Err(Errno::ENOENT),
            // GETATTR
            3 => Ok(attributes()),
            // STATFS
            17 => Ok(usage()),
            // INIT
            26 => Ok(init()),
            // OPENDIR: a handle of 8 bytes, flags, padding
            27 => Ok(vec![0; 16]),
            // READDIR: there is nothing. RELEASEDIR, DESTROY
            28 | 29 | 38 => Ok(Vec::new()),
            _ => Err(Errno::ENOSYS),
        };
        let (error, body) = match result {
            Ok(body) => (0, body),
            Err(errno) => (-(errno as i32), Vec::new()),
        };
        let length = u32::try_from(16 + body.len()).unwrap_or(16);
        let mut answer = words(&[length]);
        answer.extend(i32::to_ne_bytes(error));
        answer.extend(self.unique.to_ne_bytes());
        answer.extend(body);
        Some(answer)
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// `fuse_init_out`: no feature is asked for.
fn init() -> Vec<u8> {
    // major, minor, max_readahead, flags, max_background and congestion_threshold, max_write; the rest is 0.
    let mut init = words(&[VERSION.0, VERSION.1, 0, 0, 0, MAX_WRITE]);
    init.resize(64, 0);
    init
}

/// `fuse_attr_out` of a directory, valid for no time: each look asks again.
fn attributes() -> Vec<u8> {
    const DIRECTORY: u32 = 0o40_755;
    // attr_valid; attr_valid_nsec and padding; ino, size, blocks, three times.
    let mut attributes = longs(&[0, 0, 1, 0, 0, 0, 0, 0]);
    // Three times' nanoseconds; mode, nlink, uid, gid, rdev, blksize, flags.
    attributes.extend(words(&[0, 0, 0, DIRECTORY, 2, 0, 0, 0, 4096, 0]));
    attributes
}

/// `fuse_kstatfs`: 1 MiB, all of it free.
fn usage() -> Vec<u8> {
    // blocks, bfree, bavail, files, ffree; bsize, namelen, frsize; the rest is 0.
    let mut usage = longs(&[256, 256, 256, 1, 1]);
    usage.extend(words(&[4096, 255, 4096]));
    usage.resize(80, 0);
    usage
}
