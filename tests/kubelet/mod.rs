//! What `tests/root_kubelet.rs` is made of.

pub mod compare;
pub mod driver;
pub mod node;
pub mod recording;
pub mod wire;
