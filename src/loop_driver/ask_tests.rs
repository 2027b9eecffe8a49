//! Sizes, names and paths of requests.

use super::*;

fn range(required_bytes: i64, limit_bytes: i64) -> Option<csi::CapacityRange> {
    Some(csi::CapacityRange { required_bytes, limit_bytes })
}

#[test]
fn a_size_is_within_its_range_or_refused() {
    let page = i64::try_from(STEP).unwrap();
    for (asked, least, bytes) in [
        (None, 0, Some(DEFAULT_BYTES)),
        (range(0, 0), 0, Some(DEFAULT_BYTES)),
        (range(1, 0), 0, Some(STEP)),
        (range(page, page), 0, Some(STEP)),
        (range(page + 1, page + 2), 0, None),
        (range(0, page + 1), 0, Some(STEP)),
        (range(0, page - 1), 1, None),
        (range(1, 0), STEP * 9, Some(STEP * 9)),
        (range(1, page), STEP * 9, None),
        (range(i64::MAX, 0), 0, None),
    ] {
        let decided = size(asked, least);
        assert_eq!(decided.as_ref().ok(), bytes.as_ref(), "{asked:?} {least}: {decided:?}");
        assert!(decided.is_ok() || matches!(decided, Err(Failure::OutOfRange(_))), "{decided:?}");
    }
    for wrong in [range(-1, 0), range(0, -1), range(2, 1)] {
        assert!(matches!(size(wrong, 0), Err(Failure::Invalid(_))), "{wrong:?}");
    }
}

#[test]
fn a_volume_never_gets_smaller() {
    assert_eq!(larger(range(1, 0), STEP * 2).unwrap(), STEP * 2);
    assert_eq!(larger(range(8193, 0), STEP).unwrap(), STEP * 3);
    assert!(matches!(larger(range(1, 4096), STEP * 2), Err(Failure::OutOfRange(_))));
}

#[test]
fn a_path_is_absolute_and_plain() {
    assert!(path("p", "/a/b").is_ok());
    for bad in ["", "a", "/", "/a/../b", "/a\0b"] {
        assert!(matches!(path("p", bad), Err(Failure::Invalid(_))), "{bad:?}");
    }
}

#[test]
fn a_name_is_any_text_without_control_characters() {
    assert!(name("pvc-1").is_ok() && name("ü ber").is_ok() && name(&"a".repeat(128)).is_ok());
    for bad in ["", "a\u{7}b", "a\u{85}", &"a".repeat(129)] {
        assert!(matches!(name(bad), Err(Failure::Invalid(_))), "{bad:?}");
    }
}

#[test]
fn what_needs_several_nodes_is_refused() {
    let capability = |mode: Mode| csi::VolumeCapability {
        access_type: Some(volume_capability::AccessType::Block(volume_capability::BlockVolume {})),
        access_mode: Some(volume_capability::AccessMode { mode: i32::from(mode) }),
    };
    assert!(Capability::of(Some(&capability(Mode::SingleNodeMultiWriter))).is_ok());
    for mode in [Mode::Unknown, Mode::MultiNodeMultiWriter, Mode::MultiNodeReaderOnly] {
        assert!(matches!(Capability::of(Some(&capability(mode))), Err(Failure::Invalid(_))));
    }
}
