//! `csi::Driver` over the simulated world: a driver with a mind of its own, that fails, dawdles and is not heard.
//!
//! A call goes on in the driver when the caller has given up or died, as in life.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use volumed::BoxFuture;
use volumed::csi::{CallError, Code, Driver};
use volumed::proto::csi as wire;

use super::world::{Node, World};

/// One connection to the driver.
#[derive(Debug, Clone)]
pub struct SimDriver {
    world: World,
    /// STAGE_UNSTAGE_VOLUME.
    pub stages: bool,
}

/// What a call does to the world.
#[derive(Debug, Clone)]
enum Effect {
    Stage { path: PathBuf },
    Unstage { path: PathBuf },
    Publish { target: PathBuf, staging: Option<PathBuf>, ephemeral: bool },
    Unpublish { target: PathBuf },
}

impl SimDriver {
    pub fn new(world: World, stages: bool) -> Self {
        Self { world, stages }
    }

    fn call(
        &self,
        method: &'static str,
        handle: String,
        effect: Effect,
    ) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move {
            self.world.pause().await;
            if self.world.fault(3) {
                return Err(error(method, Code::UNAVAILABLE, "no connection", false));
            }
            let (reply, answer) = oneshot::channel();
            let server = self.clone();
            tokio::spawn(async move {
                let result = server.serve(method, &handle, effect).await;
                if server.world.fault(4) {
                    server.world.tell(format!("the answer of {method} {handle} is lost"));
                    // Nobody answers: the caller's deadline ends it.
                    tokio::time::sleep(Duration::from_secs(600)).await;
                }
                drop(reply.send(result));
            });
            answer.await.unwrap_or_else(|_| Err(error(method, Code::UNAVAILABLE, "connection lost", true)))
        })
    }

    async fn serve(&self, method: &'static str, handle: &str, effect: Effect) -> Result<(), CallError> {
        self.world.lock().calls += 1;
        if !self.world.lock().pending.insert(handle.to_owned()) {
            self.world.tell(format!("{method} {handle}: ABORTED"));
            return Err(error(method, Code(10), "an operation is pending", true));
        }
        self.world.pause().await;
        if self.world.fault(3) {
            // Longer than the caller waits.
            tokio::time::sleep(Duration::from_secs(150)).await;
        }
        let result = if self.world.fault(10) {
            Err(error(method, self.any_code(), "before the effect", true))
        } else {
            self.apply(method, handle, &effect);
            if self.world.fault(8) {
                Err(error(method, self.any_code(), "after the effect", true))
            } else {
                Ok(())
            }
        };
        self.world.pause().await;
        self.world.lock().pending.remove(handle);
        self.world.tell(format!(
            "{method} {handle} {effect:?}: {:?}",
            result.as_ref().map_err(|e| (e.code.name(), &e.message))
        ));
        result
    }

    fn any_code(&self) -> Code {
        // Every code but OK and NOT_FOUND: the latter, said of a volume that is there, is a lie of its own kind.
        let codes = [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        let at = usize::try_from(self.world.below(codes.len() as u64)).unwrap_or(0);
        Code(codes[at])
    }

    fn apply(&self, method: &'static str, handle: &str, effect: &Effect) {
        let world = &self.world;
        match effect {
            Effect::Stage { path } => {
                if !self.stages {
                    world.violation(format!("{method} without the capability"));
                }
                if !matches!(world.lock().nodes.get(path), Some(Node::Directory)) {
                    world.violation(format!("{method}: the staging path {} is no directory", path.display()));
                }
                if let Some(other) = world.lock().staged.insert(handle.to_owned(), path.clone())
                    && other != *path
                {
                    world.violation(format!(
                        "{handle} is staged at {} and {}",
                        other.display(),
                        path.display()
                    ));
                }
                if !handle.contains("unmounted") && !world.lock().is_mounted(path) {
                    world.mount(path, handle);
                }
            }
            Effect::Publish { target, staging, ephemeral } => {
                self.publish(method, handle, target, staging.as_deref(), *ephemeral);
            }
            Effect::Unpublish { target } => {
                if world.lock().always_wanted.contains(target) {
                    world.violation(format!(
                        "{} is unpublished though it was wanted all the time",
                        target.display()
                    ));
                }
                world.unmount(target);
                let state = world.lock();
                if state.is_mounted(target) || state.mounts.iter().any(|m| m.point.starts_with(target)) {
                    drop(state);
                    world.violation(format!("the driver deletes what is mounted on {}", target.display()));
                } else {
                    drop(state);
                    world.lock().nodes.retain(|path, _| !path.starts_with(target));
                }
                world.lock().published.remove(target);
            }
            Effect::Unstage { path } => {
                if let Some((target, _)) = world.lock().published.iter().find(|(_, other)| *other == handle) {
                    let target = target.clone();
                    world.tell(format!("still published at {}", target.display()));
                }
                if world.lock().published.values().any(|other| other == handle) {
                    world.violation(format!("{handle} is unstaged while it is published"));
                }
                world.unmount(path);
                world.lock().staged.remove(handle);
            }
        }
    }

    fn publish(&self, method: &str, handle: &str, target: &Path, staging: Option<&Path>, ephemeral: bool) {
        let world = &self.world;
        let parent_there = target.parent().is_some_and(|parent| world.lock().nodes.contains_key(parent));
        if !parent_there {
            world.violation(format!("{method}: the parent of {} is missing", target.display()));
        }
        if self.stages && !ephemeral {
            let staged = world.lock().staged.get(handle).cloned();
            if staged.is_none() || staged.as_deref() != staging {
                world.violation(format!("{handle} is published from {staging:?} and staged at {staged:?}"));
            }
        }
        world.lock().nodes.insert(target.to_owned(), Node::Directory);
        if !handle.contains("unmounted") && !world.lock().is_mounted(target) {
            world.mount(target, handle);
        }
        world.lock().published.insert(target.to_owned(), handle.to_owned());
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
        let effect = Effect::Stage { path: request.staging_target_path.into() };
        self.call("NodeStageVolume", request.volume_id, effect)
    }

    fn unstage(&self, request: wire::NodeUnstageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        let effect = Effect::Unstage { path: request.staging_target_path.into() };
        self.call("NodeUnstageVolume", request.volume_id, effect)
    }

    fn publish(&self, request: wire::NodePublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        let staging = (!request.staging_target_path.is_empty()).then(|| request.staging_target_path.into());
        let ephemeral = request.volume_id.starts_with("csi-");
        let effect = Effect::Publish { target: request.target_path.into(), staging, ephemeral };
        self.call("NodePublishVolume", request.volume_id, effect)
    }

    fn unpublish(&self, request: wire::NodeUnpublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        let effect = Effect::Unpublish { target: request.target_path.into() };
        self.call("NodeUnpublishVolume", request.volume_id, effect)
    }
}
