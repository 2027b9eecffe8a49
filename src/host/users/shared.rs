//! One look for many askers: who asks before a look begins is answered by it, who asks later by the next one.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};

/// What was asked, and where each answer goes.
#[derive(Debug)]
struct Waiting<Q, A>(Mutex<Vec<(Q, oneshot::Sender<A>)>>);

impl<Q, A> Waiting<Q, A> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Q, oneshot::Sender<A>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Questions that wait for the next look. One look runs at a time, unless its asker gave it up.
#[derive(Debug)]
pub(super) struct Shared<Q, A> {
    waiting: Arc<Waiting<Q, A>>,
    turn: Semaphore,
}

/// A look that is about to begin.
#[derive(Debug)]
pub(super) struct Next<Q, A>(Arc<Waiting<Q, A>>);

/// A look that has begun. Dropped, its askers get no answer.
#[derive(Debug)]
pub(super) struct Begun<Q, A> {
    questions: Vec<Q>,
    senders: Vec<oneshot::Sender<A>>,
}

impl<Q, A> Next<Q, A> {
    /// Takes every question asked so far. What was seen before this does not count.
    pub(super) fn begin(self) -> Begun<Q, A> {
        let taken = std::mem::take(&mut *self.0.lock());
        // Nobody waits any more for the answer to one whose asker is gone.
        let (questions, senders) = taken.into_iter().filter(|(_, sender)| !sender.is_closed()).unzip();
        Begun { questions, senders }
    }
}

impl<Q, A> Begun<Q, A> {
    pub(super) fn questions(&self) -> &[Q] {
        &self.questions
    }

    /// Answers the questions, in their order.
    pub(super) fn answer(self, answers: impl IntoIterator<Item = A>) {
        for (sender, answer) in self.senders.into_iter().zip(answers) {
            // The asker may have gone meanwhile.
            let _sent = sender.send(answer);
        }
    }
}

impl<Q, A> Shared<Q, A> {
    pub(super) fn new() -> Self {
        Self { waiting: Arc::new(Waiting(Mutex::new(Vec::new()))), turn: Semaphore::new(1) }
    }

    /// Asks. `run` is used when it is this asker's turn to have the look made, and waits for its end; the look itself may go
    /// on when `run` was given up. `None`: the look ended without an answer.
    ///
    /// # Errors
    /// Those of `run`. Whoever else waited has the next look made.
    ///
    /// Cancel-safe: a question whose asker is gone is answered to nobody.
    pub(super) async fn ask<E>(
        &self,
        question: Q,
        run: impl AsyncFnOnce(Next<Q, A>) -> Result<(), E>,
    ) -> Result<Option<A>, E> {
        let (sender, mut answer) = oneshot::channel();
        self.waiting.lock().push((question, sender));
        // Both arms lose nothing when dropped: the answer stays in the channel, and a turn not taken is another's.
        tokio::select! {
            biased;
            answer = &mut answer => return Ok(answer.ok()),
            turn = self.turn.acquire() => {
                // Empty when a look that was given up has our question: then there is only its answer to wait for.
                let asked = !self.waiting.lock().is_empty();
                if asked {
                    run(Next(Arc::clone(&self.waiting))).await?;
                }
                drop(turn);
            }
        }
        Ok(answer.await.ok())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Looks = Shared<u32, (u32, usize)>;

    /// Answers each question with how many looks there were before and how many questions this one has. The look stops
    /// before it begins and again before it answers, until the gates open.
    async fn ask(
        shared: &Looks,
        looks: &Cell<u32>,
        gates: Option<[oneshot::Receiver<()>; 2]>,
    ) -> (u32, usize) {
        let run = async |next: Next<u32, (u32, usize)>| -> Result<(), ()> {
            let (begin, end) = gates.map(|[begin, end]| (begin, end)).unzip();
            if let Some(begin) = begin {
                begin.await.unwrap();
            }
            let begun = next.begin();
            if let Some(end) = end {
                end.await.unwrap();
            }
            let (before, asked) = (looks.replace(looks.get() + 1), begun.questions().len());
            begun.answer(vec![(before, asked); asked]);
            Ok(())
        };
        shared.ask(0, run).await.unwrap().unwrap()
    }

    fn gates() -> ([oneshot::Sender<()>; 2], Option<[oneshot::Receiver<()>; 2]>) {
        let ((let_begin, begin), (let_end, end)) = (oneshot::channel(), oneshot::channel());
        ([let_begin, let_end], Some([begin, end]))
    }

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn who_asks_before_the_look_begins_joins_it_and_who_asks_later_has_the_next() {
        let (shared, looks) = (Shared::new(), Cell::new(0));
        let ([let_begin, let_end], gates) = gates();
        let mut first = pin!(ask(&shared, &looks, gates));
        assert!(poll(first.as_mut()).is_pending());
        let mut second = pin!(ask(&shared, &looks, None));
        assert!(poll(second.as_mut()).is_pending(), "queued with the first");
        let_begin.send(()).unwrap();
        assert!(poll(first.as_mut()).is_pending(), "begun");
        let mut late = pin!(ask(&shared, &looks, None));
        assert!(poll(late.as_mut()).is_pending());
        let_end.send(()).unwrap();
        assert_eq!(poll(first.as_mut()), Poll::Ready((0, 2)));
        assert_eq!(poll(second.as_mut()), Poll::Ready((0, 2)));
        assert_eq!(
            poll(late.as_mut()),
            Poll::Ready((1, 1)),
            "the first look may have missed what it asks for"
        );
    }

    #[test]
    fn an_asker_that_goes_before_the_look_begins_leaves_it_to_the_others() {
        let (shared, looks) = (Shared::new(), Cell::new(0));
        let (_closed, gates) = gates();
        let mut first = Box::pin(ask(&shared, &looks, gates));
        assert!(poll(first.as_mut()).is_pending());
        let mut second = pin!(ask(&shared, &looks, None));
        assert!(poll(second.as_mut()).is_pending());
        drop(first);
        assert_eq!(poll(second.as_mut()), Poll::Ready((0, 1)), "nothing is looked for that nobody asks");
    }

    fn echo(next: Next<u32, u32>) {
        let begun = next.begin();
        let questions = begun.questions().to_vec();
        begun.answer(questions);
    }

    #[test]
    fn a_look_that_was_given_up_still_answers_and_does_not_stop_the_next() {
        let shared = Shared::new();
        let mut given_up = None;
        {
            let run = async |next: Next<u32, u32>| -> Result<(), ()> {
                given_up = Some(next);
                std::future::pending().await
            };
            let mut first = pin!(shared.ask(1, run));
            assert!(poll(first.as_mut()).is_pending());
        }
        let taken = Mutex::new(None);
        let mut second = pin!(shared.ask(2, async |next: Next<u32, u32>| -> Result<(), ()> {
            *taken.lock().unwrap() = Some(next);
            Ok(())
        }));
        assert!(poll(second.as_mut()).is_pending());
        // The first look takes the second's question after all: the second waits for its answer only.
        echo(given_up.unwrap());
        assert_eq!(poll(second.as_mut()), Poll::Ready(Ok(Some(2))));
    }

    #[test]
    fn a_look_that_fails_is_the_error_of_its_asker_only() {
        let shared: Shared<u32, u32> = Shared::new();
        let mut first = pin!(shared.ask(1, async |_next| Err("no")));
        assert_eq!(poll(first.as_mut()), Poll::Ready(Err("no")));
        let mut second = pin!(shared.ask(2, async |next: Next<u32, u32>| -> Result<(), &str> {
            echo(next);
            Ok(())
        }));
        assert_eq!(poll(second.as_mut()), Poll::Ready(Ok(Some(2))));
    }
}
