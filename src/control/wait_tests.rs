use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::control::samples;
use crate::model::{HoldCode, InProgress};

/// Waits against a status that the test changes, and a reader that answers every request to read again.
struct World {
    status: watch::Sender<Status>,
    requests: mpsc::Sender<Request>,
    asked: mpsc::Receiver<Request>,
}

impl World {
    fn new(status: Status) -> Self {
        let (requests, asked) = mpsc::channel(8);
        Self { status: watch::Sender::new(status), requests, asked }
    }

    fn wait(
        &self,
        names: &'static [&'static str],
        goal: Goal,
        timeout: Option<u64>,
    ) -> impl Future<Output = Vec<Ending>> + Send + 'static {
        let (status, requests) = (self.status.subscribe(), self.requests.clone());
        let deadline = timeout.map(|ms| Instant::now() + Duration::from_millis(ms));
        async move {
            let objects: Vec<ObjectName> = names.iter().map(|name| name.parse().unwrap()).collect();
            let stop = CancellationToken::new();
            let ended = until(status, &requests, &stop, &objects, goal, deadline);
            // A wait that never ends must fail the test, not stop it.
            tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the wait ends").unwrap()
        }
    }

    /// Answers the next request with the generation that will confirm, and returns it.
    async fn answer_reread(&mut self) -> u64 {
        let Some(Request::Reread { reply }) = self.asked.recv().await else {
            panic!("something else was asked")
        };
        let generation = self.status.borrow().reading.generation + 1;
        reply.send(generation).unwrap();
        generation
    }
}

#[tokio::test]
async fn what_is_published_is_reached_at_once_without_asking_anybody() {
    let mut status = samples::ready();
    samples::add(&mut status, "web", "data", Presence::Yes);
    let mut world = World::new(status);
    let names = &["pod/db/web", "db/data"];
    assert_eq!(world.wait(names, Goal::Published, None).await, [Ending::Reached; 2]);
    assert!(world.asked.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_answered_before_the_state_is_reconstructed() {
    let world = World::new(Status::default());
    assert_eq!(world.wait(&["nope"], Goal::Published, Some(50)).await, [Ending::TimedOut]);
}

#[tokio::test]
async fn publishing_wakes_the_one_who_waits() {
    let mut status = samples::ready();
    let key = samples::add(&mut status, "web", "data", Presence::Uncertain);
    let world = World::new(status);
    let wait = world.wait(&["pod/db/web"], Goal::Published, None);
    let publish = async {
        world.status.send_modify(|status| status.pass += 1);
        tokio::task::yield_now().await;
        let yes = |publication: &mut crate::model::PublicationStatus| publication.presence = Presence::Yes;
        world.status.send_modify(|status| samples::publication(status, &key, yes));
    };
    assert_eq!(tokio::join!(wait, publish).0, [Ending::Reached]);
}

#[tokio::test]
async fn a_name_is_unknown_only_after_one_more_reading() {
    let mut world = World::new(samples::ready());
    let wait = world.wait(&["pod/db/web"], Goal::Published, None);
    let read = async {
        let generation = world.answer_reread().await;
        // A pass that is not of that reading decides nothing.
        world.status.send_modify(|status| status.pass += 1);
        tokio::task::yield_now().await;
        world.status.send_modify(|status| status.reading.generation = generation);
    };
    assert_eq!(tokio::join!(wait, read).0, [Ending::Unknown]);
}

#[tokio::test]
async fn a_pod_that_the_extra_reading_finds_is_waited_for() {
    let mut world = World::new(samples::ready());
    let wait = world.wait(&["pod/db/web"], Goal::Published, None);
    let read = async {
        let generation = world.answer_reread().await;
        world.status.send_modify(|status| {
            samples::add(status, "web", "data", Presence::Yes);
            status.reading.generation = generation;
        });
    };
    assert_eq!(tokio::join!(wait, read).0, [Ending::Reached]);
}

#[tokio::test]
async fn what_only_an_edit_can_mend_has_failed_and_the_others_are_given_up() {
    let mut status = samples::ready();
    samples::add(&mut status, "web", "data", Presence::No);
    samples::add(&mut status, "api", "other", Presence::No);
    samples::hold(&mut status, "web", HoldCode::NotSupported);
    let mut world = World::new(status);
    let wait = world.wait(&["pod/db/web", "pod/db/api"], Goal::Published, None);
    let read = async {
        let generation = world.answer_reread().await;
        world.status.send_modify(|status| status.reading.generation = generation);
    };
    assert_eq!(tokio::join!(wait, read).0, [Ending::Failed, Ending::GivenUp]);
}

#[tokio::test]
async fn what_fails_behind_another_that_is_on_its_way_is_seen() {
    let mut status = samples::ready();
    samples::add(&mut status, "web", "data", Presence::No);
    samples::add(&mut status, "api", "other", Presence::No);
    let mut world = World::new(status);
    let wait = world.wait(&["pod/db/web", "pod/db/api"], Goal::Published, None);
    let read = async {
        world.status.send_modify(|status| {
            samples::hold(status, "api", HoldCode::NotSupported);
            status.turn += 1;
        });
        let generation = world.answer_reread().await;
        world.status.send_modify(|status| status.reading.generation = generation);
    };
    assert_eq!(tokio::join!(wait, read).0, [Ending::GivenUp, Ending::Failed]);
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_what_is_there_counts_also_behind_what_is_not() {
    let mut status = samples::ready();
    samples::add(&mut status, "web", "data", Presence::No);
    let key = samples::add(&mut status, "api", "other", Presence::No);
    let world = World::new(status);
    let mut wait = std::pin::pin!(world.wait(&["pod/db/web", "pod/db/api"], Goal::Published, Some(50)));
    assert!(is_pending(wait.as_mut()), "none is published");
    let yes = |publication: &mut crate::model::PublicationStatus| publication.presence = Presence::Yes;
    world.status.send_modify(|status| samples::publication(status, &key, yes));
    assert_eq!(wait.await, [Ending::TimedOut, Ending::Reached]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_pv_may_still_come_so_it_times_out() {
    let mut status = samples::ready();
    samples::add(&mut status, "web", "data", Presence::No);
    samples::hold(&mut status, "web", HoldCode::ClaimUnbound);
    let world = World::new(status);
    assert_eq!(world.wait(&["pod/db/web"], Goal::Published, Some(50)).await, [Ending::TimedOut]);
}

fn is_pending(wait: std::pin::Pin<&mut impl Future>) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    wait.poll(&mut context).is_pending()
}

#[tokio::test]
async fn released_means_unstaged_too_even_when_the_pod_is_forgotten() {
    let mut status = samples::ready();
    let key = samples::add(&mut status, "web", "data", Presence::Yes);
    let world = World::new(status);
    let mut wait = std::pin::pin!(world.wait(&["db/data"], Goal::Released, None));
    assert!(is_pending(wait.as_mut()), "it is published");
    world.status.send_modify(|status| {
        status.pods.clear();
        status.volumes.get_mut(&key).unwrap().publications.clear();
    });
    assert!(is_pending(wait.as_mut()), "it is staged");
    world.status.send_modify(|status| status.volumes.clear());
    assert_eq!(wait.await, [Ending::Reached]);
}

#[tokio::test]
async fn a_name_that_nothing_has_is_released_after_one_more_reading() {
    let mut world = World::new(samples::ready());
    let wait = world.wait(&["db/data"], Goal::Released, None);
    let read = async {
        let generation = world.answer_reread().await;
        world.status.send_modify(|status| status.reading.generation = generation);
    };
    assert_eq!(tokio::join!(wait, read).0, [Ending::Reached]);
}

#[tokio::test]
async fn a_pod_whose_manifest_never_was_valid_does_not_pass_for_one_without_volumes() {
    let mut status = samples::ready();
    let identity = samples::identity("web");
    status.pods.insert(identity.uid.clone(), Arc::new(samples::bare(&identity)));
    let hold = crate::model::Hold {
        code: HoldCode::ObjectInvalid,
        detail: "spec is missing".to_owned(),
        remedy: "mend it".to_owned(),
    };
    status.pods.values_mut().for_each(|pod| Arc::make_mut(pod).hold = Some(hold.clone()));
    let mut world = World::new(status);
    let wait = world.wait(&["pod/db/web"], Goal::Published, None);
    let read = async {
        let generation = world.answer_reread().await;
        world.status.send_modify(|status| status.reading.generation = generation);
    };
    assert_eq!(tokio::join!(wait, read).0, [Ending::Failed]);
}

#[tokio::test]
async fn a_pod_that_leaves_while_its_first_stage_is_under_way_is_not_released_before_it_ended() {
    for kept_for_another in [false, true] {
        let mut status = samples::ready();
        let key = samples::add(&mut status, "web", "data", Presence::No);
        Arc::make_mut(status.pods.get_mut(&samples::identity("web").uid).unwrap()).leaving = true;
        let volume = status.volumes.get_mut(&key).unwrap();
        // Nothing is recorded of the staging before its first intent, nor of a publication that never was begun.
        (volume.staging, volume.publications) = (None, BTreeMap::new());
        let running =
            InProgress { step: "stage", publication: None, detail: None, again: None, since: samples::NOW };
        volume.in_progress = Some(running);
        if kept_for_another {
            samples::add(&mut status, "api", "data", Presence::No);
        }
        let world = World::new(status);
        let mut wait = std::pin::pin!(world.wait(&["pod/db/web"], Goal::Released, None));
        if !kept_for_another {
            assert!(is_pending(wait.as_mut()), "it is being staged");
            world.status.send_modify(|status| status.volumes.get_mut(&key).unwrap().in_progress = None);
        }
        assert_eq!(wait.await, [Ending::Reached]);
    }
}

#[tokio::test]
async fn a_pod_that_leaves_while_it_is_shown_what_another_has_is_not_released_before_that_ended() {
    let mut status = samples::ready();
    let key = samples::add(&mut status, "web", "data", Presence::No);
    samples::add(&mut status, "api", "data", Presence::Yes);
    let uid = samples::identity("web").uid;
    Arc::make_mut(status.pods.get_mut(&uid).unwrap()).leaving = true;
    let volume = status.volumes.get_mut(&key).unwrap();
    let publication = volume.publications.keys().find(|id| id.pod == uid).cloned();
    volume.publications.retain(|id, _| id.pod != uid);
    volume.in_progress =
        Some(InProgress { step: "publish", publication, detail: None, again: None, since: samples::NOW });
    let world = World::new(status);
    let mut wait = std::pin::pin!(world.wait(&["pod/db/web"], Goal::Released, None));
    assert!(is_pending(wait.as_mut()), "it is being published");
    world.status.send_modify(|status| status.volumes.get_mut(&key).unwrap().in_progress = None);
    assert_eq!(wait.await, [Ending::Reached]);
}
