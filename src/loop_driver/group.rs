//! The GroupController service: snapshots of several volumes at one moment.

use std::collections::BTreeSet;

use tonic::{Request, Response, Status, async_trait};

use super::controller::answers::timestamp;
use super::controller::volume::check_parameters;
use super::errors::Failure;
use super::locks::Key;
use super::store::{Group, Id, State};
use super::{Driver, ask};
use crate::proto::csi;
use crate::proto::csi::group_controller_server::GroupController;
use crate::proto::csi::group_controller_service_capability::{Rpc, Type, rpc};

#[async_trait]
impl GroupController for Driver {
    async fn group_controller_get_capabilities(
        &self,
        _request: Request<csi::GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::GroupControllerGetCapabilitiesResponse>, Status> {
        let r#type = i32::from(rpc::Type::CreateDeleteGetVolumeGroupSnapshot);
        let one = csi::GroupControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type })) };
        Ok(Response::new(csi::GroupControllerGetCapabilitiesResponse { capabilities: vec![one] }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<csi::CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<csi::CreateVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let id = ask::name(&request.name)?;
        if request.source_volume_ids.is_empty() {
            return Err(ask::missing("source_volume_ids").into());
        }
        check_parameters(&request.parameters, &[])?;
        let mut volumes = BTreeSet::new();
        for text in &request.source_volume_ids {
            volumes.insert(ask::id("source_volume_ids", text)?.ok_or_else(|| Failure::no_volume(text))?);
        }
        let member = |volume: &Id| Key::Snapshot(Id::of_member(&id, volume));
        let mut keys: Vec<Key> = volumes.iter().map(member).collect();
        keys.extend(volumes.iter().cloned().map(Key::Volume));
        keys.push(Key::Group(id.clone()));
        // What is left of a group of this name goes first, with members that may be of other volumes.
        let before = self.store().groups.get(&id).filter(|found| found.state != State::Ready);
        let before: Vec<Id> = before.into_iter().flat_map(|found| found.members.into_values()).collect();
        keys.extend(before.iter().cloned().map(Key::Snapshot));
        self.operate(keys, |driver| async move {
            if let Some(found) = driver.store().groups.get(&id) {
                match found.state {
                    State::Ready if found.name == request.name && found.members.keys().eq(volumes.iter()) => {
                        return driver.group_created(&found);
                    }
                    State::Ready => {
                        return Err(Failure::Exists(format!("the group {id} is there, of other volumes")));
                    }
                    State::Creating | State::Deleting => {
                        // Until the locks were ours it may have become another: of its members none is locked.
                        let locked = |one: &Id| before.contains(one);
                        if !found.members.keys().eq(volumes.iter()) && !found.members.values().all(locked) {
                            return Err(Failure::Pending(id));
                        }
                        driver.discard_group(&id).await?;
                    }
                }
            }
            let found: Result<Vec<_>, _> =
                volumes.iter().map(|volume| driver.volume(Some(volume), volume.as_str())).collect();
            let group = driver.take_group(id, request.name, &found?).await?;
            driver.group_created(&group)
        })
        .await
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<csi::DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<csi::DeleteVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let done = csi::DeleteVolumeGroupSnapshotResponse {};
        let Some(id) = ask::id("group_snapshot_id", &request.group_snapshot_id)? else {
            return Ok(Response::new(done));
        };
        let Some(found) = self.store().groups.get(&id) else { return Ok(Response::new(done)) };
        check_members(&found, &request.snapshot_ids)?;
        let mut keys: Vec<Key> = found.members.values().cloned().map(Key::Snapshot).collect();
        keys.push(Key::Group(id.clone()));
        self.operate(keys, |driver| async move {
            // Until the locks were ours somebody may have deleted it, and made another.
            match driver.store().groups.get(&id) {
                None => return Ok(done),
                Some(now) if now.members != found.members => return Err(Failure::Pending(id)),
                Some(_) => {}
            }
            driver.discard_group(&id).await?;
            Ok(done)
        })
        .await
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<csi::GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<csi::GetVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let id = ask::id("group_snapshot_id", &request.group_snapshot_id)?;
        let found =
            id.and_then(|id| self.store().groups.get(&id)).filter(|group| group.state == State::Ready);
        let missing = || Failure::NotFound { what: "group snapshot", id: request.group_snapshot_id.clone() };
        let found = found.ok_or_else(missing)?;
        check_members(&found, &request.snapshot_ids)?;
        let group_snapshot = Some(self.group_message(&found)?);
        Ok(Response::new(csi::GetVolumeGroupSnapshotResponse { group_snapshot }))
    }
}

impl Driver {
    fn group_created(&self, group: &Group) -> Result<csi::CreateVolumeGroupSnapshotResponse, Failure> {
        let group_snapshot = Some(self.group_message(group)?);
        Ok(csi::CreateVolumeGroupSnapshotResponse { group_snapshot })
    }

    fn group_message(&self, group: &Group) -> Result<csi::VolumeGroupSnapshot, Failure> {
        let snapshots: Result<Vec<_>, Failure> = (group.members.values())
            .map(|id| self.snapshot(Some(id), id.as_str()).map(|found| self.snapshot_message(&found)))
            .collect();
        Ok(csi::VolumeGroupSnapshot {
            group_snapshot_id: group.id.to_string(),
            snapshots: snapshots?,
            creation_time: Some(timestamp(group.created)),
            ready_to_use: group.state == State::Ready,
        })
    }
}

/// The caller has to name all members and no other (csi.md 2.9).
fn check_members(group: &Group, named: &[String]) -> Result<(), Failure> {
    let named: BTreeSet<&str> = named.iter().map(String::as_str).collect();
    let found: BTreeSet<&str> = group.members.values().map(Id::as_str).collect();
    if named == found {
        return Ok(());
    }
    Err(Failure::Invalid(format!("snapshot_ids are not those of the group {}: {found:?}", group.id)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::store::VERSION;
    use super::super::{Config, Flags};
    use super::*;

    #[tokio::test]
    async fn what_is_left_of_a_group_goes_only_with_the_locks_of_its_members() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config");
        std::fs::write(&file, "").unwrap();
        let dir = Some(directory.path().join("images"));
        let flags = Flags { dir, node_id: Some("n".to_owned()), ..Flags::default() };
        let driver = Driver::open(Config::load(Some(&file), flags).unwrap()).await.unwrap();
        let (id, volume) = (Id::of_name("g"), Id::of_name("a"));
        let member = Id::of_member(&id, &volume);
        let left = Group {
            version: VERSION,
            id: id.clone(),
            name: "g".to_owned(),
            state: State::Deleting,
            members: BTreeMap::from([(volume, member.clone())]),
            created: 0,
        };
        driver.store().groups.put(left).await.unwrap();
        let create = || {
            let source_volume_ids = vec!["b".to_owned()];
            let name = "g".to_owned();
            let request =
                csi::CreateVolumeGroupSnapshotRequest { source_volume_ids, name, ..Default::default() };
            driver.create_volume_group_snapshot(Request::new(request))
        };
        // Somebody works with one of its members.
        let works = driver.inner.locks.take([Key::Snapshot(member)]).await.unwrap();
        assert_eq!(create().await.unwrap_err().code(), tonic::Code::Aborted);
        assert!(driver.store().groups.get(&id).is_some());
        drop(works);
        // The volume of the new one is not there.
        assert_eq!(create().await.unwrap_err().code(), tonic::Code::NotFound);
        assert!(driver.store().groups.get(&id).is_none());
    }
}
