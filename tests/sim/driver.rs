//! `csi::Driver` over the simulated world: a driver with a mind of its own, that fails, dawdles, hangs, lies and is not heard.
//!
//! A call goes on in the driver when the caller has given up or died, as in life, and is lost when the driver's process ends.

use std::path::Path;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use volumed::BoxFuture;
use volumed::csi::{CallError, Code, Driver};
use volumed::proto::csi as wire;

use super::request::Request;
use super::wish;
use super::world::{Contact, Line, Node, World};

/// One connection to a driver.
#[derive(Debug, Clone)]
pub struct SimDriver {
    world: World,
    driver: usize,
    line: Line,
}

/// A caller that waits.
struct Waiting {
    world: World,
    driver: usize,
    handle: String,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.world.lock().call_ends(self.driver, &self.handle);
    }
}

impl SimDriver {
    pub fn new(world: World, driver: usize) -> Self {
        let line = *world.lines[driver].borrow();
        Self { world, driver, line }
    }

    fn call(&self, request: Request) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move {
            let (method, world) = (request.method(), &self.world);
            world.pause().await;
            let ready = world.lock().drivers[self.driver].contact == Contact::Ready;
            if !ready || *world.lines[self.driver].borrow() != self.line || world.fault(3) {
                return Err(error(method, Code::UNAVAILABLE, "no connection", false));
            }
            let handle = request.handle().to_owned();
            let wrong = world.lock().call_begins(self.driver, &request);
            world.violations(wrong);
            let _waiting = Waiting { world: world.clone(), driver: self.driver, handle };
            let (reply, answer) = oneshot::channel();
            let server = self.clone();
            tokio::spawn(async move { server.live(request, reply).await });
            let mut line = world.lines[self.driver].subscribe();
            tokio::select! {
                biased;
                Ok(answer) = answer => answer,
                _ = line.wait_for(|now| *now != self.line) => {
                    Err(error(method, Code::UNAVAILABLE, "connection lost", true))
                }
            }
        })
    }

    /// The call in the driver, as long as its process lives.
    async fn live(self, request: Request, reply: oneshot::Sender<Result<(), CallError>>) {
        let mut process = self.world.lines[self.driver].subscribe();
        tokio::select! {
            biased;
            _ = process.wait_for(|now| now.process != self.line.process) => {}
            () = self.serve(&request, reply) => {}
        }
    }

    async fn serve(&self, request: &Request, reply: oneshot::Sender<Result<(), CallError>>) {
        let (method, world) = (request.method(), &self.world);
        world.lock().calls += 1;
        let key = (self.driver, request.handle().to_owned());
        let result = if world.lock().pending.insert(key.clone()) {
            let result = self.work(request).await;
            world.lock().pending.remove(&key);
            result
        } else {
            Err(error(method, Code(10), "an operation is pending", true))
        };
        let code = result.as_ref().map_or_else(|error| error.code.0, |()| 0);
        world.tell(|| {
            let (handle, path) = (request.handle(), request.path().display());
            format!(
                "{method} {handle} {path}: {:?}",
                result.as_ref().map_err(|e| (e.code.name(), &e.message))
            )
        });
        if world.fault(4) {
            world.tell(|| format!("the answer of {method} {} is lost", request.handle()));
            world.lock().drivers[self.driver].hangs = true;
            std::future::pending::<()>().await;
        }
        // What is heard and nevertheless not taken (a deadline in the same moment) makes the auditor milder, never stricter.
        if !reply.is_closed() {
            let wrong = world.lock().answer_heard(request, code);
            world.violations(wrong);
        }
        drop(reply.send(result));
    }

    async fn work(&self, request: &Request) -> Result<(), CallError> {
        let (method, world) = (request.method(), &self.world);
        world.dawdle().await;
        if world.fault(3) {
            // Longer than the caller waits.
            tokio::time::sleep(Duration::from_secs(150)).await;
        }
        self.may_hang(method).await;
        if world.fault(10) {
            return Err(error(method, self.any_code(), "before the effect", true));
        }
        if request.is_undo() && world.fault(4) {
            world.tell(|| format!("{method} {} does nothing", request.handle()));
            return Ok(());
        }
        self.apply(request)?;
        world.dawdle().await;
        self.may_hang(method).await;
        if world.fault(8) {
            return Err(error(method, self.any_code(), "after the effect", true));
        }
        Ok(())
    }

    async fn may_hang(&self, method: &str) {
        if self.world.fault(1) {
            self.world.tell(|| format!("{method} hangs"));
            self.world.lock().drivers[self.driver].hangs = true;
            std::future::pending::<()>().await;
        }
    }

    /// Every code but OK. NOT_FOUND of a volume that is there, and ABORTED of one that is left alone, are lies.
    fn any_code(&self) -> Code {
        let code = self.world.below(18) + 1;
        // The deadline's code is worth a few more.
        Code(i32::try_from(if code > 16 { 4 } else { code }).unwrap_or(2))
    }

    fn apply(&self, request: &Request) -> Result<(), CallError> {
        let (world, path, handle) = (&self.world, request.path(), request.handle());
        match request {
            Request::Expand(_) => {}
            Request::Stage(_) => {
                world.lock().staged.insert(handle.to_owned(), path.to_owned());
                if wish::is_mounted_staged(handle) {
                    self.mount(path, handle);
                }
            }
            Request::Publish(_) => {
                let node = if wish::is_block(handle) { Node::File(Vec::new()) } else { Node::Directory };
                world.lock().nodes.insert(path.to_owned(), node);
                if wish::is_mounted(handle) {
                    self.mount(path, handle);
                }
                world.lock().published.insert(path.to_owned(), handle.to_owned());
            }
            Request::Unpublish(_) => {
                // Unmounts once and then deletes what it sees, as drivers do.
                world.unmount(path);
                let mut state = world.lock();
                if state.mounts.iter().any(|mount| mount.point.starts_with(path)) {
                    return Err(error(request.method(), Code(13), "directory is busy", true));
                }
                state.nodes.retain(|other, _| !other.starts_with(path));
                state.published.remove(path);
            }
            Request::Unstage(_) => {
                world.unmount(path);
                world.lock().staged.remove(handle);
            }
        }
        Ok(())
    }

    fn mount(&self, path: &Path, handle: &str) {
        let is_there = self.world.lock().is_mounted(path);
        if is_there {
            self.world.lock().found_done.insert(path.to_owned(), Instant::now());
        } else {
            self.world.mount(path, handle);
        }
    }
}

fn error(method: &'static str, code: Code, message: &str, sent: bool) -> CallError {
    CallError { method, code, message: message.to_owned(), sent }
}

impl Driver for SimDriver {
    fn deadline(&self) -> Duration {
        Duration::from_secs(120)
    }

    fn stage(&self, request: wire::NodeStageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        self.call(Request::Stage(Box::new(request)))
    }

    fn unstage(&self, request: wire::NodeUnstageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        self.call(Request::Unstage(request))
    }

    fn publish(&self, request: wire::NodePublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        self.call(Request::Publish(Box::new(request)))
    }

    fn unpublish(&self, request: wire::NodeUnpublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        self.call(Request::Unpublish(request))
    }

    fn expand(&self, request: wire::NodeExpandVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        self.call(Request::Expand(Box::new(request)))
    }
}
