//! `volumectl wait`: event-driven from the status, never by polling.
//!
//! A name is called unknown, and a volume failed, only after the manifest directories were read once more: the file may have
//! been renamed into place a moment before the question.

use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::names::{Kind, ObjectName};
use super::row::needs_an_edit;
use super::{Request, views};
use crate::model::{PodStatus, PodUid, Presence, Status, VolumeKey};

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Every volume of the pod, or every use of the claim, is published.
    Published,
    /// No volume of the pod is left on the node, or the claim's volume is not used any more. Also true of a name that nothing
    /// has: what was removed and forgotten is released.
    Released,
}

impl Goal {
    /// Returns the goal of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "published" => Some(Self::Published),
            "released" => Some(Self::Released),
            _ => None,
        }
    }

    /// Returns its name on the wire and the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Released => "released",
        }
    }
}

/// How waiting for one object ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As asked.
    Reached,
    /// It cannot get there before somebody edits a manifest.
    Failed,
    /// No manifest and no volume has that name.
    Unknown,
    /// The time was up first.
    TimedOut,
    /// Another object failed first.
    GivenUp,
}

impl Ending {
    /// Returns its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::TimedOut => "timed-out",
            Self::GivenUp => "given-up",
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The daemon stops; the caller asks the next one.
    #[error("volumed is stopping")]
    Stopping,
    /// The task that reads manifests is gone.
    #[error("the manifests cannot be read again")]
    NoReader,
}

/// Waits until every object is as asked, one cannot become so, or the deadline is there. Returns one ending for each, in order.
///
/// # Errors
/// When the daemon stops meanwhile.
pub async fn until(
    mut status: watch::Receiver<Status>,
    requests: &mpsc::Sender<Request>,
    stop: &CancellationToken,
    objects: &[ObjectName],
    goal: Goal,
    deadline: Option<Instant>,
) -> Result<Vec<Ending>, WaitError> {
    let mut waits: Vec<Waiting<'_>> = objects.iter().map(Waiting::new).collect();
    // The reading that the answers "unknown" and "failed" have to be of.
    let mut confirmed_by: Option<u64> = None;
    // A reading that was asked for and has not ended. What comes about meanwhile is seen at once.
    let mut rereading = None;
    let mut looked_at_all = None;
    let mut names = Names::new(objects);
    loop {
        let ask = {
            let now = status.borrow_and_update();
            let sure = confirmed_by.is_some_and(|generation| now.reading.generation >= generation);
            if views::is_ready(&now) {
                // In the same turn none can fail, so the first that is not there yet says all: with a thousand objects a
                // look at all of them in each pass would be a million.
                let all = looked_at_all.replace((now.turn, sure)) != Some((now.turn, sure));
                if all {
                    names.look(&now);
                }
                for wait in waits.iter_mut().filter(|wait| wait.ending.is_none()) {
                    wait.look(&now, &names, goal, sure);
                    if !all && wait.ending.is_none() {
                        break;
                    }
                }
            }
            confirmed_by.is_none() && waits.iter().any(|wait| wait.doubtful)
        };
        let given_up = waits.iter().any(|w| matches!(w.ending, Some(Ending::Failed | Ending::Unknown)));
        if given_up || waits.iter().all(|wait| wait.ending.is_some()) {
            return Ok(waits.iter().map(|wait| wait.ending.unwrap_or(Ending::GivenUp)).collect());
        }
        if ask && rereading.is_none() {
            rereading = Some(Box::pin(reread(requests)));
        }
        // All arms may be dropped and begun again; the reading goes on.
        tokio::select! {
            biased;
            () = stop.cancelled() => return Err(WaitError::Stopping),
            () = passed(deadline) => {
                let now = status.borrow();
                let left = waits.iter_mut().filter(|wait| wait.ending.is_none() && views::is_ready(&now));
                names.look(&now);
                left.for_each(|wait| wait.look(&now, &names, goal, false));
                return Ok(waits.iter().map(|wait| wait.ending.unwrap_or(Ending::TimedOut)).collect());
            }
            generation = answer(rereading.as_mut()) => {
                rereading = None;
                confirmed_by = Some(generation.ok_or(WaitError::NoReader)?);
            }
            changed = status.changed() => changed.map_err(|_closed| WaitError::Stopping)?,
        }
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => pending().await,
    }
}

async fn answer<F: Future + Unpin>(asked: Option<F>) -> F::Output {
    match asked {
        Some(asked) => asked.await,
        None => pending().await,
    }
}

/// Has the directories read once more and returns the generation of that reading.
async fn reread(requests: &mpsc::Sender<Request>) -> Option<u64> {
    let (reply, answer) = oneshot::channel();
    requests.send(Request::Reread { reply }).await.ok()?;
    answer.await.ok()
}

/// One object that is waited for.
#[derive(Debug)]
struct Waiting<'a> {
    object: &'a ObjectName,
    ending: Option<Ending>,
    /// It looks unknown or failed, and waits for a reading to confirm that.
    doubtful: bool,
    /// Its volumes at the last full look: while one of them is not there yet, nothing else has to be looked at. With a
    /// thousand callers and a thousand pods, a full look per caller and pass would be a million.
    seen: Vec<(PodUid, String)>,
    /// A manifest or a volume had the name at some look.
    known_once: bool,
    /// The volumes it ever had: a claim whose pod is gone is released only when its volume is unstaged too.
    keys: BTreeSet<VolumeKey>,
}

/// Which pods have a name that is waited for or use such a claim: who waits for a thousand must not look for each among all.
/// True for one turn of the status; pods that went meanwhile are left out.
#[derive(Debug)]
struct Names<'a> {
    pods: Users<'a>,
    claims: Users<'a>,
}

/// By namespace and name: the pods that have or use it.
type Users<'a> = HashMap<&'a str, HashMap<&'a str, BTreeSet<PodUid>>>;

impl<'a> Names<'a> {
    fn new(objects: &'a [ObjectName]) -> Self {
        let mut names = Self { pods: Users::new(), claims: Users::new() };
        for object in objects {
            let users = match object.kind {
                Kind::Pod => &mut names.pods,
                Kind::Claim => &mut names.claims,
            };
            users.entry(&object.namespace).or_default().insert(&object.name, BTreeSet::new());
        }
        names
    }

    fn look(&mut self, status: &Status) {
        let both = self.pods.values_mut().chain(self.claims.values_mut());
        both.flat_map(HashMap::values_mut).for_each(BTreeSet::clear);
        let note = |users: &mut Users<'a>, namespace: &str, name: &str, uid: &PodUid| {
            if let Some(users) = users.get_mut(namespace).and_then(|users| users.get_mut(name)) {
                users.insert(uid.clone());
            }
        };
        for (uid, pod) in &status.pods {
            note(&mut self.pods, &pod.identity.namespace, &pod.identity.name, uid);
            for claim in pod.volumes.values().filter_map(|volume| volume.claim.as_ref()) {
                note(&mut self.claims, &claim.namespace, &claim.name, uid);
            }
        }
    }

    fn pods<'s>(&'s self, status: &'s Status, object: &ObjectName) -> impl Iterator<Item = &'s PodStatus> {
        let users = match object.kind {
            Kind::Pod => &self.pods,
            Kind::Claim => &self.claims,
        };
        let uids = users.get(&*object.namespace).and_then(|users| users.get(&*object.name));
        uids.into_iter().flatten().filter_map(|uid| status.pods.get(uid).map(Arc::as_ref))
    }
}

enum Verdict {
    Reached,
    NotYet,
    Failed,
    Unknown,
}

impl<'a> Waiting<'a> {
    fn new(object: &'a ObjectName) -> Self {
        Self {
            object,
            ending: None,
            doubtful: false,
            seen: Vec::new(),
            known_once: false,
            keys: BTreeSet::new(),
        }
    }

    fn look(&mut self, status: &Status, names: &Names<'_>, goal: Goal, sure: bool) {
        if !self.doubtful && self.is_plainly_not_there(status, goal) {
            return;
        }
        let seen_before = self.known_once;
        self.doubtful = false;
        self.ending = match self.verdict(status, names, goal) {
            Verdict::NotYet => None,
            Verdict::Reached => Some(Ending::Reached),
            Verdict::Failed if sure => Some(Ending::Failed),
            Verdict::Unknown if goal == Goal::Released && (sure || seen_before) => Some(Ending::Reached),
            Verdict::Unknown if sure => Some(Ending::Unknown),
            Verdict::Failed | Verdict::Unknown => {
                self.doubtful = true;
                None
            }
        };
    }

    fn is_plainly_not_there(&self, status: &Status, goal: Goal) -> bool {
        self.seen.iter().any(|(uid, name)| {
            let Some(pod) = status.pods.get(uid) else { return false };
            let Some(volume) = pod.volumes.get(name) else { return false };
            let row = views::row(status, pod, name, volume);
            match goal {
                Goal::Published => !row.is_published() && row.hold().is_none(),
                Goal::Released => !row.is_released(),
            }
        })
    }

    fn verdict(&mut self, status: &Status, names: &Names<'_>, goal: Goal) -> Verdict {
        let pods = names.pods(status, self.object);
        let rows: Vec<_> = views::rows_among(status, pods, self.object).collect();
        let known = match self.object.kind {
            Kind::Pod => names.pods(status, self.object).next().is_some(),
            Kind::Claim => !rows.is_empty(),
        };
        self.known_once |= known;
        self.keys.extend(rows.iter().filter_map(|row| row.volume).map(|(key, _)| key.clone()));
        self.seen = (rows.iter().filter_map(|row| row.pod))
            .map(|(pod, name, _)| (pod.identity.uid.clone(), name.to_owned()))
            .collect();
        match goal {
            Goal::Released if !rows.iter().all(views::Row::is_released) => Verdict::NotYet,
            Goal::Released if !self.keys.iter().all(|key| is_off_the_node(status, key)) => Verdict::NotYet,
            Goal::Released if known => Verdict::Reached,
            Goal::Published | Goal::Released if !known => Verdict::Unknown,
            Goal::Published | Goal::Released => {
                let wished: Vec<_> = rows.iter().filter(|row| row.desired() != "released").collect();
                let hopeless = |row: &&&views::Row<'_>| {
                    !row.is_published() && row.hold().is_some_and(|hold| needs_an_edit(hold.code))
                };
                if wished.iter().any(|row| hopeless(&row)) || self.is_broken(status, rows.is_empty()) {
                    Verdict::Failed
                } else if wished.iter().all(|row| row.is_published())
                    && (!wished.is_empty() || self.is_pod_without_volumes(status))
                {
                    Verdict::Reached
                } else {
                    Verdict::NotYet
                }
            }
        }
    }

    /// A pod whose manifest never was valid has no volumes to show.
    fn is_broken(&self, status: &Status, no_volumes: bool) -> bool {
        no_volumes && self.pods(status).any(|pod| pod.hold.is_some())
    }

    fn is_pod_without_volumes(&self, status: &Status) -> bool {
        self.pods(status).any(|pod| pod.volumes.is_empty() && !pod.leaving && pod.hold.is_none())
    }

    /// The pods of this name.
    fn pods<'s>(&self, status: &'s Status) -> impl Iterator<Item = &'s PodStatus> {
        let object = self.object.clone();
        let is_it = move |pod: &&PodStatus| {
            object.kind == Kind::Pod
                && pod.identity.name == object.name
                && pod.identity.namespace == object.namespace
        };
        status.pods.values().map(Arc::as_ref).filter(is_it)
    }
}

/// Whether a volume is neither staged nor about to be, or kept for another pod.
fn is_off_the_node(status: &Status, key: &VolumeKey) -> bool {
    status.volumes.get(key).is_none_or(|volume| {
        let staged = volume.staging.as_ref().is_some_and(|(_, presence)| *presence != Presence::No);
        // A pod may leave while its volume's first stage is under way, of which nothing is known to be there yet.
        !(staged || volume.in_progress.is_some())
            || volume.publications.values().any(|publication| publication.desired != "released")
    })
}

#[cfg(test)]
#[path = "wait_tests.rs"]
mod tests;
