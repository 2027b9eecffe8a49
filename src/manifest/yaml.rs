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
    // Enough for any manifest of 1 MiB, and an end to alias bombs before they cost a second.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 100,
            max_nodes: 250_000,
            max_events: 500_000,
            max_documents: 10_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
        },
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let parsed: Result<Vec<serde_saphyr::Spanned<json::Strict>>, _> =
        serde_saphyr::from_str_multiple_with_options(text, options);
    match parsed {
        Ok(found) => Ok(found
            .into_iter()
            .map(|d| Document { line: d.referenced.line().max(1), value: d.value.0 })
            .collect()),
        Err(error) => {
            let place = error.location();
            Err(SyntaxError {
                line: place.map_or(0, |p| p.line()),
                column: place.map_or(0, |p| p.column()),
                detail: error.to_string(),
            })
        }
    }
}
