//! What the fuzz targets check: one module per target, whose `check` takes any bytes and panics where a property does not hold.

pub mod csi_reply;
pub mod manifest;
pub mod mountinfo;
pub mod registration;
pub mod vol_data;

/// Panics unless a text is fit for a terminal and a journal: something is said, within a limit, and nothing moves the cursor.
fn assert_fit_for_people(what: &str, text: &str, limit: usize) {
    assert!(!text.trim().is_empty(), "{what} says nothing");
    assert!(text.len() <= limit, "{what} has {} bytes, more than {limit}: {text:?}", text.len());
    assert!(!text.chars().any(char::is_control), "{what} has control characters: {text:?}");
}
