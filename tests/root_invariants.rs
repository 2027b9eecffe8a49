//! The node's part of csi.md 10, one test for each invariant, named by its number: the real daemon, the example driver and its
//! log. The driver itself refuses what breaks invariants 2, 4, 11, 12 and 13; a refusal fails a test by its text.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

mod invariants;
mod support;
