//! One driver's socket from the first answer on: it is connected, its end is seen at once, and it is connected again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, DialError, SocketId, dial_once};
use super::info::{self, InfoError};
use super::liveness::{self, Life, Probing};
use super::watch::PathWatch;
use super::{Client, Code};
use crate::error::Chain;
use crate::model::{DriverInfo, DriverName};

/// How long a plugin may take to accept a connection (kubelet.md 7).
pub(super) const DIAL: Duration = Duration::from_secs(10);
/// How long a driver that registers may take to say what it is: what a kubelet gives NodeGetInfo (kubelet.md 7).
const START: Duration = Duration::from_secs(120);
/// After this time somebody should know that a driver is waited for.
const LATE: Duration = Duration::from_secs(10);
/// The pauses before a socket where nobody answers is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Where a driver is called, and how.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// Who is to answer.
    pub(super) name: DriverName,
    /// The socket.
    pub(super) path: PathBuf,
    /// How long each call may take.
    pub(super) deadline: Duration,
    /// Whose sockets are trusted besides root's.
    pub(super) uid: u32,
    /// The configuration names it, so nobody else vouches for its name.
    pub(super) configured: bool,
    /// How often its Probe is called.
    pub(super) probing: Probing,
}

/// A driver process that answered.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Arc<Client>,
    pub(super) info: DriverInfo,
    /// Cancelled when the connection is over.
    pub(super) closed: CancellationToken,
    socket: SocketId,
}

/// Why a driver does not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Info(#[from] InfoError),
}

impl OpenError {
    /// Returns whether the driver may only be starting, or starting again: nobody is there, or who was there has gone.
    fn may_pass(&self) -> bool {
        match self {
            Self::Dial(error) => error.is_absence(),
            Self::Info(InfoError::Call(error)) => error.code == Code::UNAVAILABLE,
            Self::Info(InfoError::Absurd { .. } | InfoError::OtherName { .. }) => false,
        }
    }
}

/// What the task of one driver or registration socket tells the registry.
#[derive(Debug)]
pub(super) enum Report {
    /// A driver process answers; told again when its life changes.
    Answers { endpoint: Endpoint, client: Arc<Client>, info: DriverInfo, life: Life },
    /// It answers, but is not ready to say what it is.
    Starting { reason: String },
    /// It does not, or not any more.
    Lost { reason: String },
    /// Its registration was refused.
    Refused { reason: String },
}

/// The way to the registry, with the number of the task that reports.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    pub(super) task: u64,
    pub(super) reports: mpsc::Sender<(u64, Report)>,
}

impl Reporter {
    /// Tells the registry. When that is gone, so is this task in a moment.
    pub(super) async fn tell(&self, report: Report) {
        self.reports.send((self.task, report)).await.ok();
    }
}

impl Endpoint {
    /// Connects and asks the driver what it is, for its registration.
    ///
    /// One that is not there yet, says UNAVAILABLE or is replaced meanwhile is waited for, as by the kubelets that try NodeGetInfo
    /// again. Those of today refuse it at once, and a pod's restart policy starts the registrar again that ends by that; where
    /// nobody does, the driver would never be registered.
    pub(super) async fn open(&self, report: &Reporter) -> Result<Session, OpenError> {
        let began = Instant::now();
        let mut watch = PathWatch::new(&self.path);
        let mut pause = FIRST_PAUSE;
        loop {
            let asked = async { self.ask(dial_once(&self.path, self.uid).await?).await };
            match self.unless_replaced(asked, &mut watch).await {
                Some(Err(error)) if error.may_pass() && began.elapsed() < START => {
                    if began.elapsed() >= LATE {
                        let cause = Chain(&error).to_string();
                        let reason = format!(
                            "the driver {} does not answer yet, and is waited for: {cause}",
                            self.name
                        );
                        report.tell(Report::Refused { reason }).await;
                    }
                    pause = changed_or(pause, &mut watch).await;
                }
                Some(result) => return result,
                None => pause = FIRST_PAUSE,
            }
        }
    }

    /// As `open`, for a driver whose listener is not waited for; nobody registers a configured one when it is ready.
    async fn reopen(&self, report: &Reporter) -> Result<Session, OpenError> {
        let connection = dial_once(&self.path, self.uid).await?;
        if self.configured {
            let client = Client::new(connection.channel.clone(), self.deadline, connection.pid);
            liveness::until_ready(&client, &connection.closed, report).await.map_err(InfoError::from)?;
        }
        self.ask(connection).await
    }

    async fn ask(&self, connection: Connection) -> Result<Session, OpenError> {
        let client = Client::new(connection.channel, self.deadline, connection.pid);
        let info = info::read(&client, &self.name, self.configured).await?;
        Ok(Session { client: Arc::new(client), info, closed: connection.closed, socket: connection.socket })
    }

    /// Reports how the driver is, or that it is lost, for as long as the task lives, beginning with the session there is, if any.
    pub(super) async fn keep(&self, mut session: Option<Session>, report: &Reporter) {
        // Watched before the first look, so that nothing is missed in between.
        let mut watch = PathWatch::new(&self.path);
        loop {
            if let Some(session) = session.take() {
                let end = tokio::select! {
                    biased;
                    end = self.ended(&session, &mut watch) => end,
                    // A Probe under way when the connection ends is of no interest any more.
                    never = liveness::watch(self, &session, report) => match never {},
                };
                if end == End::Closed {
                    report.tell(Report::Lost { reason: "the driver closed the connection".to_owned() }).await;
                }
            }
            session = Some(self.connect_again(&mut watch, report).await);
        }
    }

    /// Waits until the connection is over or another socket stands at the path.
    async fn ended(&self, session: &Session, watch: &mut PathWatch) -> End {
        loop {
            tokio::select! {
                biased;
                () = session.closed.cancelled() => return End::Closed,
                // Cancel safe enough: a lost wake-up belongs to a connection that is over.
                () = watch.changed() => {
                    let there = SocketId::at(&self.path).await;
                    if there.is_some_and(|there| there != session.socket) {
                        return End::Replaced;
                    }
                }
            }
        }
    }

    /// Tries until a driver answers: at once when its socket changes, else with a pause of at most a second; while there is
    /// no socket file, or none that is trusted, only when that changes.
    async fn connect_again(&self, watch: &mut PathWatch, report: &Reporter) -> Session {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.unless_replaced(self.reopen(report), watch).await {
                Some(Ok(session)) => return session,
                Some(Err(error)) => {
                    let reason = Chain(&error).to_string();
                    report.tell(Report::Lost { reason }).await;
                    if matches!(&error, OpenError::Dial(error) if error.stands()) {
                        watch.changed().await;
                        pause = FIRST_PAUSE;
                    } else {
                        pause = changed_or(pause, watch).await;
                    }
                }
                None => pause = FIRST_PAUSE,
            }
        }
    }

    /// Does what asks the driver; `None` when another socket stands at its path before that ends: a driver that accepted and does
    /// not answer may be replaced by one that does.
    async fn unless_replaced<T>(&self, asked: impl Future<Output = T>, watch: &mut PathWatch) -> Option<T> {
        let socket = SocketId::at(&self.path).await;
        tokio::select! {
            biased;
            asked = asked => Some(asked),
            // Whoever is asked then is another process, or soon gone.
            () = self.replaced(socket, watch) => None,
        }
    }

    async fn replaced(&self, socket: Option<SocketId>, watch: &mut PathWatch) {
        loop {
            watch.changed().await;
            if SocketId::at(&self.path).await != socket {
                return;
            }
        }
    }
}

/// Waits for a pause, or less when something changes at the path; returns the next pause.
async fn changed_or(pause: Duration, watch: &mut PathWatch) -> Duration {
    tokio::select! {
        biased;
        // Cancel safe enough: what is missed is seen after the pause.
        () = watch.changed() => FIRST_PAUSE,
        () = tokio::time::sleep(pause) => (pause * 2).min(LONGEST_PAUSE),
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The connection is over.
    Closed,
    /// Another socket stands at its path; the old process may still answer.
    Replaced,
}
