//! A JSON value as YAML 1.2, for `-o yaml`. JSON's strings are YAML's double-quoted ones, so only maps, lists and plain words
//! are set otherwise.

use serde_json::Value;

/// Returns a document that ends with a newline.
pub fn document(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => put_map(&mut text, map, 0),
        Value::Array(list) if !list.is_empty() => put_list(&mut text, list, 0),
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Object(_)
        | Value::Array(_) => {
            text.push_str(&scalar(value));
            text.push('\n');
        }
    }
    text
}

/// The first line continues where the text is; the others are indented.
fn put_map(text: &mut String, map: &serde_json::Map<String, Value>, indent: usize) {
    for (nth, (key, value)) in map.iter().enumerate() {
        if nth > 0 {
            pad(text, indent);
        }
        text.push_str(&word(key));
        text.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                text.push('\n');
                pad(text, indent + 2);
                put_map(text, map, indent + 2);
            }
            Value::Array(list) if !list.is_empty() => {
                text.push('\n');
                pad(text, indent);
                put_list(text, list, indent);
            }
            plain => {
                text.push(' ');
                text.push_str(&scalar(plain));
                text.push('\n');
            }
        }
    }
}

fn put_list(text: &mut String, list: &[Value], indent: usize) {
    for (nth, value) in list.iter().enumerate() {
        if nth > 0 {
            pad(text, indent);
        }
        text.push_str("- ");
        match value {
            Value::Object(map) if !map.is_empty() => put_map(text, map, indent + 2),
            Value::Array(list) if !list.is_empty() => put_list(text, list, indent + 2),
            plain => {
                text.push_str(&scalar(plain));
                text.push('\n');
            }
        }
    }
}

fn pad(text: &mut String, indent: usize) {
    text.extend(std::iter::repeat_n(' ', indent));
}

/// A scalar, or an empty map or list, in JSON's form, which is YAML's too.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => word(text),
        other => other.to_string(),
    }
}

/// A string: bare if no YAML reader can take it for anything else, quoted if not.
fn word(text: &str) -> String {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'));
    let lower = text.to_ascii_lowercase();
    let means = matches!(lower.as_str(), "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n");
    if begins && plain && !means { text.to_owned() } else { quoted(text) }
}

/// JSON leaves DEL, C1 and the line separators as they are, which YAML does not allow or folds.
fn quoted(text: &str) -> String {
    let json = Value::String(text.to_owned()).to_string();
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match u32::from(c) {
            code @ (0x7f..=0x9f | 0x2028 | 0x2029 | 0xfeff) => out.push_str(&format!("\\u{code:04x}")),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lists_and_words_are_set_as_people_write_them() {
        let value = serde_json::json!({
            "node": "n1",
            "empty": "",
            "none": null,
            "counts": {"failed": 0, "full": 1.5},
            "volumes": [{"path": "/r/x y", "ills": [], "chain": [{"step": "stage"}, {"step": "no"}]}, "a", [1, [2, 3]]],
            "a: b": {},
        });
        insta::assert_snapshot!(document(&value), @r#"
        "a: b": {}
        counts:
          failed: 0
          full: 1.5
        empty: ""
        node: n1
        none: null
        volumes:
        - chain:
          - step: stage
          - step: "no"
          ills: []
          path: "/r/x y"
        - a
        - - 1
          - - 2
            - 3
        "#);
        assert_eq!(document(&Value::Null), "null\n");
    }

    #[test]
    fn a_yaml_reader_reads_what_was_meant() {
        let strings = [
            "true",
            "No",
            "~",
            "1e3",
            "0x10",
            "- a",
            "a: b",
            "#c",
            "é\u{85}\u{2028}\u{7f}",
            "\u{1b}[31m",
            "12:30",
            "/a",
            "=",
            "<<",
            "a ",
            "\"q\"",
            "line\nbreak",
            ".inf",
            "2024-01-01",
            "null",
        ];
        let value = serde_json::json!({"list": strings, "map": {"1": "x", "true": {"y": [[], {}, [{}]]}}});
        let read: Value = serde_saphyr::from_str(&document(&value)).unwrap();
        assert_eq!(read, value);
    }
}
