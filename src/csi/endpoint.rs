//! One driver's socket from the first answer on: it is connected, its end is seen at once, and it is connected again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Client;
use super::connection::{Connection, DialError, SocketId, dial, dial_once};
use super::info::{self, InfoError};
use super::liveness::{self, Life, Probing};
use super::watch::PathWatch;
use crate::error::Chain;
use crate::model::{DriverInfo, DriverName};

/// How long a driver may take to accept a connection when it registers (kubelet.md 7).
pub(super) const DIAL: Duration = Duration::from_secs(10);

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
    pub(super) async fn open(&self) -> Result<Session, OpenError> {
        let connection = dial(&self.path, self.uid, DIAL).await?;
        self.ask(connection).await
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
        let mut pause = Duration::from_millis(10);
        loop {
            let socket = SocketId::at(&self.path).await;
            let opened = tokio::select! {
                biased;
                opened = self.reopen(report) => Some(opened),
                // A driver that accepted and does not answer may be replaced by one that does.
                () = self.replaced(socket, watch) => None,
            };
            match opened {
                Some(Ok(session)) => return session,
                Some(Err(error)) => {
                    let reason = Chain(&error).to_string();
                    report.tell(Report::Lost { reason }).await;
                    let stands = matches!(&error, OpenError::Dial(error) if error.stands());
                    tokio::select! {
                        biased;
                        () = watch.changed() => pause = Duration::from_millis(10),
                        () = tokio::time::sleep(pause), if !stands => pause = (pause * 2).min(Duration::from_secs(1)),
                    }
                }
                None => pause = Duration::from_millis(10),
            }
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

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The connection is over.
    Closed,
    /// Another socket stands at its path; the old process may still answer.
    Replaced,
}
