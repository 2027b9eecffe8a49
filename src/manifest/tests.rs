//! Text -> objects, without a directory: the YAML table of dependencies.md 4, the cases in `tests/manifest`, broken text.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::file::understand;
use super::objects::{Object, Parsed, derived_uid};
use super::set::Content;
use super::{json as strict_json, yaml};

fn parsed(text: &str) -> std::sync::Arc<Parsed> {
    match understand(Path::new("/m/x.yaml"), text.as_bytes().to_vec()) {
        Content::Whole(parsed) => parsed,
        other => panic!("{other:?}"),
    }
}

fn values(text: &str) -> Vec<Value> {
    yaml::documents(text).expect("YAML").into_iter().map(|d| d.value).collect()
}

#[test]
fn yaml_becomes_the_json_that_kubernetes_makes_of_it() {
    let same = [
        ("defaultMode: 0644", json!({"defaultMode": 420})),
        ("defaultMode: 0o644", json!({"defaultMode": 420})),
        ("defaultMode: 420", json!({"defaultMode": 420})),
        ("defaultMode: \"0644\"", json!({"defaultMode": "0644"})),
        ("immutable: yes", json!({"immutable": true})),
        ("data: {a: 5, b: true}", json!({"data": {"a": 5, "b": true}})),
        ("storage: 1073741824", json!({"storage": 1_073_741_824})),
        ("\u{feff}a: 1\r\nb: 2\r\n", json!({"a": 1, "b": 2})),
        ("a: &x {b: 1}\nc: *x", json!({"a": {"b": 1}, "c": {"b": 1}})),
        ("size: 10Gi\nnothing: ~\nempty:", json!({"size": "10Gi", "nothing": null, "empty": null})),
        ("text: |\n  0644\n", json!({"text": "0644\n"})),
    ];
    for (text, expected) in same {
        assert_eq!(values(text), [expected], "{text}");
    }
}

#[test]
fn empty_documents_are_skipped_and_lines_are_counted() {
    let found = yaml::documents("---\n---\n# only a comment\n---\na: 1\n---\n\nb: 2\n---\n").expect("YAML");
    let found: Vec<_> = found.into_iter().map(|d| (d.line, d.value)).collect();
    assert_eq!(found, [(5, json!({"a": 1})), (8, json!({"b": 2}))]);
    let found = strict_json::documents("{\"a\": 1}\n\n{\"b\": 2}\n").expect("JSON");
    assert_eq!(found.iter().map(|d| d.line).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn a_key_given_twice_is_an_error_with_its_place_in_yaml_and_json() {
    let error = yaml::documents("a: 1\nb:\n  c: 1\n  c: 2\n").expect_err("twice");
    assert_eq!((error.line, error.column), (4, 3), "{error}");
    assert!(error.detail.contains("duplicate"), "{error}");
    let error = strict_json::documents("{\"a\": 1,\n \"b\": {\"c\": 1, \"c\": 2}}").expect_err("twice");
    assert_eq!(error.line, 2, "{error}");
    assert!(error.detail.contains("duplicate key \"c\""), "{error}");
}

#[test]
fn an_alias_bomb_ends_soon() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..10 {
        let refs = vec![format!("*a{}", i - 1); 10].join(", ");
        bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    let began = tokio::time::Instant::now();
    let error = yaml::documents(&bomb).expect_err("a bomb");
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    assert!(error.line > 0, "{error:?}");
}

#[test]
fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
    for depth in [40, 49] {
        values(&format!("{}x{}", "[".repeat(depth), "]".repeat(depth)));
        values(&format!("{}x", "- ".repeat(depth)));
        // Without a kind it is refused, and its place is looked for.
        assert_eq!(parsed(&format!("{}x", "- ".repeat(depth))).bad.len(), 1);
    }
    for text in ["[".repeat(100_000), "{\"a\": ".repeat(50_000), "- ".repeat(100_000)] {
        yaml::documents(&text).expect_err("too deep");
        strict_json::documents(&text).expect_err("too deep");
    }
}

#[test]
fn a_uid_is_a_uuid_of_version_8_that_never_changes() {
    let uid = derived_uid("default", "web");
    assert_eq!(uid.len(), 36);
    assert_eq!(&uid[14..15], "8", "{uid}");
    assert!(matches!(&uid[19..20], "8" | "9" | "a" | "b"), "{uid}");
    // A changed derivation would make every pod of every host another pod.
    insta::assert_snapshot!(uid, @"82b3ade9-d00c-8164-aa4d-420e670d6cd9");
    assert_ne!(uid, derived_uid("default", "web2"));
}

/// Each `NAME` in tests/manifest has a `NAME.expected.json` of what comes of it. With VOLUMED_ACCEPT_CASES set, what comes
/// now is written down as expected: read the diff.
#[test]
fn the_cases_come_to_what_is_expected() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifest");
    let mut inputs: Vec<PathBuf> = fs::read_dir(&directory)
        .expect("the cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|p| !p.to_string_lossy().ends_with(".expected.json"))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 8, "{inputs:?}");
    for input in inputs {
        let name = Path::new("/m").join(input.file_name().expect("a name"));
        let actual = summary(&understand(&name, fs::read(&input).expect("the input")));
        let file_name = input.file_name().expect("a name").to_string_lossy();
        let expected_path = directory.join(format!("{file_name}.expected.json"));
        if std::env::var_os("VOLUMED_ACCEPT_CASES").is_some() {
            fs::write(&expected_path, serde_json::to_string_pretty(&actual).expect("JSON") + "\n")
                .expect("write");
        }
        let expected = fs::read(&expected_path).ok().and_then(|e| serde_json::from_slice::<Value>(&e).ok());
        assert_eq!(
            Some(&actual),
            expected.as_ref(),
            "{}: {}",
            input.display(),
            serde_json::to_string_pretty(&actual).expect("JSON")
        );
    }
}

fn summary(content: &Content) -> Value {
    match content {
        Content::Whole(parsed) => json!({
            "objects": parsed.good.iter().map(|g| object(&g.object)).collect::<Vec<_>>(),
            "lines": parsed.good.iter().map(|g| g.source.line).collect::<Vec<_>>(),
            "refused": parsed.bad.iter().flat_map(|b| &b.problems).map(ToString::to_string).collect::<Vec<_>>(),
            "warnings": parsed.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }),
        Content::Unparsable(problem) => json!({ "unparsable": problem.to_string() }),
        Content::Writing(problem) | Content::Unread(problem) => json!({ "unread": problem.to_string() }),
    }
}

fn object(object: &Object) -> Value {
    let value = match object {
        Object::Pod(o) => serde_json::to_value(&**o),
        Object::Claim(o) => serde_json::to_value(&**o),
        Object::Volume(o) => serde_json::to_value(&**o),
        Object::Class(o) => serde_json::to_value(&**o),
        Object::Secret(o) => serde_json::to_value(&**o),
        Object::Driver(o) => serde_json::to_value(&**o),
        Object::Attachment(o) => serde_json::to_value(&**o),
    };
    value.expect("JSON")
}

#[test]
fn a_secret_is_never_printed_whatever_is_wrong_with_it() {
    let broken = [
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\nstringData: {password: hunter2, password: hunter2}\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\ndata: {password: [hunter2]}\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\ndata: {password: 'hunter2!'}\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\ndata: hunter2\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\nstringData: {password: {a: hunter2}}\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\nstringData: {'hunter2 x': a}\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\nimmutable: hunter2\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\nstringdata: {password: hunter2}\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\nstringData:\n  password: \"hunter2\n  x: y\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\nstringData:\n  password: *hunter2\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\nstringData:\n  password: !!int hunter2\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\nstringData:\n  password: !!binary hunter2!\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\nstringData:\n  password: a\n hunter2\n",
    ];
    for text in broken {
        let shown =
            format!("{:?}", summary_without_objects(&understand(Path::new("/m/x.yaml"), text.into())));
        assert!(!shown.contains("hunter2"), "{text}\n{shown}");
        assert!(shown.contains("/m/x.yaml"), "nothing is said of {text}\n{shown}");
    }
}

fn summary_without_objects(content: &Content) -> Value {
    let mut summary = summary(content);
    if let Some(map) = summary.as_object_mut() {
        map.remove("objects");
    }
    summary
}

#[test]
fn string_data_is_data_and_wins() {
    let parsed = parsed(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: b2xk, b: Yg==}\nstringData: {a: new}\n",
    );
    let Some(Object::Secret(secret)) = parsed.good.first().map(|g| &g.object) else { panic!("no secret") };
    let data = secret.data.as_ref().expect("data");
    assert_eq!(data["a"].0, b"new");
    assert_eq!(data["b"].0, b"b");
    assert!(secret.string_data.is_none());
}

#[test]
fn hostile_names_are_refused_by_field_and_never_become_an_identity() {
    let long = "a".repeat(300);
    let names =
        ["a/b", "..", ".", "../../etc", "a\\0b", "UPPER", "-a", "a b", "", long.as_str(), "a\\u001b[2J"];
    for name in names {
        for field in ["name", "namespace"] {
            let other = if field == "name" { "" } else { "name: fine, " };
            if name.is_empty() && field == "namespace" {
                continue;
            }
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{{other}{field}: \"{name}\"}}\nspec: {{containers: []}}\n"
            );
            let parsed = parsed(&text);
            assert!(parsed.good.is_empty(), "{name:?} as {field}");
            let [bad] = &parsed.bad[..] else { panic!("{:?}", parsed.bad) };
            assert!(bad.identity.is_none(), "{name:?} as {field}");
            let problem = &bad.problems[0];
            assert_eq!(problem.field.as_deref(), Some(&*format!("metadata.{field}")));
            assert!(problem.object.is_some() && !problem.remedy.is_empty());
            let shown = problem.to_string();
            assert!(!shown.contains(['\0', '\x1b']) && shown.len() < 700, "{shown:?}");
        }
    }
    for uid in ["a/b", "..", "a\\0b", long.as_str()] {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: x, uid: \"{uid}\"}}\nspec: {{containers: []}}\n"
        );
        let parsed = parsed(&text);
        assert!(parsed.good.is_empty(), "{uid:?}");
        assert_eq!(parsed.bad[0].problems[0].field.as_deref(), Some("metadata.uid"));
    }
}

#[test]
fn a_fault_is_told_with_the_place_of_its_field() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: x}\n  spec:\n    \
                containers: []\n    volumes:\n    - name: v\n      hostPath:\n        path: ../etc\n";
    let found = parsed(text);
    assert_eq!(found.bad[0].problems[0].position, Some((12, 15)), "{:?}", found.bad);
    let text = "{\"apiVersion\": \"v1\", \"kind\": \"PersistentVolume\",\n \"metadata\": {\"name\": \"x\"},\n \
                \"spec\": {\"capacity\": {\"a.b\": \"x\"}}}";
    let found = parsed(text);
    assert_eq!(found.bad[0].problems[0].position.map(|p| p.0), Some(3), "{:?}", found.bad);
}

const POD: &str = include_str!("../../tests/manifest/pod.yaml");

proptest! {
    #[test]
    fn broken_text_is_a_problem_and_never_a_panic(
        at in 0..POD.len(),
        cut in 0..40usize,
        insert in "[\\PC\n\t{}\\[\\]:&*!|>'\"#%@,-]{0,12}",
    ) {
        let mut bytes = POD.as_bytes().to_vec();
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, insert.bytes());
        for name in ["/m/x.yaml", "/m/x.json"] {
            let content = understand(Path::new(name), bytes.clone());
            let told = match content {
                Content::Whole(parsed) => parsed.good.len() + parsed.bad.len() + parsed.warnings.len(),
                Content::Unparsable(problem) => problem.detail.len(),
                Content::Writing(_) | Content::Unread(_) => 0,
            };
            // Whatever the text is, its object is there or something is said.
            prop_assert!(told > 0 || yaml::documents(&String::from_utf8_lossy(&bytes)).is_ok_and(|d| d.is_empty()));
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        understand(Path::new("/m/x.yaml"), bytes.clone());
        understand(Path::new("/m/x.json"), bytes);
    }
}
