//! One question to each of many paths, so that one that hangs costs its own answer only.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How many threads ask at first.
const FIRST: usize = 8;

/// When no question was taken for so long, all threads may be hanging, and as many are added.
const STALL: Duration = Duration::from_millis(50);

/// Its frames are few and small, and there may be a thread for each path.
const STACK: usize = 128 * 1024;

/// Asks for every index below `count`, in threads: few where all answer, as many as there are questions where all hang.
/// Returns when all were answered.
///
/// # Errors
/// When not one thread could be started.
pub(super) fn each(count: usize, question: impl Fn(usize) + Sync) -> io::Result<()> {
    let next = Mutex::new(0_usize);
    let taken = Condvar::new();
    let lock = || next.lock().unwrap_or_else(PoisonError::into_inner);
    let take = || {
        let mut next = lock();
        let index = *next;
        *next = index.saturating_add(1).min(count);
        taken.notify_one();
        (index < count).then_some(index)
    };
    std::thread::scope(|scope| {
        let work = || {
            while let Some(index) = take() {
                question(index);
            }
        };
        let mut threads = 0;
        let mut wanted = FIRST;
        loop {
            let left = count - *lock();
            for _ in 0..wanted.saturating_sub(threads).min(left) {
                match std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work) {
                    Ok(_joined_by_the_scope) => threads += 1,
                    Err(e) if threads == 0 => return Err(e),
                    // The threads that there are go on.
                    Err(_) => break,
                }
            }
            // Until all are taken, or none for a while.
            let mut before = lock();
            loop {
                if *before == count {
                    return Ok(());
                }
                let seen = *before;
                let (now, wait) = taken
                    .wait_timeout_while(before, STALL, |next| *next == seen)
                    .unwrap_or_else(PoisonError::into_inner);
                before = now;
                if wait.timed_out() {
                    break;
                }
            }
            wanted = threads.saturating_mul(2).max(FIRST);
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_question_is_asked_once() {
        for count in [0, 1, FIRST, 1000] {
            let asked: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            each(count, |index| {
                asked[index].fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            assert!(asked.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{count}: {asked:?}");
        }
    }

    #[test]
    fn questions_that_hang_keep_no_other_from_being_asked() {
        // All but the last hang until the last was asked, far more than there are threads at first.
        let count = 20 * FIRST;
        let asked = Mutex::new(false);
        let changed = Condvar::new();
        each(count, |index| {
            let mut asked = asked.lock().unwrap();
            if index == count - 1 {
                *asked = true;
                changed.notify_all();
                return;
            }
            let limit = Duration::from_secs(20);
            let (_asked, wait) = changed.wait_timeout_while(asked, limit, |asked| !*asked).unwrap();
            assert!(!wait.timed_out(), "the last question was never asked");
        })
        .unwrap();
    }
}
