//! What is typed, checked before anybody is asked.

use crate::desired::quantity;
use crate::host::images::FsType;
use crate::loop_driver::store::Id;

/// Returns the names of the file systems that a volume can have.
pub fn file_systems() -> impl Iterator<Item = &'static str> {
    FsType::ALL.into_iter().map(FsType::name)
}

/// Takes a size as Kubernetes writes it, in bytes: `1Gi`, `500M`, `1.5e9`.
///
/// # Errors
/// When it is none, or nothing.
pub fn size(text: &str) -> Result<u64, String> {
    match quantity::bytes(text) {
        Ok(0) => Err("a volume has at least one byte".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(format!("{error}; give a size such as 1Gi")),
    }
}

/// Takes the name of a new volume or snapshot: one that an object of Kubernetes can have, and that the driver takes as handle as
/// it is, so that there is one name for all of it.
///
/// # Errors
/// When it cannot be one.
pub fn new_name(text: &str) -> Result<String, String> {
    let end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label =
        |part: &str| part.starts_with(end) && part.ends_with(end) && part.chars().all(|c| end(c) || c == '-');
    if text.len() > 128 || !text.split('.').all(label) {
        return Err("use at most 128 lower-case letters, digits, '-' and '.', with a letter or digit at each end and beside \
                    each '.'"
            .to_owned());
    }
    if Id::of_name(text).as_str() != text {
        return Err("names that begin with csi- or name- are the driver's own; choose another".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_is_an_object_s_and_a_handle() {
        for good in ["data", "db-0.example.com", "0", "csi"] {
            assert_eq!(new_name(good).as_deref(), Ok(good));
        }
        let long = "a".repeat(129);
        for bad in ["", "Data", "a_b", "-a", "a-", "a..b", "a.-b", "csi-1", "name-1", "a b", "../a", &long] {
            assert!(new_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_size_is_a_quantity_above_zero() {
        assert_eq!(size("1.5Gi"), Ok(3 << 29));
        for bad in ["0", "0.0Gi", "-1", "1gb", ""] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
