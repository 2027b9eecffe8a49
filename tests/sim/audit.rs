//! The rules that nobody may break on the way: the node's invariants of csi.md 10, and design rule 10.
//!
//! The auditor stands beside the drivers and the disk. It believes nobody's memory: it counts what was sent and what was
//! answered, and whether the answer was heard.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use volumed::model::{CallState, RecordedMount};
use volumed::proto::csi as wire;

use super::request::Request;
use super::wish::{self, DRIVERS};
use super::world::{Node, State};

/// What the auditor knows.
#[derive(Debug, Default)]
pub struct Audit {
    /// By path: what came up and did not verifiably go down.
    pub up: BTreeMap<PathBuf, Sent>,
    /// Where nobody can know whose the only mount there is: a daemon died with an intent on disk, sent or not, or a driver said
    /// that all is undone, and it was not.
    pub cut: BTreeSet<PathBuf>,
    /// Where an undo was answered. Until its directories are gone the record says that it is under way, and cannot say whose a
    /// mount is that was made since.
    undone: BTreeSet<PathBuf>,
    /// Callers that wait for an answer.
    waiting: BTreeMap<(usize, String), u32>,
    /// Volumes that are published without a staging: their driver had none when they came up.
    without: BTreeSet<(usize, String)>,
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
    /// The driver lost STAGE_UNSTAGE_VOLUME meanwhile: it cannot be asked to undo it.
    pub lost: bool,
}

/// So many failures of one call fit into a minute with backoff, a few restarts and edits included (csi.md 10, 30).
const PATIENCE: usize = 40;

impl Audit {
    /// Whether somebody waits for a driver.
    pub fn is_waiting(&self) -> bool {
        self.waiting.values().any(|callers| *callers > 0)
    }

    /// Whether a driver has staged something and was not told to undo it.
    pub fn has_staged(&self, driver: usize) -> bool {
        let is_its = |sent: &&Sent| sent.driver == driver && matches!(sent.request, Request::Stage(_));
        self.up.values().any(|sent| is_its(&sent))
    }

    /// A driver comes back without STAGE_UNSTAGE_VOLUME.
    pub fn loses_staging(&mut self, driver: usize) {
        let is_its = |sent: &&mut Sent| sent.driver == driver && matches!(sent.request, Request::Stage(_));
        self.up.values_mut().filter(is_its).for_each(|sent| sent.lost = true);
    }

    /// Whether a volume is published without a staging because its driver had none then.
    pub fn is_up_without_staging(&self, driver: usize, handle: &str) -> bool {
        self.without.contains(&(driver, handle.to_owned()))
    }

    /// What came up went down.
    pub fn down(&mut self, path: &Path) {
        let Some(gone) = self.up.remove(path) else { return };
        let published = |sent: &Sent| {
            sent.handle == gone.handle
                && sent.driver == gone.driver
                && matches!(sent.request, Request::Publish(_))
        };
        let key = (gone.driver, gone.handle.clone());
        if !self.up.values().any(published) {
            self.without.remove(&key);
        }
        // A block device is staged under the name of its PV, which may be another one the next time.
        if wish::is_block(&gone.handle) && matches!(gone.request, Request::Stage(_)) {
            self.staging_paths.remove(&key);
        }
    }
}

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
        if let Some(scope) = self.is_paused(driver, &handle) {
            wrong.push(format!("{method} {handle} though {scope} is paused"));
        }
        if !self.is_shown_at_work(driver, &handle) {
            wrong.push(format!("{method} {handle} for {}, and Status shows no step", path.display()));
        }
        if request.is_undo() {
            self.may_be_touched(path, &mut wrong);
        }
        match request {
            Request::Stage(_) => self.staging_begins(driver, request, &mut wrong),
            Request::Publish(publish) => self.publishing_begins(driver, publish, &mut wrong),
            Request::Expand(_) => {}
            Request::Unstage(_) | Request::Unpublish(_) => self.undo_begins(driver, request, &mut wrong),
        }
        if !request.is_undo() && !request.is_expand() {
            self.comes_up(driver, request);
            let (limit, mut here) = (self.drivers[driver].limit, self.handles_here(driver));
            here.retain(|other| !self.revived.contains(other));
            here.insert(handle.clone());
            if limit > 0 && here.len() > limit && !self.is_here_anyway(&handle) {
                wrong.push(format!("{method} {handle}: {here:?} are more than {limit} volumes"));
            }
            let old = self.audit.up.get(path);
            if let Some(old) = old.filter(|old| !old.settled && old.request != *request) {
                let now = format!("{request:?}");
                wrong.push(format!("5: {now} after {:?}, which is not settled", old.request));
            }
            // A failing republish leaves what is there (31).
            let is_there = self.is_mounted(path) || !wish::is_mounted(&handle);
            let same = old.filter(|old| is_there && old.request == *request);
            let done_in = same.and_then(|old| old.done_in);
            let sent =
                Sent { driver, handle, request: request.clone(), settled: false, done_in, lost: false };
            self.audit.up.insert(path.to_owned(), sent);
            self.audit.cut.remove(path);
            self.audit.undone.remove(path);
        }
        wrong
    }

    /// The volumes of a driver that came up and did not verifiably go down.
    pub fn handles_up(&self, driver: usize) -> BTreeSet<String> {
        let its = self.audit.up.values().filter(|sent| sent.driver == driver);
        its.map(|sent| sent.handle.clone()).collect()
    }

    /// These and those that others left.
    fn handles_here(&self, driver: usize) -> BTreeSet<String> {
        let is_its = |handle: &&String| {
            (0..wish::VOLUMES).any(|v| wish::handle(v) == **handle && wish::driver(v) == driver)
        };
        let left = self.left.values().map(|left| &left.handle);
        self.handles_up(driver).into_iter().chain(left.filter(is_its).cloned()).collect()
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
            let is_left = self.is_mounted(path)
                || (matches!(request, Request::Unpublish(_)) && self.nodes.contains_key(path));
            if code == 0 {
                self.audit.undone.insert(path.to_owned());
            }
            if code == 0 && is_left {
                self.audit.cut.insert(path.to_owned());
            }
            // NOT_FOUND of what is still mounted is owed again.
            if code == 0 || (code == 5 && !self.is_mounted(path)) {
                self.audit.down(path);
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

    /// Whether the only mount at a path may be the work of a call whose outcome was lost, or is what a record of this boot says.
    fn may_be_ours(&self, path: &Path) -> bool {
        let top =
            self.mounts.iter().rev().find(|mount| mount.point == path).map(volumed::model::Mount::identity);
        let was_sent = self.audit.up.contains_key(path) || self.audit.cut.contains(path);
        self.recorded_here().any(|(at, state)| {
            at == path
                && match state {
                    CallState::Intended { .. } => was_sent,
                    CallState::Undoing => was_sent || self.audit.undone.contains(path),
                    CallState::Done { mount: RecordedMount::Mount(recorded) } => {
                        top.as_ref() == Some(recorded)
                    }
                    CallState::Done { mount: RecordedMount::NotAMountPoint } | CallState::Planned => false,
                }
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
        let again = self.audit.up.contains_key(target)
            || self.audit.cut.contains(target)
            || self.left.contains_key(target)
            || self.strange_places.contains(target);
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
        wrong.extend(self.as_one_volume(driver, handle, target));
        let staging = Path::new(&request.staging_target_path);
        let staged = self.audit.up.get(staging).is_some_and(|sent| sent.done_in == Some(self.boot));
        if handle.starts_with("csi-") || staged {
            return;
        }
        let key = (driver, handle.clone());
        if !self.drivers[driver].stages {
            self.audit.without.insert(key);
        } else if !self.audit.without.contains(&key) {
            wrong.push(format!("3: {handle} is published from {}, not staged there", staging.display()));
        }
    }

    fn undo_begins(&mut self, driver: usize, request: &Request, wrong: &mut Vec<String>) {
        let (method, handle, path) = (request.method(), request.handle(), request.path());
        if !self.has_read {
            wrong.push(format!("29: {method} for {} before any manifest was read", path.display()));
        }
        if let Some(sent) = self.audit.up.get(path)
            && (sent.driver != driver || sent.handle != handle)
        {
            let (whose, by) = (&sent.handle, DRIVERS[sent.driver]);
            wrong.push(format!("{method} {handle} for {}, which is {whose} of {by}", path.display()));
        }
        if matches!(request, Request::Unstage(_)) && self.is_held(path) && !self.is_forced(driver, handle) {
            wrong.push(format!("rule 4: {method} {handle} while somebody has it open"));
        }
        let map = wish::map_of(path).filter(|_| wish::is_block(handle));
        if map.is_some_and(|map| self.is_mounted(&map)) {
            wrong.push(format!("{method} {handle} for {} while the pod has the device", path.display()));
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

    /// Looks for mounts of somebody else's that volumed had time to see.
    pub fn strangers_at(&self, path: &Path) -> Strangers {
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

#[derive(Debug, Default)]
pub struct Strangers {
    pub below: bool,
    pub alone: bool,
    pub stacked: bool,
}
