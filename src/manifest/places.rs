//! Where a field stands in the text. Only asked for when something is wrong: it parses the text once more.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::yaml;

/// Line and column, from 1, of everything in a file. JSON is read as YAML here; where it is none, no place is known.
#[derive(Debug)]
pub(super) struct Places(Vec<Node>);

#[derive(Debug)]
struct Node {
    place: (u64, u64),
    children: Children,
}

#[derive(Debug)]
enum Children {
    Map(Vec<(String, Node)>),
    Sequence(Vec<Node>),
    None,
}

impl Places {
    pub(super) fn of(text: &str) -> Self {
        Self(yaml::values(text).unwrap_or_default())
    }

    /// Finds a field (`spec.volumes[0].name`) of a document; where it is missing, what it is missing in.
    pub(super) fn find(&self, document: usize, field: &str) -> Option<(u64, u64)> {
        let mut node = self.0.get(document)?;
        let mut rest = field;
        loop {
            rest = rest.trim_start_matches('.');
            let child = match &node.children {
                Children::Map(entries) => entries
                    .iter()
                    .filter_map(|(key, child)| {
                        let rest = rest.strip_prefix(key.as_str())?;
                        (rest.is_empty() || rest.starts_with(['.', '['])).then_some((rest, child))
                    })
                    // Keys may have dots: the longest that fits.
                    .min_by_key(|(rest, _)| rest.len()),
                Children::Sequence(items) => rest.strip_prefix('[').and_then(|r| {
                    let (index, rest) = r.split_once(']')?;
                    Some((rest, items.get(index.parse::<usize>().ok()?)?))
                }),
                Children::None => None,
            };
            match child {
                Some((next, child)) if !rest.is_empty() => (rest, node) = (next, child),
                Some(_) | None => return Some(node.place),
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Children>::deserialize(deserializer)?;
        let place = (spanned.referenced.line(), spanned.referenced.column());
        Ok(Self { place, children: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Children {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ChildrenVisitor)
    }
}

struct ChildrenVisitor;

impl<'de> Visitor<'de> for ChildrenVisitor {
    type Value = Children;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E>(self) -> Result<Children, E> {
        Ok(Children::None)
    }

    fn visit_none<E>(self) -> Result<Children, E> {
        Ok(Children::None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Children, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Children, E> {
        Ok(Children::None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Children, E> {
        Ok(Children::None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Children, E> {
        Ok(Children::None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Children, E> {
        Ok(Children::None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Children, E> {
        Ok(Children::None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Children, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Children::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Children, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            entries.push((key, map.next_value()?));
        }
        Ok(Children::Map(entries))
    }
}
