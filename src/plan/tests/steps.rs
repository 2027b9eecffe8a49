//! What a step does to a world of these tests, and what it must not do there.

use super::*;

/// Refuses a step that breaks a rule in this state.
pub(super) fn check(step: &Step, desired: &Desired, actual: &Actual) {
    let have = actual.volumes.get(step.key());
    let want = desired.volumes.get(step.key());
    match step {
        Step::Unstage { .. } => {
            assert!(
                have.unwrap().publications.is_empty(),
                "unstaged while it is or may be published: {step:?}"
            );
            let held =
                want.is_some_and(|want| want.publications.values().any(|want| matches!(want, Want::Held(_))));
            assert!(!held, "unstaged while it is held: {step:?}");
        }
        Step::Republish(_) | Step::Expand(_) => {}
        Step::Unpublish { id, .. } => {
            let have = &have.unwrap().publications[id];
            match want.and_then(|want| want.publications.get(id)) {
                Some(Want::Absent) => {}
                Some(Want::Wanted(_)) => {
                    assert!(have.presence != Presence::Yes, "a wanted mount is taken away: {step:?}");
                }
                Some(Want::Held(_)) | None => panic!("what is held or undecided is taken away: {step:?}"),
            }
        }
        Step::Publish(publish) => {
            let have = have.filter(|have| have.staging.as_ref().is_some_and(|s| s.presence == Presence::Yes));
            assert!(have.is_some(), "published before it is staged: {step:?}");
            let want = want.and_then(|want| want.publications.get(&publish.id));
            assert!(matches!(want, Some(Want::Wanted(_))), "published though it is not wanted: {step:?}");
        }
        Step::Stage(_) => {
            let wanted =
                want.is_some_and(|w| w.publications.values().any(|want| matches!(want, Want::Wanted(_))));
            assert!(wanted, "staged though nobody wants it: {step:?}");
        }
    }
}

/// Does what a step that succeeds does, or leaves what one that fails leaves.
pub(super) fn apply(step: Step, actual: &mut Actual, fails: bool) {
    let key = step.key().clone();
    let have = actual.volumes.get(&key).cloned();
    let volume = match &step {
        Step::Stage(step) => step.volume.clone(),
        Step::Publish(step) | Step::Republish(step) => step.volume.clone(),
        Step::Expand(_) | Step::Unpublish { .. } | Step::Unstage { .. } => RecordedVolume::EmptyDir,
    };
    let mut have = have.unwrap_or_else(|| Have {
        volume,
        staging: None,
        publications: BTreeMap::new(),
        size: None,
        expansion: None,
    });
    let presence = if fails { Presence::Uncertain } else { Presence::Yes };
    match step {
        Step::Stage(step) => {
            have.staging = Some(HaveStaging {
                presence,
                arguments: step.arguments,
                frozen: true,
                undoing: false,
                obstacle: None,
                not_a_mount_point: false,
                dead: false,
                mount: None,
            });
            for (id, plan) in step.planned {
                let planned = Box::new(publication(Presence::No, plan.arguments, false));
                have.publications.entry(id).or_insert(planned);
            }
        }
        Step::Publish(step) => {
            let published = publication(presence, step.plan.arguments, false);
            have.publications.insert(step.id, Box::new(published));
        }
        Step::Republish(_) => {}
        Step::Expand(step) if !fails => have.size = Some(step.arguments.required_bytes),
        Step::Expand(_) => {}
        Step::Unpublish { id, .. } if fails => {
            let old = have.publications[&id].arguments.clone();
            have.publications.insert(id, Box::new(publication(Presence::Uncertain, old, true)));
        }
        Step::Unpublish { id, .. } => {
            have.publications.remove(&id);
        }
        Step::Unstage { .. } if fails => {
            if let Some(staging) = &mut have.staging {
                staging.presence = Presence::Uncertain;
                staging.undoing = true;
            }
        }
        Step::Unstage { .. } => have.staging = None,
    }
    let nothing = have.staging.is_none() && have.publications.is_empty();
    actual.set(&key, (!nothing).then_some(have));
}

pub(super) fn publication(
    presence: Presence,
    arguments: Option<PublishArguments>,
    undoing: bool,
) -> HavePublication {
    let frozen = presence != Presence::No;
    HavePublication {
        presence,
        arguments,
        frozen,
        undoing,
        obstacle: None,
        not_a_mount_point: false,
        dead: false,
    }
}
