//! The node's part of csi.md 10 against drivers that nobody here wrote: csi-test's mock-driver where its hooks and its log can
//! show an invariant, csi-driver-host-path where real mounts matter. `tests/root_invariants.rs` has all of them.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/hostpath.rs"]
mod hostpath;
#[path = "support/mock.rs"]
mod mock;
mod support;

#[path = "foreign_invariants/on_hostpath.rs"]
mod on_hostpath;
#[path = "foreign_invariants/on_hostpath_life.rs"]
mod on_hostpath_life;
#[path = "foreign_invariants/on_mock.rs"]
mod on_mock;
#[path = "foreign_invariants/on_mock_calls.rs"]
mod on_mock_calls;
