//! The Controller service. No attaching: there is one node.

pub(super) mod answers;
pub(super) mod volume;

use tonic::{Request, Response, Status, async_trait};

use super::errors::Failure;
use super::health::{Trouble, condition, health};
use super::locks::Key;
use super::snapshots::new_snapshot;
use super::store::{State, Volume};
use super::{Driver, ask};
use crate::host::images::Allocation;
use crate::proto::csi;
use crate::proto::csi::controller_server::Controller;
use crate::proto::csi::controller_service_capability::{Rpc, Type, rpc};
use answers::page;

#[async_trait]
impl Controller for Driver {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let wish = self.wish(request.into_inner())?;
        let source = wish.source.as_ref().map(volume::key_of);
        let keys = [Key::Volume(wish.id.clone())].into_iter().chain(source).collect();
        self.operate(keys, |driver| async move {
            let volume = driver.make_volume(wish).await?;
            Ok(csi::CreateVolumeResponse { volume: Some(driver.volume_message(&volume)) })
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let Some(id) = ask::id("volume_id", &request.into_inner().volume_id)? else {
            return Ok(Response::new(csi::DeleteVolumeResponse {}));
        };
        self.operate(vec![Key::Volume(id.clone())], |driver| async move {
            driver.discard_volume(&id).await?;
            Ok(csi::DeleteVolumeResponse {})
        })
        .await
    }

    async fn controller_publish_volume(
        &self,
        _request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        Err(Status::unimplemented("volumes need no attaching"))
    }

    async fn controller_unpublish_volume(
        &self,
        _request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        Err(Status::unimplemented("volumes need no attaching"))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        Ok(Response::new(self.validate(request.into_inner())?))
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let (volumes, next_token) =
            self.page_of_volumes(request.max_entries, &request.starting_token).await?;
        let entry = |(volume, troubles): (Volume, Vec<Trouble>)| csi::list_volumes_response::Entry {
            volume: Some(self.volume_message(&volume)),
            status: Some(csi::list_volumes_response::VolumeStatus {
                published_node_ids: Vec::new(),
                volume_condition: Some(self.with_copy(&volume, condition(&troubles))),
            }),
        };
        let entries = volumes.into_iter().map(entry).collect();
        Ok(Response::new(csi::ListVolumesResponse { entries, next_token }))
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        let request = request.into_inner();
        let (wanted, allocation) = volume::shape(&request.volume_capabilities, &request.parameters)?;
        let here = request.accessible_topology.as_ref().is_none_or(|topology| self.is_here(topology));
        // Where directories are not limited, or not by the file system that is asked for, there is no room for any.
        let possible =
            here && (!wanted.is_directory() || wanted.content(None, self.limiting().await.ok()).is_ok());
        let room = if possible { self.room(allocation.unwrap_or(Allocation::Thin)).await? } else { 0 };
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(Response::new(csi::GetCapacityResponse {
            available_capacity: bytes(room),
            maximum_volume_size: Some(bytes(room)),
            minimum_volume_size: Some(bytes(wanted.least())),
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _request: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        let all = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::ListVolumes,
            rpc::Type::GetCapacity,
            rpc::Type::CreateDeleteSnapshot,
            rpc::Type::ListSnapshots,
            rpc::Type::GetSnapshot,
            rpc::Type::CloneVolume,
            rpc::Type::ExpandVolume,
            rpc::Type::VolumeCondition,
            rpc::Type::GetVolume,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::GetVolumeHealth,
            rpc::Type::ListVolumeHealth,
        ];
        let capability = |one| csi::ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: i32::from(one) })),
        };
        let capabilities = all.map(capability).into();
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let source = ask::id("source_volume_id", &request.source_volume_id)?;
        let id = ask::name(&request.name)?;
        self.check_topology(request.accessibility_requirements.as_ref())?;
        volume::check_parameters(&request.parameters, &[])?;
        let Some(source) = source else {
            return Err(Failure::no_volume(&request.source_volume_id).into());
        };
        let keys = vec![Key::Snapshot(id.clone()), Key::Volume(source.clone())];
        self.operate(keys, |driver| async move {
            if let Some(found) = driver.store().snapshots.get(&id) {
                match found.state {
                    State::Ready if found.volume == source && found.name == request.name => {
                        return Ok(csi::CreateSnapshotResponse {
                            snapshot: Some(driver.snapshot_message(&found)),
                        });
                    }
                    State::Ready => {
                        let problem = format!("the snapshot {id} is there, of the volume {}", found.volume);
                        return Err(Failure::Exists(problem));
                    }
                    State::Creating | State::Deleting => driver.discard_snapshot(&id).await?,
                }
            }
            let volume = driver.volume(Some(&source), source.as_str())?;
            let wanted = vec![new_snapshot(id, request.name, &volume, None)];
            let taken = driver.take_snapshots(wanted).await?;
            let snapshot = taken.first().map(|one| driver.snapshot_message(one));
            Ok(csi::CreateSnapshotResponse { snapshot })
        })
        .await
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        let Some(id) = ask::id("snapshot_id", &request.into_inner().snapshot_id)? else {
            return Ok(Response::new(csi::DeleteSnapshotResponse {}));
        };
        self.operate(vec![Key::Snapshot(id.clone())], |driver| async move {
            let found = driver.store().snapshots.get(&id).filter(|found| !driver.is_orphan(found));
            if let Some(group) = found.and_then(|snapshot| snapshot.group) {
                let problem = format!("the snapshot {id} goes with its group {group}");
                return Err(Failure::Invalid(problem));
            }
            driver.discard_snapshot(&id).await?;
            Ok(csi::DeleteSnapshotResponse {})
        })
        .await
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let of = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
        let mut all = self.store().snapshots.all();
        all.retain(|snapshot| {
            snapshot.state == State::Ready
                && of(&request.snapshot_id, snapshot.id.as_str())
                && of(&request.source_volume_id, snapshot.volume.as_str())
        });
        let (snapshots, next_token) =
            page(all, |snapshot| &snapshot.id, request.max_entries, &request.starting_token)?;
        let entry = |snapshot| csi::list_snapshots_response::Entry {
            snapshot: Some(self.snapshot_message(&snapshot)),
        };
        let entries = snapshots.into_iter().map(entry).collect();
        Ok(Response::new(csi::ListSnapshotsResponse { entries, next_token }))
    }

    async fn get_snapshot(
        &self,
        request: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        let text = request.into_inner().snapshot_id;
        let snapshot = self.snapshot(ask::id("snapshot_id", &text)?.as_ref(), &text)?;
        Ok(Response::new(csi::GetSnapshotResponse { snapshot: Some(self.snapshot_message(&snapshot)) }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = ask::id("volume_id", &request.volume_id)?;
        if request.capacity_range.is_none() {
            return Err(ask::missing("capacity_range").into());
        }
        let Some(id) = id else { return Err(Failure::no_volume(&request.volume_id).into()) };
        self.operate(vec![Key::Volume(id.clone())], |driver| async move {
            let volume = driver.grow_image(&id, request.capacity_range).await?;
            Ok(csi::ControllerExpandVolumeResponse {
                capacity_bytes: i64::try_from(volume.bytes).unwrap_or(i64::MAX),
                node_expansion_required: volume.grown < volume.bytes,
            })
        })
        .await
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        let volume = self.asked_volume(&request.into_inner().volume_id)?;
        let status = csi::controller_get_volume_response::VolumeStatus {
            published_node_ids: Vec::new(),
            volume_condition: Some(self.with_copy(&volume, self.condition(&volume).await)),
        };
        let volume = Some(self.volume_message(&volume));
        Ok(Response::new(csi::ControllerGetVolumeResponse { volume, status: Some(status) }))
    }

    async fn controller_modify_volume(
        &self,
        _request: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        Err(Status::unimplemented("volumes have no mutable parameters"))
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<csi::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerListVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        let (volumes, next_token) =
            self.page_of_volumes(request.max_entries, &request.starting_token).await?;
        let entries = volumes.into_iter().map(|(volume, troubles)| health(&volume, troubles)).collect();
        Ok(Response::new(csi::ControllerListVolumeHealthResponse { entries, next_token }))
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeHealthResponse>, Status> {
        let volume = self.asked_volume(&request.into_inner().volume_id)?;
        let troubles = self.troubles(&volume).await?;
        let volume_health = Some(health(&volume, troubles));
        Ok(Response::new(csi::ControllerGetVolumeHealthResponse { volume_health }))
    }
}

impl Driver {
    fn asked_volume(&self, text: &str) -> Result<Volume, Failure> {
        self.volume(ask::id("volume_id", text)?.as_ref(), text)
    }
}
