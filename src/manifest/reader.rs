//! The task that reads: when to look again, who waits for it, and what was read.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use inotify::{EventStream, Inotify};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;

use super::Manifests;
use super::gather::Gatherer;
use super::set::{Content, DirectoryTaken, Set, Taken};
use super::watches::Watches;
use crate::model::{Ambient, DirectoryIdentity};

/// Finds what no event told of.
const SAFETY: Duration = Duration::from_secs(300);
/// How often what no event tells of is tried again while something is wrong: a directory's file system that is mounted
/// again, a read error that goes away.
const TROUBLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often a file that is being written is tried again (design 3).
const WRITING: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));

/// What to read, and how careful to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The manifest directories. Relative ones are taken from the working directory.
    pub directories: Vec<PathBuf>,
    /// How far apart two complete readings must begin to show that something is gone.
    pub removal_grace: Duration,
    /// The uid whose files are accepted besides root's; 0 in the daemon, the effective uid in tests.
    pub owner: u32,
    /// Which directories the configured ones were when the state directory was last written.
    pub known: BTreeMap<PathBuf, DirectoryIdentity>,
}

/// The directories cannot be watched at all.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// No inotify instance: fs.inotify.max_user_instances or the file limit is used up.
    #[error("cannot watch the manifest directories (see fs.inotify.max_user_instances)")]
    Begin(#[source] io::Error),
    /// The kernel gave no events.
    #[error("cannot read the events of the manifest directories")]
    Events(#[source] io::Error),
}

/// Reads the directories whenever there is a reason to.
#[derive(Debug)]
pub struct Reader {
    settings: Settings,
    started: Instant,
    ambient: Arc<Ambient>,
    requests: mpsc::Receiver<Request>,
    published: watch::Sender<Arc<Manifests>>,
}

/// Asks the reader for something.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    published: watch::Receiver<Arc<Manifests>>,
}

#[derive(Debug)]
enum Request {
    Reread(oneshot::Sender<u64>),
    Approve(oneshot::Sender<u64>),
    Ping(oneshot::Sender<()>),
}

/// Makes a reader. `started` is the daemon's start on tokio's clock, which `began_ms` counts from. The value that is there
/// before the first reading has generation 0.
pub fn reader(
    settings: Settings,
    started: Instant,
    ambient: Arc<Ambient>,
) -> (Reader, Handle, watch::Receiver<Arc<Manifests>>) {
    let (to_reader, requests) = mpsc::channel(64);
    let (published, receiver) = watch::channel(Arc::default());
    let handle = Handle { requests: to_reader, published: receiver.clone() };
    (Reader { settings, started, ambient, requests, published }, handle, receiver)
}

impl Handle {
    /// Has everything read again and returns the generation of a reading that began after this call, once it is published.
    /// When the reader has ended: the last generation there was.
    pub async fn reread(&self) -> u64 {
        self.ask(Request::Reread).await
    }

    /// Accepts the directories and unreadable files as they are now (`volumectl approve`): the directories become the known
    /// ones, and a file that cannot be read counts as read until it changes. Returns as `reread` does.
    pub async fn approve(&self) -> u64 {
        self.ask(Request::Approve).await
    }

    /// Returns whether the reader still moves: it answers between readings. For the watchdog; give it a deadline.
    pub async fn ping(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Ping(answer)).await.is_ok() && answered.await.is_ok()
    }

    async fn ask(&self, request: fn(oneshot::Sender<u64>) -> Request) -> u64 {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(request(answer)).await.is_ok()
            && let Ok(generation) = answered.await
        {
            return generation;
        }
        self.published.borrow().reading.generation
    }
}

/// What a reading works on; lives on the blocking pool while it does.
#[derive(Debug)]
struct Work {
    gatherer: Gatherer,
    set: Set,
}

/// Who waits for the next reading.
#[derive(Debug, Default)]
struct Waiting {
    answers: Vec<oneshot::Sender<u64>>,
    approve: bool,
}

impl Waiting {
    fn take(&mut self, request: Request) {
        match request {
            Request::Reread(answer) => self.answers.push(answer),
            Request::Approve(answer) => {
                self.answers.push(answer);
                self.approve = true;
            }
            // Whoever asks only wants to know that somebody answers.
            Request::Ping(answer) => {
                answer.send(()).ok();
            }
        }
    }
}

type Events = EventStream<Vec<u8>>;

impl Reader {
    /// Reads at once, and then whenever something changed, until `shutdown`. No event is lost between two readings.
    ///
    /// # Errors
    /// When the kernel gives no inotify instance or no events any more.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), WatchError> {
        let mut events = Inotify::init()
            .and_then(|inotify| inotify.into_event_stream(vec![0; 1 << 16]))
            .map_err(WatchError::Begin)?;
        let absolute = |p: &PathBuf| std::path::absolute(p).unwrap_or_else(|_| p.clone());
        let directories = self.settings.directories.iter().map(absolute).collect();
        let known = self.settings.known.iter().map(|(path, id)| (absolute(path), id.clone())).collect();
        let mut work = Work {
            gatherer: Gatherer::new(directories, self.settings.owner, Watches::new(events.watches())),
            set: Set::new(self.settings.removal_grace, known),
        };
        let mut times = Times::default();
        let mut waiting = Waiting::default();
        loop {
            let due;
            // Dropping the reading on shutdown leaves it to end by itself on the blocking pool: it changes nothing.
            (work, due) = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                read = self.read(work, &mut times, &mut waiting) => read,
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                waited = self.wait(&mut events, work.gatherer.watches(), due, &mut waiting) => waited?,
            }
        }
    }

    /// Reads once, publishes, answers; returns when to read next if nothing happens.
    async fn read(&self, mut work: Work, times: &mut Times, waiting: &mut Waiting) -> (Work, Instant) {
        let Waiting { answers, approve } = std::mem::take(waiting);
        let began = Instant::now();
        let taken = Taken {
            began_ms: u64::try_from((began - self.started).as_millis()).unwrap_or(u64::MAX),
            wall: self.ambient.now(),
            approved: approve,
            ..Taken::default()
        };
        let reading = tokio::task::spawn_blocking(move || {
            let taken = work.gatherer.gather(taken);
            let manifests = work.set.settle(&taken);
            (work, taken, manifests)
        });
        let (work, taken, manifests) = match reading.await {
            Ok(done) => done,
            // A panic goes on to whoever watches this task; blocking tasks are not cancelled otherwise.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let complete = manifests.reading.is_complete();
        let generation = manifests.reading.generation;
        let trouble = !taken.notes.is_empty()
            || taken.directories.values().any(|d| matches!(d, DirectoryTaken::Failed(_)))
            || manifests.reading.incomplete.iter().any(|p| taken.directories.contains_key(&p.path))
            || taken.files.values().any(|f| matches!(f.content, Content::Unread(_)));
        let confirm = work.set.confirm_at().filter(|_| complete);
        let confirm = confirm.map(|ms| self.started + Duration::from_millis(ms));
        self.published.send_replace(Arc::new(manifests));
        for answer in answers {
            // Whoever asked may have gone.
            answer.send(generation).ok();
        }
        let due = times.next(began, &taken, trouble).min(confirm.unwrap_or(began + SAFETY));
        (work, due)
    }

    /// Waits for a reason to read, and takes all reasons that are there by then.
    async fn wait(
        &mut self,
        events: &mut Events,
        watches: &mut Watches,
        due: Instant,
        waiting: &mut Waiting,
    ) -> Result<(), WatchError> {
        let mut reason = false;
        while !reason {
            // Cancel-safe, all three: a channel, a stream whose events stay in its buffer, a time.
            tokio::select! {
                biased;
                Some(request) = self.requests.recv() => waiting.take(request),
                event = events.next() => reason = concerns(watches, event)?,
                () = sleep_until(due) => reason = true,
            }
            reason |= !waiting.answers.is_empty();
        }
        while let Some(event) = ready(events).await {
            concerns(watches, event)?;
        }
        while let Ok(request) = self.requests.try_recv() {
            waiting.take(request);
        }
        Ok(())
    }
}

type Event = Option<io::Result<inotify::EventOwned>>;

fn concerns(watches: &mut Watches, event: Event) -> Result<bool, WatchError> {
    match event {
        Some(Ok(event)) => Ok(watches.concerns(&event)),
        Some(Err(error)) => Err(WatchError::Events(error)),
        None => Err(WatchError::Events(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Returns the next event if there is one now.
async fn ready(events: &mut Events) -> Option<Event> {
    poll_fn(|context| match Pin::new(&mut *events).poll_next(context) {
        Poll::Ready(event) => Poll::Ready(Some(event)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// When to try again what no event will tell of.
#[derive(Debug, Default)]
struct Times {
    /// Files that are being written: the pause that is on, and its end.
    writing: BTreeMap<Arc<Path>, (Duration, Instant)>,
    trouble: Option<(Duration, Instant)>,
}

impl Times {
    fn next(&mut self, began: Instant, taken: &Taken, trouble: bool) -> Instant {
        let mut before = std::mem::take(&mut self.writing);
        for (path, file) in &taken.files {
            if matches!(file.content, Content::Writing(_)) {
                let pause = again(before.remove(path), began, WRITING);
                self.writing.insert(path.clone(), pause);
            }
        }
        self.trouble = trouble.then(|| again(self.trouble, began, TROUBLE));
        let ends = self.writing.values().chain(&self.trouble).map(|(_, end)| *end);
        ends.min().unwrap_or(began + SAFETY).min(began + SAFETY)
    }
}

/// The pause after a try: doubled when the last one was over, left as it is when something else caused the try.
fn again(
    last: Option<(Duration, Instant)>,
    now: Instant,
    (first, longest): (Duration, Duration),
) -> (Duration, Instant) {
    match last {
        None => (first, now + first),
        Some((pause, end)) if now < end => (pause, end),
        Some((pause, _)) => {
            let pause = (pause * 2).min(longest);
            (pause, now + pause)
        }
    }
}
