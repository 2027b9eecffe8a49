//! A host, a driver and a disk that exist only in memory, with a clock that tests can wind on.
//!
//! One seed decides everything: latencies, faults, crashes. A run is single-threaded and its clock is paused, so a seed replays
//! exactly.

pub mod driver;
pub mod host;
pub mod store;
pub mod wish;
pub mod world;
