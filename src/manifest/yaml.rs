//! Text -> documents. YAML becomes JSON without a schema first, as in kubectl and the kubelet (dependencies.md 4).

use serde_json::Value;

use super::json;

/// One document of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Document {
    /// Its content.
    pub(super) value: Value,
    /// The line, from 1, that its content begins on.
    pub(super) line: u64,
}

/// Why a file is no YAML or JSON. Line and column from 1; 0 where they are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(super) struct SyntaxError {
    pub(super) line: u64,
    pub(super) column: u64,
    pub(super) detail: String,
}

/// Reads the documents of a YAML file; empty ones are left out.
pub(super) fn documents(text: &str) -> Result<Vec<Document>, SyntaxError> {
    let found: Vec<serde_saphyr::Spanned<json::Strict>> = values(text)?;
    let document = |d: serde_saphyr::Spanned<json::Strict>| Document {
        line: d.referenced.line().max(1),
        value: d.value.0,
    };
    Ok(found.into_iter().map(document).collect())
}

/// Reads the documents of a YAML file as any type.
pub(super) fn values<T: serde::de::DeserializeOwned>(text: &str) -> Result<Vec<T>, SyntaxError> {
    // Enough for any manifest of 1 MiB, and an end to alias bombs before they cost a second. A level takes 20 KiB of stack in
    // a debug build, and a thread has 2 MiB.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 50,
            max_nodes: 250_000,
            max_events: 500_000,
            max_documents: 10_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
        },
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_multiple_with_options(text, options).map_err(|error| {
        let place = error.location();
        SyntaxError {
            line: place.map_or(0, |p| p.line()),
            column: place.map_or(0, |p| p.column()),
            detail: plain(&error.to_string()),
        }
    })
}

/// The parser's text without the place, which is told beside it, and without advice for programmers.
fn plain(text: &str) -> String {
    let text = text.rfind(" at line ").map_or(text, |at| &text[..at]);
    text.split(", set ").next().unwrap_or(text).to_owned()
}
