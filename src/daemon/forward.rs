//! Hands the control API's requests on to whom they concern.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::Tasks;
use crate::control::{Approved, Request};
use crate::manifest;
use crate::model::Status;
use crate::reconcile::Command;

/// How long the loop may take to see what the manifest task read.
const SEEN: Duration = Duration::from_secs(20);

/// Where requests are taken in.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) manifests: manifest::Handle,
    pub(super) status: watch::Receiver<Status>,
    pub(super) tasks: Tasks,
}

impl Desk {
    /// Hands requests on, none waiting for another. A reply that nobody waits for any more is dropped.
    pub(super) async fn serve(mut self) {
        let stop = self.tasks.stop();
        // recv keeps what was not received.
        while let Some(Some(request)) = stop.run_until_cancelled(self.requests.recv()).await {
            let (commands, manifests, status) =
                (self.commands.clone(), self.manifests.clone(), self.status.clone());
            let stop = stop.clone();
            self.tasks.once("request", async move {
                let _cut_short = stop.run_until_cancelled(answer(request, commands, manifests, status)).await;
            });
        }
    }
}

async fn answer(
    request: Request,
    commands: mpsc::Sender<Command>,
    manifests: manifest::Handle,
    status: watch::Receiver<Status>,
) {
    match request {
        Request::Reread { reply } => {
            let _gone = reply.send(manifests.reread().await);
        }
        Request::Retry { object, reply } => {
            let _stopping = commands.send(Command::Retry { object, reply }).await;
        }
        Request::Approve { reply } => {
            let _gone = reply.send(approve(commands, manifests, status).await);
        }
        Request::Pause { scope, reply } => {
            let _stopping = commands.send(Command::Pause { scope, reply }).await;
        }
        Request::Resume { scope, reply } => {
            let _stopping = commands.send(Command::Resume { scope, reply }).await;
        }
        Request::Adopt { what, reply } => {
            let _stopping = commands.send(Command::Adopt { what, reply }).await;
        }
        Request::Release { what, force, reply } => {
            let _stopping = commands.send(Command::Release { what, force, reply }).await;
        }
        Request::AcceptIdentity { object, reply } => {
            let _stopping = commands.send(Command::AcceptIdentity { object, reply }).await;
        }
    }
}

/// First what waits for the unread, and what the brake holds; then the directories; and once the loop has seen them, the brake
/// again: accepted directories may be what applies it.
async fn approve(
    commands: mpsc::Sender<Command>,
    manifests: manifest::Handle,
    mut status: watch::Receiver<Status>,
) -> Result<Approved, String> {
    let before = approve_held(&commands).await?;
    let generation = manifests.approve().await;
    let seen = status.wait_for(|status| status.reading.generation >= generation);
    match tokio::time::timeout(SEEN, seen).await {
        Err(_late) => {
            return Err("the directories are accepted, but volumed has not seen them yet".to_owned());
        }
        Ok(Err(_closed)) => return Err("volumed is stopping".to_owned()),
        Ok(Ok(_seen)) => {}
    }
    let publications = before + approve_held(&commands).await?;
    Ok(Approved { publications, generation })
}

async fn approve_held(commands: &mpsc::Sender<Command>) -> Result<usize, String> {
    let (reply, approved) = oneshot::channel();
    if commands.send(Command::Approve { reply }).await.is_err() {
        return Err("volumed is stopping".to_owned());
    }
    approved.await.map_err(|_closed| "volumed is stopping".to_owned())?
}
