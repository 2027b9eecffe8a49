//! One volume of one pod: what Status says of it in its several places, joined, and what that comes to in words.

use crate::model::{
    Blocked, HealthMap, Hold, HoldCode, PodStatus, PodVolumeStatus, Presence, PublicationId,
    PublicationStatus, VolumeHealth, VolumeKey, VolumeStatus,
};

/// One volume of one pod, with everything of Status that concerns it.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The pod, and the volume's name and state in it; `None` when no pod has the volume any more.
    pub pod: Option<(&'a PodStatus, &'a str, &'a PodVolumeStatus)>,
    /// Key and state; `None` while it is held and was never known.
    pub volume: Option<(&'a VolumeKey, &'a VolumeStatus)>,
    /// Its place.
    pub publication: Option<(&'a PublicationId, &'a PublicationStatus)>,
}

impl<'a> Row<'a> {
    /// Returns what is wished: `published`, `held` or `released`.
    pub fn desired(&self) -> &'static str {
        match (self.publication, self.pod) {
            (Some((_, publication)), _) => publication.desired,
            (None, Some((_, _, volume))) if volume.hold.is_some() => "held",
            (None, Some((pod, _, _))) if pod.leaving => "released",
            (None, Some(_)) => "published",
            (None, None) => "released",
        }
    }

    /// Returns whether the pod has its volume, verified.
    pub fn is_published(&self) -> bool {
        self.publication.is_some_and(|(_, publication)| publication.presence == Presence::Yes)
    }

    /// Returns whether nothing of it is left at the pod. The staging may be another pod's, or held by one.
    pub fn is_released(&self) -> bool {
        self.desired() == "released"
            && self.publication.is_none_or(|(_, publication)| publication.presence == Presence::No)
            && !self.is_being_changed()
    }

    /// Whether a step of this very publication is under way, also one of which nothing is written down yet.
    fn is_being_changed(&self) -> bool {
        let of_pod = self.pod.and_then(|(_, _, volume)| volume.resolved.as_ref()).map(|(_, id)| id);
        let mine = self.publication.map(|(id, _)| id).or(of_pod);
        let running = self.volume.and_then(|(_, volume)| volume.in_progress.as_ref());
        mine.is_some() && running.and_then(|running| running.publication.as_ref()) == mine
    }

    /// Returns what is there, or the step under way.
    pub fn actual(&self) -> &'static str {
        let Some((_, volume)) = self.volume else {
            return if self.desired() == "released" { "released" } else { "pending" };
        };
        if let Some(running) = self.running() {
            return under_way(running.step);
        }
        let published = self.publication.map(|(_, publication)| publication.presence);
        let staged = volume.staging.as_ref().map(|(_, presence)| *presence);
        match (published, staged) {
            (Some(Presence::Yes), _) => "published",
            (Some(Presence::Uncertain), _) => "uncertain",
            (Some(Presence::No) | None, Some(Presence::Yes)) => "staged",
            (Some(Presence::No) | None, Some(Presence::Uncertain)) => "uncertain",
            (Some(Presence::No) | None, Some(Presence::No) | None) if self.desired() == "released" => {
                "released"
            }
            (Some(Presence::No) | None, Some(Presence::No) | None) => "pending",
        }
    }

    /// Returns the step under way, if it is this publication's or the whole volume's.
    pub fn running(&self) -> Option<&'a crate::model::InProgress> {
        let running = self.volume?.1.in_progress.as_ref()?;
        let mine = match (&running.publication, self.publication) {
            (None, _) => true,
            (Some(id), Some((mine, _))) => id == mine,
            (Some(_), None) => false,
        };
        mine.then_some(running)
    }

    /// Returns the steps of this publication and of the whole volume that cannot proceed.
    pub fn blocked(&self) -> impl Iterator<Item = &'a Blocked> {
        let mine = self.publication.map(|(id, _)| id);
        let all = self.volume.map(|(_, volume)| volume.blocked.as_slice()).unwrap_or_default();
        all.iter().filter(move |blocked| blocked.publication.as_ref().is_none_or(|id| Some(id) == mine))
    }

    /// Returns how the last try of the step under way ended, while the new one has told nothing yet.
    pub fn tried_again(&self) -> Option<&'a Blocked> {
        self.running().filter(|running| running.detail.is_none())?.again.as_deref()
    }

    /// Returns how full and how well it is, while it is what was asked about.
    pub fn health(&self, all: &'a HealthMap) -> Option<&'a VolumeHealth> {
        let ((id, _), (key, _)) = self.publication.zip(self.volume)?;
        all.get(id).filter(|known| self.is_published() && known.key == *key)
    }

    /// Returns why nothing moves.
    pub fn hold(&self) -> Option<&'a Hold> {
        (self.pod.and_then(|(_, _, volume)| volume.hold.as_ref()))
            .or_else(|| self.publication.and_then(|(_, publication)| publication.hold.as_ref()))
    }

    /// Returns `good`, `working`, `waiting` or `failed`.
    pub fn state(&self) -> &'static str {
        if let Some(hold) = self.hold() {
            return if needs_an_edit(hold.code) {
                "failed"
            } else if self.is_published() {
                "good"
            } else {
                "waiting"
            };
        }
        if self.running().is_some() {
            return "working";
        }
        if let Some(blocked) = self.blocked().next() {
            return match (blocked.next_try, blocked.attempts, blocked.cause.code.as_str()) {
                (Some(_), ..) => "working",
                // Somebody has to unmount what lies there.
                (None, 0, "obstacle") => "failed",
                (None, 0, _) => "waiting",
                (None, ..) => "failed",
            };
        }
        match self.desired() {
            "published" if self.is_published() => "good",
            "released" if self.is_released() && self.actual() == "released" => "good",
            _ => "working",
        }
    }

    pub(super) fn reason(&self) -> (String, String) {
        if let Some(hold) = self.hold() {
            return (hold.detail.clone(), self.named(&hold.remedy));
        }
        if let Some(blocked) = self.blocked().next().or_else(|| self.tried_again()) {
            let Blocked { step, cause, .. } = blocked;
            if is_pause(blocked) {
                return (format!("{step}: {}", cause.detail), blocked.remedy.clone());
            }
            return (format!("{step}: {}: {}", cause.code, cause.detail), self.named(&blocked.remedy));
        }
        if self.publication.is_some_and(|(_, p)| p.not_a_mount_point && p.presence == Presence::Yes) {
            return ("not a mount point".to_owned(), String::new());
        }
        match self.volume.and_then(|(_, volume)| volume.pending_change.clone()) {
            Some(change) => (format!("edited: {change}"), "takes effect at the next bring-up".to_owned()),
            None => Default::default(),
        }
    }

    /// Returns what to do, with the name that `volumectl release` takes where only the command is told.
    pub(super) fn named(&self, remedy: &str) -> String {
        if !["volumectl release", "volumectl release --force"].iter().any(|command| remedy.ends_with(command))
        {
            return remedy.to_owned();
        }
        let pod = self.pod.map(|(pod, ..)| &pod.identity);
        let pod = pod.or_else(|| self.publication.map(|(_, publication)| &publication.pod));
        match (pod, self.volume.and_then(|(_, volume)| volume.staging.as_ref())) {
            (Some(pod), _) => format!("{remedy} {pod}"),
            (None, Some((path, _))) => format!("{remedy} {}", path.display()),
            (None, None) => remedy.to_owned(),
        }
    }
}

/// Returns whether only an edit of a manifest changes it: waiting on is of no use.
pub(super) fn needs_an_edit(code: HoldCode) -> bool {
    match code {
        HoldCode::NotSupported | HoldCode::ObjectInvalid | HoldCode::PendingEdit => true,
        HoldCode::ObjectMissing
        | HoldCode::ClaimUnbound
        | HoldCode::ManifestMissing
        | HoldCode::ReadingIncomplete
        | HoldCode::Brake
        | HoldCode::EmptyDirKept
        | HoldCode::Adopted => false,
    }
}

/// Whether a step is only kept back by the operator.
pub(super) fn is_pause(blocked: &Blocked) -> bool {
    blocked.cause.code == "paused"
}

fn under_way(step: &str) -> &'static str {
    match step {
        "attach" => "attaching",
        "stage" => "staging",
        "publish" => "publishing",
        "republish" => "publishing again",
        "expand" => "growing",
        "unpublish" => "unpublishing",
        "unstage" => "unstaging",
        _ => "working",
    }
}
