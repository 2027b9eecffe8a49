//! volumed: pods' volumes on a host without Kubernetes.
//!
//! Manifests in watched directories are the wish; mounts under the kubelet's root directory are the result. One way leads
//! from the one to the other, and the modules below are listed in its order:
//!
//! ```text
//!  manifest dirs ─watch─▶ manifest ─objects─▶ desired ──Desired──▶┐
//!                                                                 ├─▶ plan ─[Step]─▶ execute ─▶ volumes ─▶ csi, host
//!  mount table, records, drivers ─▶ observe ────────────Actual───▶┘                    │
//!             ▲                                                                        │ outcome (a verified fact)
//!             └────────────────────────────────────────────────────────────────────────┘
//!  reconcile turns the circle and publishes Status (watch) ─▶ control (volumectl), telemetry (journal)
//!                                                          └▶ health asks how full and well volumes are ─▶ control
//! ```
//!
//! `model` holds the values that travel along it and does no I/O. `tests/layering.rs` keeps who may use whom.

pub mod config;
pub mod error;
pub mod mutant;
pub mod proto;

pub mod model;

pub mod manifest;

pub mod desired;

pub mod observe;

pub mod plan;

pub mod execute;

pub mod volumes;

pub mod csi;

pub mod host;

pub mod record;

pub mod reconcile;

pub mod health;

pub mod control;
pub mod telemetry;

pub mod daemon;

pub mod loop_driver;

/// A boxed future, so that the three seams (`host::Host`, `csi::Driver`, `record::Store`) can be trait objects.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Tests that have to see all processes, or to mount.
#[cfg(test)]
#[path = "../tests/support/alone.rs"]
mod alone;
