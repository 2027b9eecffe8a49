//! What a driver says, made fit for people: without our secrets, without control characters, and short.

use std::collections::{BTreeMap, BTreeSet};

use crate::proto::csi;

/// The longest text of a driver that is kept, in bytes.
const LIMIT: usize = 1024;

/// The values that a request carries and that no answer may repeat (design rule 5).
#[derive(Clone, Default)]
pub(super) struct Secrets(BTreeSet<String>);

impl Secrets {
    /// Takes all values of a `secrets` map.
    pub(super) fn of(map: &BTreeMap<String, String>) -> Self {
        let mut secrets = Self::default();
        for value in map.values() {
            secrets.add(value);
        }
        secrets
    }

    /// Adds mount options that look like credentials: some drivers take a password there (csi.md 2.8).
    pub(super) fn with_mount_flags(mut self, capability: Option<&csi::VolumeCapability>) -> Self {
        let Some(csi::volume_capability::AccessType::Mount(mount)) =
            capability.and_then(|capability| capability.access_type.as_ref())
        else {
            return self;
        };
        for (key, value) in mount.mount_flags.iter().filter_map(|flag| flag.split_once('=')) {
            let key = key.to_ascii_lowercase();
            if ["pass", "secret", "token", "cred", "key"].iter().any(|word| key.contains(word)) {
                self.add(value);
            }
        }
        self
    }

    /// Adds the pod's service account tokens, which a kubelet puts into the volume context (csi.md 2.10).
    pub(super) fn with_tokens(mut self, context: &BTreeMap<String, String>) -> Self {
        if let Some(tokens) = context.get("csi.storage.k8s.io/serviceAccount.tokens") {
            self.add(tokens);
            // The value is JSON; a driver's error may name one token of it.
            for part in tokens.split('"').filter(|part| part.len() >= 32) {
                self.add(part);
            }
        }
        self
    }

    /// Adds a value in the forms in which a driver may repeat it: as it is, trimmed, quoted, and line by line. All as
    /// `printable` leaves them.
    fn add(&mut self, value: &str) {
        let quoted = format!("{value:?}");
        let forms = [value, value.trim(), quoted.trim_matches('"')];
        let lines = value.lines().map(str::trim).filter(|line| line.len() >= 4);
        self.0.extend(forms.into_iter().chain(lines).filter(|form| !form.is_empty()).map(printable));
    }

    /// Returns a printable `text` with every secret replaced by `***`.
    fn hide(&self, text: &str) -> String {
        // The longest first: one secret may be a part of another.
        let mut secrets: Vec<&String> = self.0.iter().collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let mut hidden = String::with_capacity(text.len());
        let mut rest = text;
        // One pass over the text, so that a secret "*" does not replace our own stars again and again.
        while let Some(next) = rest.chars().next() {
            if let Some(secret) = secrets.iter().find(|secret| rest.starts_with(secret.as_str())) {
                hidden.push_str("***");
                rest = rest.get(secret.len()..).unwrap_or_default();
            } else {
                hidden.push(next);
                rest = rest.get(next.len_utf8()..).unwrap_or_default();
            }
        }
        hidden
    }
}

/// Returns a driver's text without the secrets, with control characters replaced by spaces, cut to 1 KiB.
pub(super) fn clean(text: &str, secrets: &Secrets) -> String {
    // Made printable first: a secret "a b" would else come out of a driver's "a\nb".
    cut(secrets.hide(&printable(text)), LIMIT)
}

/// Returns a driver's text with control characters replaced by spaces, cut to a number of bytes. Not for what may hold a secret.
pub fn readable(text: &str, limit: usize) -> String {
    cut(printable(text), limit)
}

fn cut(mut clean: String, limit: usize) -> String {
    if clean.len() > limit {
        let end = (0..=limit.saturating_sub("...".len()))
            .rev()
            .find(|end| clean.is_char_boundary(*end))
            .unwrap_or(0);
        clean.truncate(end);
        clean.push_str("...");
    }
    clean
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if is_unprintable(c) { ' ' } else { c }).collect()
}

/// Control characters, and the characters that turn the direction of text or end a line on a terminal.
fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(values: &[&str]) -> Secrets {
        Secrets::of(&values.iter().enumerate().map(|(i, v)| (i.to_string(), (*v).to_owned())).collect())
    }

    #[test]
    fn every_secret_is_replaced_also_when_one_is_part_of_another() {
        let text = "login hunter2 failed, password hunter2-long, again hunter2";
        assert_eq!(
            clean(text, &secrets(&["hunter2", "hunter2-long"])),
            "login *** failed, password ***, again ***"
        );
    }

    #[test]
    fn a_secret_of_several_lines_is_found_quoted_and_line_by_line() {
        let secrets = secrets(&["BEGIN KEY\nc2VjcmV0\nEND KEY\n"]);
        assert_eq!(clean(r#"bad key "BEGIN KEY\nc2VjcmV0\nEND KEY\n""#, &secrets), r#"bad key "***""#);
        assert_eq!(clean("line 2: c2VjcmV0!", &secrets), "line 2: ***!");
    }

    #[test]
    fn a_secret_is_found_where_control_characters_stand_for_its_blanks_and_the_other_way() {
        assert_eq!(clean("bad: open\nses\tame", &secrets(&["open ses ame"])), "bad: ***");
        assert_eq!(clean("bad: open ses", &secrets(&["open\tses"])), "bad: ***");
    }

    #[test]
    fn a_secret_star_does_not_grow_and_an_empty_one_does_nothing() {
        assert_eq!(clean("a*b", &secrets(&["*", ""])), "a***b");
    }

    #[test]
    fn a_secret_across_the_cut_leaves_no_part_of_it() {
        let text = format!("{}topsecretvalue", "x".repeat(LIMIT - 8));
        assert!(!clean(&text, &secrets(&["topsecretvalue"])).contains("top"));
    }

    #[test]
    fn control_characters_are_replaced_and_the_length_is_cut_between_characters() {
        assert_eq!(clean("a\x1b[31mb\r\nc\u{202e}", &Secrets::default()), "a [31mb  c ");
        let long = clean(&"ü".repeat(2000), &Secrets::default());
        assert!(long.len() <= LIMIT && long.ends_with("ü..."), "{}", long.len());
    }

    #[test]
    fn a_password_in_the_mount_options_is_a_secret_and_ro_is_not() {
        let capability = csi::VolumeCapability {
            access_type: Some(csi::volume_capability::AccessType::Mount(
                csi::volume_capability::MountVolume {
                    mount_flags: vec!["ro".into(), "username=u".into(), "password=hunter2".into()],
                    ..Default::default()
                },
            )),
            ..Default::default()
        };
        let secrets = Secrets::default().with_mount_flags(Some(&capability));
        assert_eq!(clean("mount -o ro,password=hunter2", &secrets), "mount -o ro,password=***");
    }
}
