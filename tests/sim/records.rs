//! The rules that records keep: what they may forget, what they may say is undone, and when a volume may grow again.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use volumed::model::{
    BootId, CallState, ExpansionState, MountIdentity, Plugin, PublicationId, RecordedMount, VolumeKey,
    VolumeRecord,
};

use super::wish;
use super::world::State;

/// So long ago a place must have been wanted.
pub const KNOWN: Duration = Duration::from_millis(1000);

impl State {
    /// What the records say of this boot's calls, by path.
    pub fn recorded_here(&self) -> impl Iterator<Item = (&Path, &CallState)> {
        let boot = format!("boot-{}", self.boot);
        let records = self.records.values().filter_map(|disk| disk.written.as_ref());
        records.flat_map(move |record| {
            let staging = record.staging.iter();
            let staging = staging.map(|s| (&s.boot, s.arguments.staging_path.as_path(), &s.state));
            let publications = record
                .publications
                .values()
                .filter_map(|p| Some((&p.boot, p.arguments.as_ref()?.target_path.as_path(), &p.state)));
            let all: Vec<_> = staging.chain(publications).filter(|(said, ..)| said.0 == boot).collect();
            all.into_iter().map(|(_, path, state)| (path, state))
        })
    }

    /// The daemon died: intents that it left may or may not have been followed by their calls.
    pub fn daemon_died(&mut self) {
        let is_open = |state: &CallState| matches!(state, CallState::Intended { .. } | CallState::Undoing);
        let open = self.recorded_here().filter(|(_, state)| is_open(state)).map(|(path, _)| path.to_owned());
        let open: Vec<_> = open.collect();
        self.audit.cut.extend(open);
        self.operator_outlives();
    }

    /// A record is about to be replaced: checks what it stops saying.
    pub fn record_changes(&mut self, key: &VolumeKey, new: Option<&VolumeRecord>) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Some(new) = new {
            self.takes_over(new, &mut wrong);
        }
        let Some(old) = self.records.get(key).and_then(|disk| disk.written.clone()) else { return wrong };
        let boot = format!("boot-{}", self.boot);
        // What is being undone already is not decided again when something else in the record changes.
        let is_decided = |old: &CallState, said: &BootId| *old != CallState::Undoing || said.0 != boot;
        if let Some(new) = new {
            growth_changes(&old, new, &boot, &mut wrong);
        }
        if let Some(staging) = &old.staging {
            let path = &staging.arguments.staging_path;
            match new.and_then(|new| new.staging.as_ref()) {
                None => self.may_be_forgotten(path, &mut wrong),
                Some(new) if new.state == CallState::Undoing && is_decided(&staging.state, &staging.boot) => {
                    self.may_be_undone(&staging.state, path, &mut wrong);
                }
                Some(_) => {}
            }
        }
        for (id, publication) in &old.publications {
            let path = publication.arguments.as_ref().map(|arguments| &arguments.target_path);
            match (path, new.and_then(|new| new.publications.get(id))) {
                (Some(path), None) => self.may_be_forgotten(path, &mut wrong),
                (_, Some(new))
                    if new.state == CallState::Undoing
                        && is_decided(&publication.state, &publication.boot) =>
                {
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
    fn may_be_forgotten(&mut self, path: &Path, wrong: &mut Vec<String>) {
        if self.audit.up.get(path).is_some_and(|sent| sent.lost) {
            self.audit.down(path);
        }
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
            if since(self.pods.get(&id.pod)) && !self.is_given_up(id) {
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
    /// Whether a record says that something is about to be shown at a path.
    pub fn is_to_be_shown(&self, path: &Path) -> bool {
        self.records.values().filter_map(|disk| disk.written.as_ref()).any(|record| {
            let mut intended =
                record.publications.values().filter(|p| matches!(p.state, CallState::Intended { .. }));
            intended.any(|p| p.arguments.as_ref().is_some_and(|arguments| arguments.target_path == path))
        })
    }

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
}

/// A growth that was begun is finished first; one that was refused because the volume is in use waits until it is not (26).
fn growth_changes(old: &VolumeRecord, new: &VolumeRecord, boot: &str, wrong: &mut Vec<String>) {
    let Some(was) = &old.expansion else { return };
    let stays = |record: &VolumeRecord| record.staging.as_ref().is_some_and(|staging| staging.boot.0 == boot);
    match (was.state, &new.expansion) {
        (ExpansionState::Open, Some(is)) if was.arguments.required_bytes != is.arguments.required_bytes => {
            let (from, to) = (was.arguments.required_bytes, is.arguments.required_bytes);
            wrong.push(format!("26: {} is to grow to {to} bytes before {from} is answered", old.key));
        }
        (ExpansionState::InUse, Some(is)) if is.state == ExpansionState::InUse => {}
        (ExpansionState::InUse, Some(_)) => {
            wrong.push(format!("26: {} is to grow though it is in use", old.key));
        }
        (ExpansionState::InUse, None) if stays(old) && stays(new) => {
            wrong.push(format!("26: {} is not in use any more, and has not left the node", old.key));
        }
        (ExpansionState::Open | ExpansionState::Refused | ExpansionState::InUse, _) => {}
    }
}
