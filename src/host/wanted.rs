//! Work in a thread cannot be stopped: before it has an effect it looks whether anybody still waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

/// Tells work in a thread whether anybody still waits for it.
#[derive(Debug)]
pub(super) struct Wanted(Arc<AtomicBool>);

/// Who waits for work in a thread: with this goes what it is wanted for.
#[derive(Debug)]
pub(super) struct Waits(Arc<AtomicBool>);

impl Waits {
    /// Makes a pair: as long as the first lives, the second lets work go on.
    pub(super) fn new() -> (Self, Wanted) {
        let wanted = Arc::new(AtomicBool::new(true));
        (Self(Arc::clone(&wanted)), Wanted(wanted))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Wanted {
    /// Refuses to go on where nobody waits any more.
    ///
    /// # Errors
    /// ECANCELED.
    pub(super) fn check(&self) -> Result<(), Errno> {
        if self.0.load(Ordering::Relaxed) { Ok(()) } else { Err(Errno::CANCELED) }
    }
}
