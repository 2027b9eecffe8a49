//! Rules that a test may switch off, to see that the simulation finds it out. Release builds have none of this.
//!
//! A simulation that passes proves something only if it fails where it should: each of these is a mistake that loses data or
//! leaks volumes, one `if` at the place where it would be made.

/// A deliberate mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// `execute` calls without having written the intent (csi.md 10, 6).
    NoIntent,
    /// `csi` takes DEADLINE_EXCEEDED for an answer (csi.md 10, 5).
    DeadlineIsFinal,
    /// `plan` and `execute` unstage though the volume is still published (csi.md 10, 4).
    UnstageFirst,
    /// `desired` counts a manifest that was not read as removed (csi.md 10, 34).
    LostIsRemoved,
    /// `plan` and `execute` call for a path whatever lies there (design rule 10).
    UndoUnseen,
    /// `execute` unstages whoever has the volume (design rule 4).
    UnstageHeld,
    /// `execute` counts a device as shown whose unmapping failed half-way.
    UnmapUndoubted,
    /// `plan` publishes a volume as two PersistentVolumes at once (csi.md 10, 32).
    TwoNames,
    /// `plan` brings up more volumes than a driver takes (csi.md 10, 25).
    NoLimit,
    /// `execute` disconnects a disk of a storage system before it is unmounted.
    DisconnectFirst,
}

#[cfg(debug_assertions)]
thread_local! {
    static MADE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Runs something with a mistake in everything that this thread does meanwhile.
#[cfg(debug_assertions)]
pub fn with<T>(mutant: Mutant, run: impl FnOnce() -> T) -> T {
    struct Restored(Option<Mutant>);
    impl Drop for Restored {
        fn drop(&mut self) {
            MADE.set(self.0);
        }
    }
    let _restored = Restored(MADE.replace(Some(mutant)));
    run()
}

/// Returns whether this mistake is to be made.
#[cfg(debug_assertions)]
pub(crate) fn is(mutant: Mutant) -> bool {
    MADE.get() == Some(mutant)
}

/// Returns false.
#[cfg(not(debug_assertions))]
pub(crate) const fn is(_mutant: Mutant) -> bool {
    false
}
