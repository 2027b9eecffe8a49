//! Somebody who writes all the time: numbered records with a checksum, each synced before the next.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, until};

/// What a record has: its number, what follows from it, and the checksum of both. Blocks end within records.
const LENGTH: usize = 1000;

const FILE: &str = "records";

/// How many small files it has beside: made, renamed and overwritten with every record, and never synced.
const BESIDE: u64 = 32;

/// Writes until it is ended.
pub struct Writer {
    over: Arc<AtomicBool>,
    synced: Arc<AtomicU64>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Writer {
    /// Begins to append records to a file in each of these directories; each is synced in one before it is written to the next.
    pub fn start(directories: &[&Path]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let synced = Arc::new(AtomicU64::new(0));
        let directories: Vec<PathBuf> = directories.iter().map(|&one| one.to_owned()).collect();
        let (ends, counts) = (Arc::clone(&over), Arc::clone(&synced));
        let thread = std::thread::spawn(move || write(&directories, &ends, &counts));
        Self { over, synced, thread: Some(thread) }
    }

    /// How many records are synced everywhere.
    pub fn synced(&self) -> u64 {
        self.synced.load(Ordering::SeqCst)
    }

    /// Waits until it has written more.
    pub fn goes_on(&self) {
        let before = self.synced();
        until("the writer goes on", || {
            assert!(!self.thread.as_ref().is_some_and(JoinHandle::is_finished), "the writer failed");
            self.synced() > before + 4
        });
    }

    /// Ends it; returns how many records it wrote.
    pub fn end(mut self) -> u64 {
        self.over.store(true, Ordering::SeqCst);
        let thread = self.thread.take().expect("it was started");
        thread.join().expect("no panic").expect("it could write");
        self.synced()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + PATIENCE;
        // In a test that failed it may be frozen: then it ends with the process.
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn write(directories: &[PathBuf], over: &AtomicBool, synced: &AtomicU64) -> io::Result<()> {
    let open = |directory: &PathBuf| File::options().create(true).append(true).open(directory.join(FILE));
    let mut files = directories.iter().map(open).collect::<io::Result<Vec<_>>>()?;
    for number in 0.. {
        if over.load(Ordering::SeqCst) {
            break;
        }
        for (file, directory) in files.iter_mut().zip(directories) {
            file.write_all(&record(number))?;
            file.sync_all()?;
            let beside = directory.join(format!("made-{}", number % BESIDE));
            fs::write(&beside, number.to_string())?;
            fs::rename(beside, directory.join(format!("renamed-{}", number % BESIDE)))?;
        }
        synced.store(number + 1, Ordering::SeqCst);
    }
    Ok(())
}

fn record(number: u64) -> [u8; LENGTH] {
    let mut record = [number.to_le_bytes()[0] ^ 0x5a; LENGTH];
    record[..8].copy_from_slice(&number.to_le_bytes());
    let mut checksum = DefaultHasher::new();
    checksum.write(&record[..LENGTH - 8]);
    record[LENGTH - 8..].copy_from_slice(&checksum.finish().to_le_bytes());
    record
}

/// Returns how many records there are: from the first, in order, and each of them whole.
#[track_caller]
pub fn records(directory: &Path) -> u64 {
    let bytes = fs::read(directory.join(FILE)).expect("there are records");
    let mut count = 0;
    for found in bytes.chunks(LENGTH) {
        assert!(found == record(count), "record {count} of {} is not whole", bytes.len() / LENGTH);
        count += 1;
    }
    count
}
