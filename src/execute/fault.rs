//! Places where a test lets the daemon die or stop, between intent, call and outcome. Release builds have none.

/// Ends the process as a crash would, if `VOLUMED_TEST_FAULT` names this point (`stage:intent`, `publish:call`, ...);
/// `publish:call@2` is the second time that it is reached, and `stop:publish:call` stops the process until SIGCONT, so that a
/// test can do something to others between two calls.
#[cfg(debug_assertions)]
pub fn reached(point: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};
    static WHERE: OnceLock<Option<(bool, String, usize)>> = OnceLock::new();
    static TIMES: AtomicUsize = AtomicUsize::new(0);
    let wanted = WHERE.get_or_init(|| {
        let text = std::env::var("VOLUMED_TEST_FAULT").ok()?;
        let (stops, text) = text.strip_prefix("stop:").map_or((false, &*text), |rest| (true, rest));
        let (point, times) = text.split_once('@').unwrap_or((text, "1"));
        Some((stops, point.to_owned(), times.parse().ok()?))
    });
    let Some((stops, wanted, times)) = wanted else { return };
    if wanted != point || TIMES.fetch_add(1, Ordering::Relaxed) + 1 != *times {
        return;
    }
    if *stops {
        crate::host::stop_this_process();
    } else {
        std::process::abort();
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub fn reached(_point: &str) {}
