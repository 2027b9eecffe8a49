//! The rules that nobody may break on the way: the node's invariants of csi.md 10, and design rule 10.
//!
//! The auditor stands beside the drivers and the disk. It believes nobody's memory: it counts what was sent and what was
//! answered, and whether the answer was heard.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use volumed::model::{
    CallState, ExpansionState, MountIdentity, Plugin, PublicationId, RecordedMount, VolumeKey, VolumeRecord,
};
use volumed::proto::csi as wire;

use super::request::Request;
use super::wish::{self, DRIVERS};
use super::world::{Node, State};

/// What the auditor knows.
#[derive(Debug, Default)]
pub struct Audit {
    /// By path: what came up and did not verifiably go down.
    pub up: BTreeMap<PathBuf, Sent>,
    /// Callers that wait for an answer.
    waiting: BTreeMap<(usize, String), u32>,
    /// Where each volume was staged first.
    staging_paths: BTreeMap<(usize, String), PathBuf>,
    /// Calls for a path that failed since the last one that succeeded, in a minute.
    failed: BTreeMap<PathBuf, Vec<Instant>>,
}

/// A call that brought something up.
#[derive(Debug, Clone)]
pub struct Sent {
    pub driver: usize,
    pub handle: String,
    pub request: Request,
    /// Answered with a final error: other arguments may be sent.
    settled: bool,
    /// The boot in which it was answered OK.
    pub done_in: Option<u64>,
}

/// So long ago a place must have been wanted.
const KNOWN: Duration = Duration::from_millis(1000);
/// So many failures of one call fit into a minute with backoff, a few restarts and edits included (csi.md 10, 30).
const PATIENCE: usize = 40;

impl State {
    /// A call is about to be made: checks that it may be, and remembers it.
    pub fn call_begins(&mut self, driver: usize, request: &Request) -> Vec<String> {
        let mut wrong = Vec::new();
        let (method, handle, path) = (request.method(), request.handle().to_owned(), request.path());
        let key = (driver, handle.clone());
        let waiting = self.audit.waiting.entry(key.clone()).or_default();
        *waiting += 1;
        if *waiting > 1 {
            wrong.push(format!("1: {method} {handle} while another call for the volume is under way"));
        }
        if !self.drivers[driver].stages && matches!(request, Request::Stage(_) | Request::Unstage(_)) {
            wrong.push(format!("13: {method} {handle} without STAGE_UNSTAGE_VOLUME"));
        }
        if !self.drivers[driver].expands && request.is_expand() {
            wrong.push(format!("13: {method} {handle} without EXPAND_VOLUME"));
        }
        let strangers = if request.is_expand() { Strangers::default() } else { self.strangers_at(path) };
        if strangers.below || strangers.stacked || (strangers.alone && !self.may_be_ours(path)) {
            wrong.push(format!("rule 10: {method} for {}, where somebody else has mounted", path.display()));
        }
        if !self.is_intended(request) {
            wrong.push(format!("6: {method} for {} without a synced intent", path.display()));
        }
        match request {
            Request::Stage(_) => self.staging_begins(driver, request, &mut wrong),
            Request::Publish(publish) => self.publishing_begins(driver, publish, &mut wrong),
            Request::Expand(_) => {}
            Request::Unstage(_) | Request::Unpublish(_) => self.undo_begins(driver, request, &mut wrong),
        }
        if !request.is_undo() && !request.is_expand() {
            let old = self.audit.up.get(path);
            if let Some(old) = old.filter(|old| !old.settled && old.request != *request) {
                let now = format!("{request:?}");
                wrong.push(format!("5: {now} after {:?}, which is not settled", old.request));
            }
            let sent = Sent { driver, handle, request: request.clone(), settled: false, done_in: None };
            self.audit.up.insert(path.to_owned(), sent);
        }
        wrong
    }

    /// Returns the volumes of which a call was sent and is not answered for good.
    pub fn in_doubt(&self) -> Vec<u64> {
        let is_open = |sent: &&Sent| !sent.settled && sent.done_in != Some(self.boot);
        let open: Vec<&str> =
            self.audit.up.values().filter(is_open).map(|sent| sent.handle.as_str()).collect();
        (0..wish::VOLUMES).filter(|volume| open.contains(&wish::handle(*volume).as_str())).collect()
    }

    /// Nobody waits for the answer any more.
    pub fn call_ends(&mut self, driver: usize, handle: &str) {
        if let Some(waiting) = self.audit.waiting.get_mut(&(driver, handle.to_owned())) {
            *waiting -= 1;
        }
    }

    /// An answer was heard: a code, 0 for OK.
    pub fn answer_heard(&mut self, request: &Request, code: i32) -> Vec<String> {
        let (path, boot) = (request.path(), self.boot);
        if request.is_undo() {
            // NOT_FOUND of what is still mounted is owed again.
            if code == 0 || (code == 5 && !self.is_mounted(path)) {
                self.audit.up.remove(path);
            }
        } else if let Some(sent) = self.audit.up.get_mut(path).filter(|_| !request.is_expand()) {
            match code {
                0 => sent.done_in = Some(boot),
                1 | 4 | 8 | 10 | 14 => {}
                _ => sent.settled = true,
            }
        }
        let now = Instant::now();
        let failed = self.audit.failed.entry(path.to_owned()).or_default();
        if code == 0 {
            failed.clear();
        } else {
            failed.retain(|at| now - *at < Duration::from_secs(60));
            failed.push(now);
        }
        if failed.len() <= PATIENCE {
            return Vec::new();
        }
        failed.clear();
        vec![format!("30: {} for {} is repeated without patience", request.method(), path.display())]
    }

    /// Whether a record of this boot says that a call for the path was under way, or found this mount: then it may be its work.
    fn may_be_ours(&self, path: &Path) -> bool {
        let boot = format!("boot-{}", self.boot);
        let top =
            self.mounts.iter().rev().find(|mount| mount.point == path).map(volumed::model::Mount::identity);
        let is_open = |state: &CallState| match state {
            CallState::Intended { .. } | CallState::Undoing => true,
            CallState::Done { mount: RecordedMount::Mount(recorded) } => top.as_ref() == Some(recorded),
            CallState::Done { mount: RecordedMount::NotAMountPoint } | CallState::Planned => false,
        };
        self.records.values().filter_map(|disk| disk.written.as_ref()).any(|record| {
            let staging = record.staging.as_ref();
            staging.is_some_and(|s| s.arguments.staging_path == path && s.boot.0 == boot && is_open(&s.state))
                || record.publications.values().any(|p| {
                    let here = p.arguments.as_ref().is_some_and(|arguments| arguments.target_path == path);
                    here && p.boot.0 == boot && is_open(&p.state)
                })
        })
    }

    fn staging_begins(&mut self, driver: usize, request: &Request, wrong: &mut Vec<String>) {
        let (handle, path) = (request.handle(), request.path());
        let key = (driver, handle.to_owned());
        let first = self.audit.staging_paths.entry(key).or_insert_with(|| path.to_owned());
        if first != path {
            wrong.push(format!("2: {handle} is staged at {} and {}", first.display(), path.display()));
        }
        if !matches!(self.nodes.get(path), Some(Node::Directory)) {
            wrong.push(format!("11: the staging path {} is no directory", path.display()));
        }
    }

    fn publishing_begins(
        &mut self,
        driver: usize,
        request: &wire::NodePublishVolumeRequest,
        wrong: &mut Vec<String>,
    ) {
        let (handle, target) = (&request.volume_id, Path::new(&request.target_path));
        if !target.parent().is_some_and(|parent| self.nodes.contains_key(parent)) {
            wrong.push(format!("11: the parent of {} is missing", target.display()));
        }
        let again = self.audit.up.contains_key(target) || self.strange_places.contains(target);
        if self.nodes.contains_key(target) && !again {
            wrong.push(format!("11: {} is there before its first publish", target.display()));
        }
        let single = (0..wish::VOLUMES).any(|v| wish::is_single_pod(v) && wish::handle(v) == *handle);
        let is_other = |(path, sent): (&PathBuf, &Sent)| {
            path != target && sent.handle == *handle && matches!(sent.request, Request::Publish(_))
        };
        if single && self.audit.up.iter().any(is_other) {
            wrong.push(format!("24: {handle} is published to {} and to another pod", target.display()));
        }
        if handle.starts_with("csi-") || !self.drivers[driver].stages {
            return;
        }
        let staging = Path::new(&request.staging_target_path);
        let staged = self.audit.up.get(staging).is_some_and(|sent| sent.done_in == Some(self.boot));
        if !staged {
            wrong.push(format!("3: {handle} is published from {}, not staged there", staging.display()));
        }
    }

    fn undo_begins(&mut self, driver: usize, request: &Request, wrong: &mut Vec<String>) {
        let (method, handle, path) = (request.method(), request.handle(), request.path());
        // What is published to nobody is let go of without a look at the manifests.
        if !self.has_read && matches!(request, Request::Unpublish(_)) {
            wrong.push(format!("29: {method} for {} before any manifest was read", path.display()));
        }
        if let Some(sent) = self.audit.up.get(path)
            && (sent.driver != driver || sent.handle != handle)
        {
            let (whose, by) = (&sent.handle, DRIVERS[sent.driver]);
            wrong.push(format!("{method} {handle} for {}, which is {whose} of {by}", path.display()));
        }
        let is_other = |sent: &Sent| {
            let published = matches!(sent.request, Request::Publish(_));
            published && sent.driver == driver && sent.handle == handle
        };
        if matches!(request, Request::Unstage(_))
            && let Some((target, _)) = self.audit.up.iter().find(|(_, sent)| is_other(sent))
        {
            wrong.push(format!("4: {method} {handle} while it is published at {}", target.display()));
        }
    }

    /// Whether a record that survives a power cut says that this call may be made.
    fn is_intended(&self, request: &Request) -> bool {
        let path = request.path();
        self.records.values().filter_map(|disk| disk.synced.as_ref()).any(|record| {
            let staging = record.staging.as_ref().map(|staging| &staging.arguments);
            let mut publications = record.publications.values().filter_map(|p| p.arguments.as_ref());
            match request {
                Request::Stage(sent) => staging.is_some_and(|arguments| {
                    arguments.staging_path == path
                        && arguments.volume_context == sent.volume_context
                        && arguments.publish_context == sent.publish_context
                }),
                Request::Publish(sent) => publications.any(|arguments| {
                    arguments.target_path == path
                        && arguments.volume_context == sent.volume_context
                        && arguments.publish_context == sent.publish_context
                        && arguments.read_only == sent.readonly
                }),
                Request::Expand(sent) => record.expansion.as_ref().is_some_and(|expansion| {
                    let bytes = sent.capacity_range.as_ref().map_or(0, |range| range.required_bytes);
                    Ok(expansion.arguments.required_bytes) == u64::try_from(bytes)
                }),
                Request::Unstage(_) => staging.is_some_and(|arguments| arguments.staging_path == path),
                Request::Unpublish(_) => publications.any(|arguments| arguments.target_path == path),
            }
        })
    }

    /// A record is about to be replaced: checks what it stops saying.
    pub fn record_changes(&mut self, key: &VolumeKey, new: Option<&VolumeRecord>) -> Vec<String> {
        let mut wrong = Vec::new();
        let Some(old) = self.records.get(key).and_then(|disk| disk.written.as_ref()) else { return wrong };
        let boot = format!("boot-{}", self.boot);
        if let Some(new) = new {
            growth_changes(old, new, &mut wrong);
        }
        if let Some(staging) = &old.staging {
            let path = &staging.arguments.staging_path;
            match new.and_then(|new| new.staging.as_ref()) {
                None => self.may_be_forgotten(path, &mut wrong),
                Some(new) if new.state == CallState::Undoing => {
                    self.may_be_undone(&staging.state, path, &mut wrong);
                }
                Some(_) => {}
            }
        }
        for (id, publication) in &old.publications {
            let path = publication.arguments.as_ref().map(|arguments| &arguments.target_path);
            match (path, new.and_then(|new| new.publications.get(id))) {
                (Some(path), None) => self.may_be_forgotten(path, &mut wrong),
                (_, Some(new)) if new.state == CallState::Undoing => {
                    if let Some(path) = path {
                        self.may_be_undone(&publication.state, path, &mut wrong);
                    }
                    if publication.state != CallState::Undoing && publication.boot.0 == boot {
                        self.may_be_taken(id, &publication.state, &mut wrong);
                    }
                }
                (_, None | Some(_)) => {}
            }
        }
        wrong
    }

    /// What was sent is forgotten only when it was answered for good, and nothing is left (8).
    fn may_be_forgotten(&self, path: &Path, wrong: &mut Vec<String>) {
        if let Some(sent) = self.audit.up.get(path) {
            let handle = &sent.handle;
            wrong.push(format!("8: the record forgets {handle} at {}, not undone", path.display()));
        }
        let ours = |id: u64| !self.strangers.contains(&id);
        if self.mounts.iter().any(|mount| mount.point == path && ours(mount.id)) {
            wrong.push(format!("8: the record forgets {}, which is mounted", path.display()));
        }
    }

    /// Design rule 10, at the moment at which an undo is decided.
    fn may_be_undone(&self, was: &CallState, path: &Path, wrong: &mut Vec<String>) {
        let strangers = self.strangers_at(path);
        let recorded = match was {
            CallState::Done { mount: RecordedMount::Mount(recorded) } => Some(recorded),
            CallState::Done { mount: RecordedMount::NotAMountPoint }
            | CallState::Planned
            | CallState::Intended { .. }
            | CallState::Undoing => None,
        };
        let is_recorded = |found: &MountIdentity| recorded.is_some_and(|r| r.same_but_device(found));
        let top = self.mounts.iter().rev().find(|mount| mount.point == path);
        let replaced = strangers.alone
            && matches!(was, CallState::Done { .. })
            && !top.is_some_and(|top| is_recorded(&top.identity()));
        if strangers.below || strangers.stacked || replaced {
            wrong.push(format!("rule 10: {} is undone, and somebody else mounted there", path.display()));
        }
    }

    /// What is wanted and there is not taken down (34, and design 3).
    fn may_be_taken(&self, id: &PublicationId, was: &CallState, wrong: &mut Vec<String>) {
        let since = |at: Option<&Instant>| at.is_some_and(|at| Instant::now() - *at >= KNOWN);
        if id.plugin == Plugin::EmptyDir {
            if since(self.pods.get(&id.pod)) {
                wrong.push(format!("34: {id} is taken down, and its pod is there"));
            }
            return;
        }
        let path = wish::target(id);
        let at: Vec<MountIdentity> =
            self.mounts.iter().filter(|m| m.point == path).map(volumed::model::Mount::identity).collect();
        let is_there = match was {
            CallState::Done { mount: RecordedMount::Mount(recorded) } => at == std::slice::from_ref(recorded),
            CallState::Done { mount: RecordedMount::NotAMountPoint } => at.is_empty(),
            CallState::Planned | CallState::Intended { .. } | CallState::Undoing => false,
        };
        if is_there && since(self.wanted.get(id)) {
            wrong.push(format!("34: {id} is taken down, and it is wanted"));
        }
    }

    /// Whether a record says that what is at the path is being undone (28).
    pub fn is_being_undone(&self, path: &Path) -> bool {
        self.records.values().filter_map(|disk| disk.written.as_ref()).any(|record| {
            let staging = record.staging.as_ref();
            let unstaging =
                staging.is_some_and(|s| s.state == CallState::Undoing && s.arguments.staging_path == path);
            let mut undoing = record.publications.values().filter(|p| p.state == CallState::Undoing);
            unstaging
                || undoing
                    .any(|p| p.arguments.as_ref().is_some_and(|arguments| arguments.target_path == path))
        })
    }

    /// Looks for mounts of somebody else's that volumed had time to see.
    fn strangers_at(&self, path: &Path) -> Strangers {
        let mut found = Strangers::default();
        let mut at = 0;
        for mount in self.mounts.iter().filter(|mount| mount.point.starts_with(path)) {
            let strange = self.strangers.contains(&mount.id) && self.is_old(mount.id);
            if mount.point == path {
                at += 1;
                found.alone |= strange;
            } else {
                found.below |= strange;
            }
        }
        found.stacked = found.alone && at > 1;
        found.alone &= at == 1;
        found
    }
}

/// A growth that was begun is finished first; one that was refused because the volume is in use waits until it is not (26).
fn growth_changes(old: &VolumeRecord, new: &VolumeRecord, wrong: &mut Vec<String>) {
    let (Some(was), Some(is)) = (&old.expansion, &new.expansion) else { return };
    let (from, to) = (was.arguments.required_bytes, is.arguments.required_bytes);
    let again = is.state == ExpansionState::Open;
    match was.state {
        ExpansionState::Open if from != to => {
            wrong.push(format!("26: {} is to grow to {to} bytes before {from} is answered", old.key));
        }
        ExpansionState::InUse if again && old.publications.values().any(|p| is_done(&p.state)) => {
            wrong.push(format!("26: {} is to grow to {to} bytes though it is in use", old.key));
        }
        ExpansionState::Open | ExpansionState::Refused | ExpansionState::InUse => {}
    }
}

fn is_done(state: &CallState) -> bool {
    matches!(state, CallState::Done { .. })
}

#[derive(Debug, Default)]
struct Strangers {
    below: bool,
    alone: bool,
    stacked: bool,
}
