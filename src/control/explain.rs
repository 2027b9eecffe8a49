//! `volumectl explain`: the causal chain of a volume as text.

use super::render::{Style, label, line, marked, next_try, painted, since, used_by};
use super::units::humane;
use crate::model::Millis;
use crate::proto::control as api;

/// Returns `volumectl explain NAME`: one causal chain per volume, the first failing link marked.
pub fn explain(volumes: &[api::Volume], now: Millis, style: Style) -> String {
    let mut text = String::new();
    for volume in volumes {
        if !text.is_empty() {
            text.push('\n');
        }
        let target = if volume.pod.is_empty() { String::new() } else { format!(" for {}", used_by(volume)) };
        let goal = if volume.desired == "held" { "published" } else { volume.desired.as_str() };
        // The pod has it all the while.
        let kept = goal == "published" && matches!(volume.actual.as_str(), "growing" | "publishing again");
        let is = if volume.actual == goal || kept { "is" } else { "is not" };
        line(&mut text, &format!("{} {is} {goal}{target}", label(volume)));
        for link in &volume.chain {
            let (mark, color) = match link.state.as_str() {
                "good" => ("✓", "32"),
                "failed" => ("✗", "31"),
                _ => ("…", "0"),
            };
            let tries = match (link.attempts, link.since_ms) {
                (_, 0) => String::new(),
                // What is under way, or a driver that is starting, and has been for more than a moment.
                (0, since_ms) if link.state == "waiting" && now - since_ms >= 1000 => {
                    format!(" (for {})", since(since_ms, now))
                }
                (0, _) => String::new(),
                (n, since_ms) => format!(" (try {n}, for {})", since(since_ms, now)),
            };
            let detail = format!("{:<9} {}{tries}", link.step, humane(&link.detail));
            marked(&mut text, &format!(" {}", painted(mark, color, style)), detail.trim_end());
            if link.state == "failed" {
                let next = next_try(0, link.next_try_ms, now);
                let retry = format!("; retry now: volumectl retry {}", volume.object);
                if !next.is_empty() {
                    line(&mut text, &format!("             {}{retry}", next.trim_start_matches("; ")));
                }
            }
            if link.state != "good" && !link.remedy.is_empty() {
                line(&mut text, &format!("             remedy: {}", link.remedy));
            }
        }
    }
    text
}
