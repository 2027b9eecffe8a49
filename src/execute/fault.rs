//! Places where a test lets the daemon die, between intent, call and outcome. Release builds have none.

/// Ends the process as a crash would, if `VOLUMED_TEST_FAULT` names this point (`stage:intent`, `publish:call`, ...).
#[cfg(debug_assertions)]
pub fn reached(point: &str) {
    use std::sync::OnceLock;
    static WHERE: OnceLock<Option<String>> = OnceLock::new();
    let wanted = WHERE.get_or_init(|| std::env::var("VOLUMED_TEST_FAULT").ok());
    if wanted.as_deref() == Some(point) {
        std::process::abort();
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub fn reached(_point: &str) {}
