//! The Node service: arguments are checked as the contract says, `Rules` looks at the caller, then `Mounts` does it.

use std::path::Path;

use serde_json::{Value, json};
use tonic::{Request, Response, Status, async_trait};
use volumed::proto::csi::node_server::Node;
use volumed::proto::csi::{self, volume_capability};

use crate::faults::{Health, Script, Usage};
use crate::rules::{Kind, Rules};
use crate::serve::Driver;

#[async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let log = json!({
            "volume_id": request.volume_id, "publish_context": request.publish_context,
            "staging_target_path": request.staging_target_path,
            "volume_capability": capability(request.volume_capability.as_ref()),
            "secrets": request.secrets, "volume_context": request.volume_context,
        });
        self.calls.run("NodeStageVolume", &request.volume_id, log, || self.stage(&request)).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let log = json!({"volume_id": request.volume_id, "staging_target_path": request.staging_target_path});
        self.calls.run("NodeUnstageVolume", &request.volume_id, log, || self.unstage(&request)).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let log = json!({
            "volume_id": request.volume_id, "publish_context": request.publish_context,
            "staging_target_path": request.staging_target_path, "target_path": request.target_path,
            "volume_capability": capability(request.volume_capability.as_ref()),
            "readonly": request.readonly, "secrets": request.secrets, "volume_context": request.volume_context,
        });
        self.calls.run("NodePublishVolume", &request.volume_id, log, || self.publish(&request)).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let log = json!({"volume_id": request.volume_id, "target_path": request.target_path});
        self.calls.run("NodeUnpublishVolume", &request.volume_id, log, || self.unpublish(&request)).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let log = json!({
            "volume_id": request.volume_id, "volume_path": request.volume_path,
            "staging_target_path": request.staging_target_path,
        });
        let effect = |script: &Script| self.stats(&request, script);
        self.calls.run_scripted("NodeGetVolumeStats", &request.volume_id, log, effect).await
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let range = request.capacity_range.as_ref();
        let log = json!({
            "volume_id": request.volume_id, "volume_path": request.volume_path,
            "required_bytes": range.map(|range| range.required_bytes),
            "limit_bytes": range.map(|range| range.limit_bytes),
            "staging_target_path": request.staging_target_path,
            "volume_capability": capability(request.volume_capability.as_ref()), "secrets": request.secrets,
        });
        self.calls.run("NodeExpandVolume", &request.volume_id, log, || self.expand(&request)).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        use csi::node_service_capability::{Rpc, Type, rpc};
        let options = &self.options;
        let all = [
            (rpc::Type::StageUnstageVolume, !options.no_stage),
            (rpc::Type::GetVolumeStats, !options.no_stats),
            (rpc::Type::ExpandVolume, options.expand),
            (rpc::Type::VolumeCondition, options.condition),
            (rpc::Type::SingleNodeMultiWriter, options.multi_writer),
            (rpc::Type::VolumeMountGroup, options.mount_group),
            (rpc::Type::GetVolumeHealth, options.health),
        ];
        let capability = |(capability, _)| csi::NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: i32::from(capability) })),
        };
        let capabilities = all.into_iter().filter(|(_, has)| *has).map(capability).collect();
        let answer = csi::NodeGetCapabilitiesResponse { capabilities };
        self.calls.run("NodeGetCapabilities", "", json!({}), || Ok(answer)).await
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let answer = csi::NodeGetInfoResponse {
            node_id: self.options.node_id.clone(),
            max_volumes_per_node: self.options.max_volumes,
            accessible_topology: None,
        };
        self.calls.run("NodeGetInfo", "", json!({}), || Ok(answer)).await
    }

    async fn node_get_volume_health(
        &self,
        request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        let log = json!({
            "volume_id": request.volume_id, "volume_publish_path": request.volume_publish_path,
            "staging_target_path": request.staging_target_path,
        });
        let effect = |script: &Script| {
            self.offered(self.options.health, "GET_VOLUME_HEALTH")?;
            required("volume_id", &request.volume_id)?;
            let health_statuses = script.health.iter().flatten().map(Health::entry).collect();
            let health = csi::VolumeHealth { volume_id: request.volume_id.clone(), health_statuses };
            Ok(csi::NodeGetVolumeHealthResponse { volume_health: Some(health) })
        };
        self.calls.run_scripted("NodeGetVolumeHealth", &request.volume_id, log, effect).await
    }

    async fn node_get_storage_health(
        &self,
        _: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        Err(Status::unimplemented("no GET_STORAGE_HEALTH"))
    }
}

/// The effects.
impl Driver {
    fn stage(&self, request: &csi::NodeStageVolumeRequest) -> Result<csi::NodeStageVolumeResponse, Status> {
        self.offered(!self.options.no_stage, "STAGE_UNSTAGE_VOLUME")?;
        let volume = required("volume_id", &request.volume_id).map(|_| request.volume_id.as_str())?;
        let staging = required("staging_target_path", &request.staging_target_path)?;
        self.rules.with(volume, |memory| {
            let kind = self.rules.capability(memory, request.volume_capability.as_ref())?;
            self.rules.staging(memory, staging)?;
            self.rules.room(memory)?;
            match kind {
                Kind::Mount => {
                    self.mounts.stage(volume, staging)?;
                    self.give_to_group(volume, request.volume_capability.as_ref())?;
                }
                Kind::Block if self.mounts.none => {}
                Kind::Block => drop(self.mounts.attach(volume)?),
            }
            memory.staged = Some(staging.to_owned());
            Ok(csi::NodeStageVolumeResponse {})
        })
    }

    fn unstage(
        &self,
        request: &csi::NodeUnstageVolumeRequest,
    ) -> Result<csi::NodeUnstageVolumeResponse, Status> {
        self.offered(!self.options.no_stage, "STAGE_UNSTAGE_VOLUME")?;
        let volume = required("volume_id", &request.volume_id).map(|_| request.volume_id.as_str())?;
        let staging = required("staging_target_path", &request.staging_target_path)?;
        self.rules.with(volume, |memory| {
            self.rules.unstaging(memory)?;
            self.mounts.unstage(staging)?;
            if memory.kind == Some(Kind::Block) {
                self.mounts.detach(volume)?;
            }
            memory.staged = None;
            Ok(csi::NodeUnstageVolumeResponse {})
        })
    }

    fn publish(
        &self,
        request: &csi::NodePublishVolumeRequest,
    ) -> Result<csi::NodePublishVolumeResponse, Status> {
        let volume = required("volume_id", &request.volume_id).map(|_| request.volume_id.as_str())?;
        let target = required("target_path", &request.target_path)?;
        let capability = request.volume_capability.as_ref();
        let inline =
            request.volume_context.get("csi.storage.k8s.io/ephemeral").is_some_and(|is| is == "true");
        self.rules.with(volume, |memory| {
            let kind = self.rules.capability(memory, capability)?;
            let staging = match request.staging_target_path.as_str() {
                "" if self.options.no_stage || inline => None,
                "" => return Err(Status::failed_precondition("staging_target_path is missing")),
                // A kubelet names it for block volumes also where nothing is staged (kubelet.md 5.6).
                _ if self.options.no_stage => None,
                path => Some(Path::new(path)),
            };
            if let Some(staging) = staging {
                self.rules.staging(memory, staging)?;
            }
            self.rules.target(memory, target)?;
            self.rules.room(memory)?;
            Rules::single_writer(memory, capability, target)?;
            memory.targets.entry(target.to_owned()).or_default();
            match kind {
                Kind::Mount => {
                    self.mounts.publish(volume, staging, target, request.readonly)?;
                    self.give_to_group(volume, capability)?;
                }
                Kind::Block if self.mounts.none => {}
                Kind::Block => self.mounts.publish_block(volume, target, request.readonly)?,
            }
            memory.targets.insert(target.to_owned(), true);
            Ok(csi::NodePublishVolumeResponse {})
        })
    }

    fn unpublish(
        &self,
        request: &csi::NodeUnpublishVolumeRequest,
    ) -> Result<csi::NodeUnpublishVolumeResponse, Status> {
        let volume = required("volume_id", &request.volume_id).map(|_| request.volume_id.as_str())?;
        let target = required("target_path", &request.target_path)?;
        self.rules.with(volume, |memory| {
            self.mounts.unpublish(target)?;
            memory.targets.remove(target);
            // Nobody comes to unstage it.
            if memory.kind == Some(Kind::Block) && self.options.no_stage && memory.targets.is_empty() {
                self.mounts.detach(volume)?;
            }
            Ok(csi::NodeUnpublishVolumeResponse {})
        })
    }

    fn stats(
        &self,
        request: &csi::NodeGetVolumeStatsRequest,
        script: &Script,
    ) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        let has = !self.options.no_stats || self.options.condition;
        self.offered(has, "GET_VOLUME_STATS or VOLUME_CONDITION")?;
        required("volume_id", &request.volume_id)?;
        let path = required("volume_path", &request.volume_path)?;
        let not_there =
            |error: &dyn std::fmt::Display| Status::not_found(format!("{}: {error}", path.display()));
        std::fs::symlink_metadata(path).map_err(|error| not_there(&error))?;
        let condition = self.options.condition.then(|| csi::VolumeCondition {
            abnormal: script.abnormal.is_some(),
            message: script.abnormal.clone().unwrap_or_else(|| "it is well".to_owned()),
        });
        let image = std::fs::metadata(self.mounts.image(&request.volume_id));
        let usage = match (&script.usage, image) {
            (Some(usage), _) => usage.iter().map(Usage::entry).collect(),
            (None, _) if self.options.no_stats => Vec::new(),
            // Of a device only its size is known.
            (None, Ok(image)) => vec![csi::VolumeUsage {
                unit: i32::from(csi::volume_usage::Unit::Bytes),
                total: signed(image.len()),
                ..Default::default()
            }],
            (None, Err(_)) => {
                let stats = nix::sys::statvfs::statvfs(path).map_err(|error| not_there(&error))?;
                usage_of(&stats)
            }
        };
        Ok(csi::NodeGetVolumeStatsResponse { usage, volume_condition: condition })
    }

    fn expand(
        &self,
        request: &csi::NodeExpandVolumeRequest,
    ) -> Result<csi::NodeExpandVolumeResponse, Status> {
        self.offered(self.options.expand, "EXPAND_VOLUME")?;
        let volume = required("volume_id", &request.volume_id).map(|_| request.volume_id.as_str())?;
        let path = required("volume_path", &request.volume_path)?;
        let range = request.capacity_range.unwrap_or_default();
        let wanted = u64::try_from(range.required_bytes);
        let wanted = wanted.map_err(|_| Status::invalid_argument("required_bytes is negative"))?;
        std::fs::symlink_metadata(path)
            .map_err(|error| Status::not_found(format!("{}: {error}", path.display())))?;
        self.rules.with(volume, |memory| {
            if request.volume_capability.is_some() {
                self.rules.capability(memory, request.volume_capability.as_ref())?;
            }
            if let Some(staging) = Some(&request.staging_target_path).filter(|path| !path.is_empty()) {
                self.rules.staging(memory, Path::new(staging))?;
            }
            memory.size = memory.size.max(wanted);
            if memory.kind == Some(Kind::Block) && !self.mounts.none {
                memory.size = self.mounts.grow(volume, wanted)?;
            }
            Ok(csi::NodeExpandVolumeResponse { capacity_bytes: signed(memory.size) })
        })
    }

    /// With VOLUME_MOUNT_GROUP the driver, not the caller, sees to the group.
    fn give_to_group(&self, volume: &str, capability: Option<&csi::VolumeCapability>) -> Result<(), Status> {
        let Some(volume_capability::AccessType::Mount(mount)) =
            capability.and_then(|capability| capability.access_type.as_ref())
        else {
            return Ok(());
        };
        if mount.volume_mount_group.is_empty() || self.mounts.none {
            return Ok(());
        }
        let group = mount.volume_mount_group.parse();
        let group = group.map_err(|_| Status::invalid_argument("volume_mount_group is no number"))?;
        std::os::unix::fs::chown(self.mounts.directory(volume), None, Some(group))
            .map_err(|error| Status::internal(format!("chown: {error}")))
    }

    fn offered(&self, has: bool, capability: &str) -> Result<(), Status> {
        if has || self.options.lenient {
            return Ok(());
        }
        Err(Status::unimplemented(format!("contract violation (csi.md 10, 13): no {capability}")))
    }
}

fn usage_of(stats: &nix::sys::statvfs::Statvfs) -> Vec<csi::VolumeUsage> {
    let usage = |unit, total: u64, free: u64| csi::VolumeUsage {
        unit: i32::from(unit),
        total: signed(total),
        available: signed(free),
        used: signed(total.saturating_sub(free)),
    };
    let block = stats.fragment_size();
    vec![
        usage(
            csi::volume_usage::Unit::Bytes,
            stats.blocks().saturating_mul(block),
            stats.blocks_available().saturating_mul(block),
        ),
        usage(csi::volume_usage::Unit::Inodes, stats.files(), stats.files_available()),
    ]
}

/// Returns a required field as a path.
pub(crate) fn required<'a>(field: &str, value: &'a str) -> Result<&'a Path, Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{field} is missing")));
    }
    Ok(Path::new(value))
}

/// Returns a capability for the log.
pub(crate) fn capability(capability: Option<&csi::VolumeCapability>) -> Value {
    let Some(capability) = capability else { return Value::Null };
    let mode = capability.access_mode.as_ref().map(|mode| mode.mode);
    match &capability.access_type {
        Some(volume_capability::AccessType::Mount(mount)) => json!({
            "access_mode": mode,
            "mount": {
                "fs_type": mount.fs_type, "mount_flags": mount.mount_flags,
                "volume_mount_group": mount.volume_mount_group,
            },
        }),
        Some(volume_capability::AccessType::Block(_)) => json!({"access_mode": mode, "block": {}}),
        None => json!({"access_mode": mode}),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
