//! The forms of values: paths, time spans, names. What a key takes is said by its field.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Takes `500ms`, `1s`, `2m`, `1h 30m`.
fn duration(text: &str) -> Result<Duration, BadDuration> {
    let bad = || BadDuration { text: text.chars().take(40).collect() };
    let span: jiff::SignedDuration = text.trim().parse().map_err(|_error| bad())?;
    Duration::try_from(span).map_err(|_negative| bad())
}

/// A text that is no time span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a time span such as \"500ms\", \"1s\" or \"2m\"")]
struct BadDuration {
    text: String,
}

pub(super) fn check_path(path: &Path) -> Result<(), String> {
    if !path.is_absolute() {
        return Err(format!("{} is not an absolute path", path.display()));
    }
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(format!("{} has a `..`", path.display()));
    }
    Ok(())
}

pub(super) fn check_node_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.is_empty() || name.len() > 253 || !name.chars().all(plain) {
        return Err(format!("{name:?} is not a host name"));
    }
    Ok(())
}

fn checked<'de, D: Deserializer<'de>>(path: PathBuf) -> Result<PathBuf, D::Error> {
    check_path(&path).map_err(serde::de::Error::custom)?;
    Ok(path)
}

pub(super) fn absolute<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    checked::<D>(PathBuf::deserialize(from)?)
}

pub(super) fn directories<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "not a directory or a list of directories")]
    enum OneOrMore {
        One(PathBuf),
        More(Vec<PathBuf>),
    }
    let given = match OneOrMore::deserialize(from)? {
        OneOrMore::One(path) => vec![path],
        OneOrMore::More(paths) => paths,
    };
    if given.is_empty() {
        return Err(serde::de::Error::custom("the list is empty"));
    }
    given.into_iter().map(checked::<D>).collect()
}

/// Takes a path, or gRPC's `unix:///path`.
pub(super) fn endpoint<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(from)?;
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(&text);
    checked::<D>(PathBuf::from(path))
}

pub(super) fn node_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(from)?;
    check_node_name(&name).map_err(serde::de::Error::custom)?;
    Ok(Some(name))
}

pub(super) fn span<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

pub(super) fn maybe_span<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    span(from).map(Some)
}

pub(super) fn positive_span<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let given = span(from)?;
    if given.is_zero() {
        return Err(serde::de::Error::custom("is no time at all"));
    }
    Ok(given)
}

pub(super) fn maybe_positive_span<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    positive_span(from).map(Some)
}
