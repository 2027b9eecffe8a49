//! Messages of the control API -> text for people. Pure: returns lines, prints nothing.

use std::fmt::Write as _;

pub use super::explain::explain;
use super::foreign;
use super::units::{bytes, humane, mode, span};
use super::usage::{condition, inodes, measured, used};
use crate::model::Millis;
use crate::proto::control as api;

/// How text is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// Colour the state symbols.
    pub color: bool,
    /// More columns.
    pub wide: bool,
}

/// Returns `volumectl list`: one row per volume, reason last, and what else needs a look.
pub fn list(answer: &api::GetStatusResponse, style: Style) -> String {
    let mut head = vec!["VOLUME", "DRIVER", "MODE", "SIZE", "DESIRED", "ACTUAL", "SINCE", "USED BY"];
    if style.wide {
        head.extend(["HANDLE", "PATH", "USED", "CONDITION"]);
    }
    head.push("REASON");
    let rows = answer.volumes.iter().map(|volume| {
        let mut cells = vec![
            label(volume),
            dash(driver_of(volume)),
            mode(&volume.access_mode).to_owned(),
            volume.capacity_bytes.map_or_else(|| "-".to_owned(), bytes),
            volume.desired.clone(),
            volume.actual.clone(),
            since(volume.since_ms, answer.now_ms),
            used_by(volume),
        ];
        if style.wide {
            cells.extend([dash(&volume.handle), dash(&volume.path), dash(&used(volume)), condition(volume)]);
        }
        cells.push(dash(&reason(volume, answer.now_ms)));
        (volume.state.as_str(), cells)
    });
    let mut text = table(&head, rows, style);
    let more = [
        (answer.problems.iter().filter(|p| !p.warning).count(), "problem", "problems"),
        (answer.problems.iter().filter(|p| p.warning).count(), "warning", "warnings"),
        (answer.incomplete.len(), "unread manifest", "unread manifests"),
        (answer.foreign.len(), "foreign volume", "foreign volumes"),
        (usize::from(answer.brake.is_some()), "brake", "brakes"),
        (answer.paused.len(), "pause", "pauses"),
    ];
    let more: Vec<String> = (more.iter().filter(|(n, ..)| *n > 0))
        .map(|(n, one, many)| format!("{n} {}", if *n == 1 { one } else { many }))
        .collect();
    let more = more.join(", ");
    if !more.is_empty() {
        let _written = writeln!(text, "\n{more}: see volumectl status");
    }
    text
}

/// Returns `volumectl status` without a name: what the daemon as a whole has to say.
pub fn overview(answer: &api::GetStatusResponse, style: Style) -> String {
    let mut text = String::new();
    let counts = answer.counts.unwrap_or_default();
    let state = if counts.failed > 0 || !answer.problems.is_empty() || answer.brake.is_some() {
        "failed"
    } else if !answer.ready || !answer.complete || counts.waiting > 0 {
        "waiting"
    } else if counts.working > 0 {
        "working"
    } else {
        "good"
    };
    marked(&mut text, &symbol(state, style), &format!("volumed {} on {}", answer.version, answer.node));
    line(
        &mut text,
        &format!(
            "    Volumes: {} published, {} working, {} waiting, {} failed",
            counts.published, counts.working, counts.waiting, counts.failed
        ),
    );
    let reading = match (answer.ready, answer.complete) {
        (false, _) => "not ready: the state is being reconstructed",
        (true, true) => "complete",
        (true, false) => "incomplete: nothing counts as absent and nothing is taken down",
    };
    line(&mut text, &format!("  Manifests: {reading} (reading {})", answer.generation));
    for directory in &answer.directories {
        let state = if directory.listed {
            format!("{} file{}", directory.files, if directory.files == 1 { "" } else { "s" })
        } else {
            "cannot be listed".to_owned()
        };
        line(&mut text, &format!("             {}: {state}", directory.path));
    }
    for (name, words) in [("Paused", paused(&answer.paused)), ("Foreign", foreign::summary(&answer.foreign))]
    {
        if !words.is_empty() {
            line(&mut text, &format!("{name:>11}: {words}"));
        }
    }
    section(&mut text, "Nothing is taken down because", answer.incomplete.iter().map(problem));
    section(&mut text, "Problems", answer.problems.iter().filter(|p| !p.warning).map(problem));
    section(&mut text, "Warnings", answer.problems.iter().filter(|p| p.warning).map(problem));
    if let Some(brake) = &answer.brake {
        let held = format!("{} volumes are held: {}", brake.held, brake.reason);
        let remedy = "  if that is meant: volumectl approve".to_owned();
        section(&mut text, "Mass-delete brake", [held, remedy].into_iter());
    }
    let bare = answer.volumes.iter().filter(|volume| volume.not_a_mount_point);
    section(&mut text, "Published, and not a mount point", bare.map(|v| format!("{} {}", label(v), v.path)));
    let failed = answer.volumes.iter().filter(|volume| volume.state == "failed");
    let failed = failed.map(|v| format!("{} {}", label(v), reason(v, answer.now_ms)));
    section(&mut text, "Failed", failed);
    text
}

fn paused(words: &[String]) -> String {
    if words.is_empty() {
        return String::new();
    }
    format!("{}: nothing is begun for these until volumectl resume", words.join(", "))
}

/// Returns `volumectl status NAME`: everything about each volume.
pub fn status(answer: &api::GetStatusResponse, style: Style) -> String {
    let now = answer.now_ms;
    let mut text = String::new();
    for volume in &answer.volumes {
        if !text.is_empty() {
            text.push('\n');
        }
        marked(&mut text, &symbol(&volume.state, style), &label(volume));
        let mut field = |name: &str, value: &str| {
            if !value.is_empty() {
                line(&mut text, &format!("{name:>10}: {value}"));
            }
        };
        let for_ms = since(volume.since_ms, now);
        field("State", &format!("{}, {} wanted; for {for_ms}", volume.actual, volume.desired));
        field("Reason", &reason(volume, now));
        field("Remedy", &volume.remedy);
        if !volume.paused_by.is_empty() {
            field("Paused", &format!("by the operator: {}", volume.paused_by));
        }
        field("Used by", &if volume.pod.is_empty() { String::new() } else { used_by(volume) });
        field("Manifest", &volume.manifest);
        field("PV", if volume.claim.is_empty() { "" } else { &volume.spec_name });
        field("Driver", driver_of(volume));
        field("Handle", &volume.handle);
        field("Size", &volume.capacity_bytes.map(bytes).unwrap_or_default());
        field("Mode", &volume.access_mode);
        field("Used", &used(volume));
        if let Some(usage) = &volume.usage {
            field("Inodes", &inodes(usage));
            field("Measured", &measured(usage, now));
        }
        for ill in &volume.ills {
            field("Not well", [&*ill.status, &ill.reason, &ill.message].join(" ").trim_end());
        }
        field("Staging", &place(&volume.staging_path, &volume.staging, volume.staging_not_a_mount_point));
        field("Path", &place(&volume.path, "", volume.not_a_mount_point));
        field("Edited", &volume.pending_change);
        if let Some(running) = &volume.running {
            let far = humane(&running.detail);
            let far = if far.is_empty() { far } else { format!(": {far}") };
            field("Running", &format!("{} for {}{far}", running.step, since(running.since_ms, now)));
        }
        for blocked in volume.blocked.iter().filter(|blocked| !volume.reason.ends_with(&blocked.detail)) {
            let next = next_try(blocked.attempts, blocked.next_try_ms, now);
            field(
                "Blocked",
                &format!("{}: {}: {}{next}", blocked.step, blocked.code, humane(&blocked.detail)),
            );
        }
        section(
            &mut text,
            "Events",
            volume.events.iter().map(|e| format!("{} ago  {}", since(e.at_ms, now), e.text)),
        );
    }
    text
}

/// Returns `volumectl drivers`.
pub fn drivers(answer: &api::ListDriversResponse, style: Style) -> String {
    let mut head = vec!["DRIVER", "VERSION", "NODE", "VOLUMES", "INFLIGHT", "STATE", "SINCE", "SOCKET"];
    if style.wide {
        head.extend(["KNOWN BY", "STANDBY", "CAPABILITIES"]);
    }
    head.push("REASON");
    let rows = answer.drivers.iter().map(|driver| {
        let max = if driver.max_volumes > 0 { format!("/{}", driver.max_volumes) } else { String::new() };
        let mut cells = vec![
            driver.name.clone(),
            dash(&driver.version),
            dash(&driver.node_id),
            format!("{}{max}", driver.volumes),
            driver.in_flight.to_string(),
            if driver.unwell.is_empty() { driver.state.clone() } else { "unwell".to_owned() },
            since(driver.since_ms, answer.now_ms),
            driver.endpoint.clone(),
        ];
        if style.wide {
            let standby = driver.standby.join(",");
            cells.extend([driver.origin.clone(), dash(&standby), dash(&driver.capabilities.join(","))]);
        }
        let well = driver.unwell.is_empty();
        cells.push(dash(if well { &driver.reason } else { &driver.unwell }));
        let mark = match driver.state.as_str() {
            "ready" if well => "good",
            "ready" | "starting" => "waiting",
            _ => "failed",
        };
        (mark, cells)
    });
    table(&head, rows, style)
}

/// Returns the lines of a table: a symbol, cells padded to their column, the last one as long as it is.
pub fn table<'a>(head: &[&str], rows: impl Iterator<Item = (&'a str, Vec<String>)>, style: Style) -> String {
    let rows: Vec<(&str, Vec<String>)> =
        rows.map(|(state, cells)| (state, cells.iter().map(|cell| printable(cell)).collect())).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|(_, cells)| cells.get(column)).map(|c| c.chars().count());
        cells.chain(head.get(column).map(|h| h.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len().saturating_sub(1)).map(width).collect();
    let padded = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (column, cell) in cells.enumerate() {
            let width = widths.get(column).copied().unwrap_or(0);
            let _written = write!(line, "{}{cell:<width$}", if column == 0 { "" } else { "  " });
        }
        line.trim_end().to_owned()
    };
    let mut text = String::new();
    let _written = writeln!(text, "  {}", padded(&mut head.iter().copied()));
    for (state, cells) in &rows {
        let cells = padded(&mut cells.iter().map(String::as_str));
        let _written = writeln!(text, "{} {cells}", symbol(state, style));
    }
    text
}

/// Returns the dot of a state, as systemctl and networkctl show it.
fn symbol(state: &str, style: Style) -> String {
    let (dot, color) = match state {
        "good" => ("●", "32"),
        "working" => ("↻", "33"),
        "failed" => ("✗", "31"),
        _ => ("○", "33"),
    };
    painted(dot, color, style)
}

pub(super) fn painted(mark: &str, color: &str, style: Style) -> String {
    if style.color { format!("\u{1b}[{color}m{mark}\u{1b}[0m") } else { mark.to_owned() }
}

/// Returns the name of a volume in lists: the claim's, or the pod's and the volume's in it.
pub(super) fn label(volume: &api::Volume) -> String {
    match (volume.claim.as_str(), volume.pod.as_str()) {
        ("", "") => volume.key.clone(),
        ("", _) => format!("{}:{}", volume.object, volume.name),
        (claim, _) => claim.to_owned(),
    }
}

pub(super) fn used_by(volume: &api::Volume) -> String {
    if volume.pod.is_empty() { "-".to_owned() } else { format!("pod/{}/{}", volume.namespace, volume.pod) }
}

fn driver_of(volume: &api::Volume) -> &str {
    if volume.driver.is_empty() {
        volume.plugin.strip_prefix("kubernetes.io/").unwrap_or(&volume.plugin)
    } else {
        &volume.driver
    }
}

/// Returns the reason of a row, with the next try as seen from now.
pub fn reason(volume: &api::Volume, now: Millis) -> String {
    let next = volume.blocked.first().filter(|blocked| volume.reason.starts_with(&blocked.step));
    let next = next.map(|blocked| next_try(blocked.attempts, blocked.next_try_ms, now));
    let mut reason = format!("{}{}", humane(&volume.reason), next.unwrap_or_default());
    // How far it got is not why it is not there, but nothing else is to be said then.
    if let Some(running) = volume.running.as_ref().filter(|_| reason.is_empty()) {
        reason = humane(&running.detail);
    }
    let told = volume.blocked.first().is_some_and(|blocked| blocked.code == "paused");
    if !volume.paused_by.is_empty() && !told {
        reason.push_str(if reason.is_empty() { "paused" } else { "; paused" });
    }
    reason
}

pub(super) fn next_try(attempts: u32, next_try_ms: Option<Millis>, now: Millis) -> String {
    let tried = if attempts > 0 { format!(", try {attempts}") } else { String::new() };
    match next_try_ms {
        Some(at) => format!("{tried}; next try in {}", span(at - now)),
        None => tried,
    }
}

pub(super) fn since(at: Millis, now: Millis) -> String {
    if at == 0 { "-".to_owned() } else { span(now - at) }
}

fn place(path: &str, presence: &str, not_a_mount_point: bool) -> String {
    if path.is_empty() {
        return String::new();
    }
    let notes: Vec<&str> = [presence, if not_a_mount_point { "not a mount point" } else { "" }]
        .into_iter()
        .filter(|note| !note.is_empty())
        .collect();
    if notes.is_empty() { path.to_owned() } else { format!("{path} ({})", notes.join(", ")) }
}

fn problem(problem: &api::ManifestProblem) -> String {
    let mut text = problem.path.clone();
    if problem.line > 0 {
        let _written = write!(text, ":{}:{}", problem.line, problem.column);
    }
    for part in [&problem.object, &problem.field, &problem.detail] {
        if !part.is_empty() {
            let _written = write!(text, ": {part}");
        }
    }
    if !problem.remedy.is_empty() {
        let _written = write!(text, " ({})", problem.remedy);
    }
    text
}

fn section(text: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        text.push('\n');
        line(text, &format!("{title}:"));
        for item in lines {
            line(text, &format!("  {item}"));
        }
    }
}

pub(super) fn line(text: &mut String, content: &str) {
    text.push_str(&printable(content));
    text.push('\n');
}

/// A line that begins with a mark of ours, which may be coloured.
pub(super) fn marked(text: &mut String, mark: &str, content: &str) {
    text.push_str(mark);
    text.push(' ');
    line(text, content);
}

pub(super) fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// Replaces what could drive a terminal: manifests and drivers choose these texts.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
