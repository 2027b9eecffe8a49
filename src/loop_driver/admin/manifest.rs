//! The PersistentVolume of a volume, to be dropped into a manifest directory.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Content;
use crate::control::yaml;

/// What the manifest says.
#[derive(Debug)]
pub(super) struct PersistentVolume<'a> {
    /// The driver's name.
    pub(super) driver: &'a str,
    /// The object's name.
    pub(super) name: &'a str,
    /// `volumeHandle`
    pub(super) handle: &'a str,
    /// Its size.
    pub(super) bytes: u64,
    /// What is in it.
    pub(super) content: &'a Content,
    /// `volumeAttributes`
    pub(super) attributes: &'a BTreeMap<String, String>,
    /// Where it can be had: any of these places; none given: everywhere.
    pub(super) topology: &'a [BTreeMap<String, String>],
}

impl PersistentVolume<'_> {
    /// Returns the object.
    pub(super) fn object(&self) -> Value {
        let mut csi = json!({"driver": self.driver, "volumeHandle": self.handle});
        if !self.attributes.is_empty() {
            csi["volumeAttributes"] = json!(self.attributes);
        }
        let mode = match self.content {
            Content::Block => "Block",
            Content::FileSystem(fs_type) => {
                if let Some(fs_type) = fs_type {
                    csi["fsType"] = json!(fs_type);
                }
                "Filesystem"
            }
        };
        let mut spec = json!({
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": quantity(self.bytes)},
            "csi": csi,
            "persistentVolumeReclaimPolicy": "Retain",
            // Written, because a claim without a class would else get the default one, and not this volume.
            "storageClassName": "",
            "volumeMode": mode,
        });
        let terms: Vec<Value> =
            self.topology.iter().filter(|segments| !segments.is_empty()).map(term).collect();
        if !terms.is_empty() {
            spec["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": terms}});
        }
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": self.name},
            "spec": spec,
        })
    }
}

/// All segments of one place hold together (csi.md 2.1).
fn term(segments: &BTreeMap<String, String>) -> Value {
    let expression = |(key, value)| json!({"key": key, "operator": "In", "values": [value]});
    json!({"matchExpressions": segments.iter().map(expression).collect::<Vec<_>>()})
}

/// Returns bytes as a quantity, exactly: `1Gi`, `1536Mi`, `1000`.
pub(super) fn quantity(bytes: u64) -> String {
    const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let (mut number, mut suffix) = (bytes, 0);
    while number != 0 && number % 1024 == 0 && suffix + 1 < SUFFIXES.len() {
        number /= 1024;
        suffix += 1;
    }
    format!("{number}{}", SUFFIXES.get(suffix).unwrap_or(&""))
}

/// Returns an object as YAML.
pub fn document(object: &Value) -> String {
    yaml::document(object)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_quantity_means_the_very_bytes(bytes in 1..=u64::try_from(i64::MAX).unwrap(), shift in 0_u32..62) {
            for bytes in [bytes, (bytes >> shift) << shift, (bytes >> shift).max(1)] {
                prop_assert_eq!(crate::desired::quantity::bytes(&quantity(bytes)), Ok(bytes));
            }
        }
    }

    #[test]
    fn a_quantity_is_as_short_as_it_can_be() {
        for (bytes, text) in
            [(1 << 30, "1Gi"), (3 << 29, "1536Mi"), (1000, "1000"), (0, "0"), (1 << 60, "1Ei")]
        {
            assert_eq!(quantity(bytes), text);
        }
    }

    #[test]
    fn each_place_is_a_term() {
        let place = |node: &str| BTreeMap::from([("d/node".to_owned(), node.to_owned())]);
        let volume = PersistentVolume {
            driver: "d",
            name: "n",
            handle: "h",
            bytes: 1 << 30,
            content: &Content::Block,
            attributes: &BTreeMap::new(),
            topology: &[place("a"), BTreeMap::new(), place("b")],
        };
        let terms = &volume.object()["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
        let expected =
            |node: &str| json!({"matchExpressions": [{"key": "d/node", "operator": "In", "values": [node]}]});
        assert_eq!(*terms, json!([expected("a"), expected("b")]));
        assert_eq!(volume.object()["spec"]["csi"], json!({"driver": "d", "volumeHandle": "h"}));
    }
}
