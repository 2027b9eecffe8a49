//! What `tests/root_kubelet.rs` is made of, and its tests of roots that a kubelet left.

pub mod again;
#[path = "../support/alone.rs"]
mod alone;
pub mod asked;
pub mod compare;
pub mod driver;
pub mod drivers;
pub mod loops;
pub mod node;
pub mod reconstruct;
pub mod recording;
pub mod shown;
pub mod wire;

mod damaged;
mod failing;
mod foreign;
mod phases;
mod reader;
mod takeover;
