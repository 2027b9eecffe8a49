//! Who uses what volumed would take away.
//!
//! `place` asks for a directory that is to be deleted (design rule 1): whatever cannot be looked at counts as a user.
//! `holders` asks for a staged volume (design rule 4): only who is seen counts. `processes` and `mounts` read `/proc`.

mod mounts;
mod place;
mod processes;

pub(super) use place::{InUse, Place};
pub(super) use processes::holder_of_mount;
