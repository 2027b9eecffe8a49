use super::*;
use crate::control::samples::{self, NOW};
use crate::control::views::{self, Scene};

const SCENE: Scene<'_> = Scene { node: "n1", now: NOW };
const PLAIN: Style = Style { color: false, wide: false };

fn of(claim: &str) -> api::GetStatusResponse {
    views::status_of(&samples::all(), SCENE, &[claim.parse().unwrap()])
}

#[test]
fn a_list_has_the_state_first_and_the_reason_last() {
    let text = list(&views::status(&samples::all(), SCENE), PLAIN);
    insta::assert_snapshot!(text, @"");
}

#[test]
fn explain_shows_the_chain_the_next_try_and_the_remedy() {
    let mut text = String::new();
    for claim in ["db/data", "db/assets", "db/scratch", "db/backup"] {
        text.push_str(&explain(&of(claim).volumes, NOW, PLAIN));
    }
    insta::assert_snapshot!(text, @"");
}

#[test]
fn status_of_an_object_has_all_there_is() {
    insta::assert_snapshot!(status(&of("db/data"), PLAIN), @"");
}

#[test]
fn status_without_a_name_shows_problems_foreign_volumes_and_the_brake() {
    insta::assert_snapshot!(overview(&views::status(&samples::all(), SCENE), PLAIN), @"");
}

#[test]
fn drivers_are_listed_with_their_volumes() {
    insta::assert_snapshot!(drivers(&views::drivers(&samples::all(), NOW), PLAIN), @"");
}

#[test]
fn nothing_from_a_manifest_reaches_the_terminal_as_an_escape() {
    let everything = views::status(&samples::all(), SCENE);
    for text in [list(&everything, PLAIN), overview(&everything, PLAIN)] {
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
    let colored = list(&everything, Style { color: true, wide: true });
    assert!(colored.contains("\u{1b}[31m✗\u{1b}[0m"), "{colored:?}");
}
