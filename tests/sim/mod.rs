//! A host, drivers and a disk that exist only in memory, with a clock that tests can wind on.
//!
//! One seed decides everything: latencies, faults, crashes. A run is single-threaded and its clock is paused, so a seed replays
//! exactly.

pub mod audit;
pub mod daemon;
pub mod disks;
pub mod driver;
pub mod foreign;
pub mod goal;
pub mod holders;
pub mod host;
pub mod luks;
pub mod luns;
pub mod manifests;
pub mod nfs;
pub mod operator;
pub mod power;
pub mod records;
pub mod request;
pub mod store;
pub mod strangers;
pub mod trouble;
pub mod twins;
pub mod wish;
pub mod world;
