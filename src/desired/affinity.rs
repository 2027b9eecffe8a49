//! A PersistentVolume's nodeAffinity against this node's name and labels.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PersistentVolumeSpec};

use super::hold;
use super::node::Node;
use crate::model::Hold;

/// The label that every node has.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Refuses a volume that is another node's. One without an affinity is everywhere.
///
/// # Errors
/// The hold, when no term fits this node, or one cannot be understood.
pub(super) fn check(name: &str, spec: &PersistentVolumeSpec, node: &Node) -> Result<(), Hold> {
    let Some(required) = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref()) else {
        return Ok(());
    };
    for term in &required.node_selector_terms {
        match fits(term, node) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(problem) => {
                return Err(hold::invalid(
                    format!("PersistentVolume {name}: spec.nodeAffinity: {problem}"),
                    "write a key, an operator (In, NotIn, Exists, DoesNotExist, Gt, Lt) and the values that it takes",
                ));
            }
        }
    }
    Err(hold::invalid(
        format!(
            "PersistentVolume {name}: spec.nodeAffinity does not name this node: its name is {}, its labels are {}",
            node.name,
            labels(node)
        ),
        "use a volume of this node, or set node-name or [node-labels] in volumed.toml",
    ))
}

fn labels(node: &Node) -> String {
    let own = node.labels.iter().map(|(key, value)| format!("{key}={value}"));
    let hostname = (!node.labels.contains_key(HOSTNAME)).then(|| format!("{HOSTNAME}={}", node.name));
    hostname.into_iter().chain(own).collect::<Vec<_>>().join(",")
}

/// All of a term's requirements have to be met; a term without any fits nothing.
fn fits(term: &NodeSelectorTerm, node: &Node) -> Result<bool, String> {
    let by_label = term.match_expressions.iter().flatten().map(|wanted| {
        let own = node.labels.get(&wanted.key).map(String::as_str);
        (wanted, own.or_else(|| (wanted.key == HOSTNAME).then_some(node.name.as_str())))
    });
    let by_field = term
        .match_fields
        .iter()
        .flatten()
        .map(|wanted| (wanted, (wanted.key == "metadata.name").then_some(node.name.as_str())));
    let mut any = false;
    for (wanted, found) in by_label.chain(by_field) {
        if !is_met(wanted, found)? {
            return Ok(false);
        }
        any = true;
    }
    Ok(any)
}

fn is_met(wanted: &NodeSelectorRequirement, found: Option<&str>) -> Result<bool, String> {
    let values = wanted.values.as_deref().unwrap_or_default();
    let is_listed = || found.is_some_and(|found| values.iter().any(|value| value == found));
    let compared = |than: fn(i64, i64) -> bool| {
        let [limit] = values else {
            return Err(format!("{} of {} takes one number", wanted.operator, wanted.key));
        };
        let limit: i64 = limit
            .parse()
            .map_err(|_| format!("{} of {}: {limit:?} is no number", wanted.operator, wanted.key))?;
        Ok(found.and_then(|found| found.parse().ok()).is_some_and(|found| than(found, limit)))
    };
    match wanted.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            Err(format!("{} of {} takes at least one value", wanted.operator, wanted.key))
        }
        "In" => Ok(is_listed()),
        "NotIn" => Ok(!is_listed()),
        "Exists" => Ok(found.is_some()),
        "DoesNotExist" => Ok(found.is_none()),
        "Gt" => compared(|found, limit| found > limit),
        "Lt" => compared(|found, limit| found < limit),
        unknown => Err(format!("the operator {unknown:?} of {} is unknown", wanted.key)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::HoldCode;

    fn checked(terms: &Value) -> Result<(), Hold> {
        let spec = json!({"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}});
        let node = Node {
            name: "n1".to_owned(),
            labels: [("rack".to_owned(), "7".to_owned())].into(),
            ..Node::default()
        };
        check("pv", &serde_json::from_value(spec).unwrap(), &node)
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
        json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
    }

    #[test]
    fn a_volume_of_this_node_is_told_from_others() {
        for (term, fits) in [
            (expression(HOSTNAME, "In", &["n0", "n1"]), true),
            (expression(HOSTNAME, "In", &["n0"]), false),
            (expression(HOSTNAME, "NotIn", &["n1"]), false),
            (expression("rack", "In", &["7"]), true),
            (expression("rack", "Gt", &["6"]), true),
            (expression("rack", "Lt", &["6"]), false),
            (expression("rack", "Exists", &[]), true),
            (expression("disk", "Exists", &[]), false),
            (expression("disk", "DoesNotExist", &[]), true),
            (expression("disk", "NotIn", &["ssd"]), true),
            (json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), true),
            (json!({}), false),
        ] {
            assert_eq!(checked(&json!([term])).is_ok(), fits, "{term}");
        }
        // One of the terms is enough; all of a term's expressions are needed.
        assert!(
            checked(&json!([expression("disk", "Exists", &[]), expression("rack", "Exists", &[])])).is_ok()
        );
        let both = json!([{"matchExpressions": [
            {"key": "rack", "operator": "Exists"}, {"key": "disk", "operator": "Exists"}
        ]}]);
        assert!(checked(&both).is_err());
    }

    #[test]
    fn what_is_no_requirement_is_told_by_its_key() {
        for term in [
            expression("rack", "Near", &["7"]),
            expression("rack", "Gt", &["many"]),
            expression("rack", "Gt", &[]),
            expression("rack", "In", &[]),
        ] {
            let hold = checked(&json!([term])).unwrap_err();
            assert!(hold.code == HoldCode::ObjectInvalid && hold.detail.contains("rack"), "{hold:?}");
        }
        let hold = checked(&json!([expression("rack", "In", &["8"])])).unwrap_err();
        assert!(hold.detail.contains("kubernetes.io/hostname=n1,rack=7"), "{hold:?}");
    }
}
