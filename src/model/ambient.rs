//! The one injected value for time of day and chance, so that a simulated run can be replayed.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// Time of day and randomness. Durations and deadlines use tokio's clock, which tests can pause.
pub struct Ambient {
    wall: Box<dyn Fn() -> Millis + Send + Sync>,
    seed: AtomicU64,
}

impl Ambient {
    /// Takes the clock to ask and a seed.
    pub fn new(seed: u64, wall: impl Fn() -> Millis + Send + Sync + 'static) -> Self {
        Self { wall: Box::new(wall), seed: AtomicU64::new(seed) }
    }

    /// Returns the time of day.
    pub fn now(&self) -> Millis {
        (self.wall)()
    }

    /// Returns 64 random bits (splitmix64: good enough for jitter, not for keys).
    pub fn random(&self) -> u64 {
        let mut z =
            self.seed.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl fmt::Debug for Ambient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ambient").finish_non_exhaustive()
    }
}
