//! `vol_data.json`, byte for byte as a kubelet writes it (kubelet.md 3).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{DriverName, Lifecycle, PublicationId, SpecName};

/// The content of one `vol_data.json`: a flat object of strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolData(BTreeMap<String, String>);

impl VolData {
    /// Returns what lies beside a staging path.
    pub fn staging(driver: &DriverName, handle: &str) -> Self {
        Self::of([("driverName", driver.as_str()), ("volumeHandle", handle)])
    }

    /// Returns what lies beside a pod's target path.
    pub fn publication(
        id: &PublicationId,
        driver: &DriverName,
        handle: &str,
        node: &str,
        lifecycle: Lifecycle,
    ) -> Self {
        Self::of([
            ("specVolID", id.spec.as_str()),
            ("volumeHandle", handle),
            ("driverName", driver.as_str()),
            ("nodeName", node),
            ("attachmentID", &attachment_id(handle, driver, node)),
            ("volumeLifecycleMode", lifecycle.name()),
        ])
    }

    /// Returns what lies in a block volume's `data` directory.
    pub fn block(spec: &SpecName, driver: &DriverName, handle: &str, node: &str) -> Self {
        Self::of([
            ("specVolID", spec.as_str()),
            ("volumeHandle", handle),
            ("driverName", driver.as_str()),
            ("nodeName", node),
            ("attachmentID", &attachment_id(handle, driver, node)),
        ])
    }

    fn of<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    /// Reads a file; `None` when it is not a flat JSON object of strings (an empty or cut file is a real case).
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().map(Self)
    }

    /// Returns a value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Returns the names whose values differ, of those that say whose volume it is (design 4).
    pub fn disagreements(&self, other: &Self) -> Vec<&'static str> {
        const WHOSE: [&str; 4] = ["driverName", "volumeHandle", "specVolID", "volumeLifecycleMode"];
        WHOSE.into_iter().filter(|key| self.get(key) != other.get(key)).collect()
    }

    /// Returns the file's bytes: keys sorted, compact, one newline at the end, Go's escapes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = String::from("{");
        for (i, (key, value)) in self.0.iter().enumerate() {
            if i > 0 {
                text.push(',');
            }
            text.push_str(&go_json(key));
            text.push(':');
            text.push_str(&go_json(value));
        }
        text.push_str("}\n");
        text.into_bytes()
    }
}

/// Returns the VolumeAttachment's name: `csi-` and the hex SHA-256 of handle, driver and node (kubelet.md 3).
fn attachment_id(handle: &str, driver: &DriverName, node: &str) -> String {
    use sha2::{Digest, Sha256};
    let mut id = String::from("csi-");
    for byte in Sha256::digest(format!("{handle}{driver}{node}")) {
        // Writing to a String cannot fail.
        let _written = write!(id, "{byte:02x}");
    }
    id
}

/// Returns a JSON string literal with the escapes of Go's encoder (kubelet.md 3, "Bytes").
pub fn go_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '&' | '<' | '>' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                // Writing to a String cannot fail.
                let _written = write!(out, "\\u{:04x}", u32::from(c));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Plugin, PodUid, SpecName};

    #[test]
    fn control_characters_and_html_are_escaped_as_go_does() {
        assert_eq!(
            go_json("a&<>\u{2028}\u{1}\u{7f}\t\"\\/ü"),
            "\"a\\u0026\\u003c\\u003e\\u2028\\u0001\u{7f}\\t\\\"\\\\/ü\""
        );
    }

    #[test]
    fn keys_are_sorted_and_a_newline_ends_the_file() {
        let id = PublicationId {
            pod: PodUid::new("u").unwrap(),
            plugin: Plugin::Csi,
            spec: SpecName::new("pv1").unwrap(),
        };
        let driver = DriverName::new("d.example.com").unwrap();
        let data = VolData::publication(&id, &driver, "h", "n", Lifecycle::Persistent);
        let text = String::from_utf8(data.to_bytes()).unwrap();
        assert!(text.starts_with("{\"attachmentID\":\"csi-"), "{text}");
        assert!(
            text.ends_with(",\"volumeHandle\":\"h\",\"volumeLifecycleMode\":\"Persistent\"}\n"),
            "{text}"
        );
        assert_eq!(VolData::parse(text.as_bytes()), Some(data));
    }

    #[test]
    fn a_cut_file_is_no_data() {
        assert_eq!(VolData::parse(b""), None);
        assert_eq!(VolData::parse(b"{\"driverName\":\"d"), None);
    }
}
