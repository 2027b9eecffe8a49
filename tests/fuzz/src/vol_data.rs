//! `vol_data.json` as another program, another version or a full disk left it.

use std::collections::BTreeMap;

use volumed::model::VolData;

/// What can be read is written as a kubelet would and read again as the same; it agrees with itself and with nobody else.
pub fn check(bytes: &[u8]) {
    let Some(data) = VolData::parse(bytes) else {
        assert!(
            serde_json::from_slice::<BTreeMap<String, String>>(bytes).is_err(),
            "a flat object of strings was not understood"
        );
        return;
    };
    let written = data.to_bytes();
    let (last, line) = written.split_last().expect("a file is never empty");
    assert_eq!(*last, b'\n', "the file does not end in a newline");
    assert!(!line.iter().any(|b| *b < b' '), "a raw control character in {line:?}");
    assert!(!line.iter().any(|b| b"<>&".contains(b)), "Go escapes <, > and &: {line:?}");
    assert_eq!(VolData::parse(&written).as_ref(), Some(&data), "written and read it is another");
    assert_eq!(data.to_bytes(), written, "the same data makes other bytes");

    let read: BTreeMap<String, String> = serde_json::from_slice(bytes).expect("parsed above");
    let again: BTreeMap<String, String> = serde_json::from_slice(&written).expect("it is JSON");
    assert_eq!(again, read, "the file says something else than before");
    for (key, value) in &read {
        assert_eq!(data.get(key), Some(value.as_str()));
    }
    assert!(data.disagreements(&data).is_empty(), "it disagrees with itself");
    let nobody = VolData::parse(b"{}").expect("an empty object");
    for key in data.disagreements(&nobody) {
        assert!(data.get(key).is_some(), "{key} differs from nothing, and is nothing");
    }
}
