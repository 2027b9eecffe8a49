//! What CreateVolume and its kin ask for, and growth.

use std::collections::BTreeMap;

use tracing::info;

use crate::execute::fault;
use crate::host::images::Allocation;
use crate::loop_driver::ask::{self, Access, Capability};
use crate::loop_driver::errors::Failure;
use crate::loop_driver::locks::Key;
use crate::loop_driver::store::{Content, Id, Source, Volume, VolumeState};
use crate::loop_driver::volumes::{Backing, WantedContent, Wish};
use crate::loop_driver::{BACKING, Driver};
use crate::proto::csi;
use crate::proto::csi::volume_content_source::Type;

/// Keys with this prefix are for others; only the file system's is ours too.
const COMMON: &str = "csi.storage.k8s.io/";

/// The parameters of a class.
const ALLOCATION: &str = "allocation";
const FS_TYPE: &str = "fsType";

impl Driver {
    /// Checks a CreateVolume request.
    pub(super) fn wish(&self, request: csi::CreateVolumeRequest) -> Result<Wish, Failure> {
        let id = ask::name(&request.name)?;
        if request.volume_capabilities.is_empty() {
            return Err(ask::missing("volume_capabilities"));
        }
        let (content, allocation) = shape(&request.volume_capabilities, &request.parameters)?;
        check_parameters(&request.mutable_parameters, &[])?;
        ask::bounds(request.capacity_range)?;
        self.check_topology(request.accessibility_requirements.as_ref())?;
        let source = request.volume_content_source.map(source).transpose()?;
        let content = if source.is_none() { content.or_image() } else { content };
        if matches!(&source, Some(Source::Volume(of)) if *of == id) {
            return Err(Failure::Invalid("a volume cannot be made from itself".to_owned()));
        }
        Ok(Wish {
            id,
            name: request.name,
            range: request.capacity_range,
            content,
            allocation,
            source,
            ephemeral: false,
        })
    }

    /// Answers a ValidateVolumeCapabilities request.
    pub(super) fn validate(
        &self,
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, Failure> {
        let id = ask::id("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(ask::missing("volume_capabilities"));
        }
        let volume = self.volume(id.as_ref(), &request.volume_id)?;
        let supported =
            shape(&request.volume_capabilities, &request.parameters).and_then(|(wanted, allocation)| {
                fits(&volume, wanted, allocation)?;
                check_parameters(&request.mutable_parameters, &[])
            });
        Ok(match supported {
            Ok(()) => csi::ValidateVolumeCapabilitiesResponse {
                confirmed: Some(csi::validate_volume_capabilities_response::Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
            Err(failure) => {
                csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message: failure.to_string() }
            }
        })
    }

    /// Grows a volume's image and the device over it, or the limit of its directory. Its lock is held.
    pub(super) async fn grow_image(
        &self,
        id: &Id,
        range: Option<csi::CapacityRange>,
    ) -> Result<Volume, Failure> {
        let mut volume = self.volume(Some(id), id.as_str())?;
        let bytes = ask::larger(range, volume.bytes)?;
        let image = self.store().volume_image(id);
        if bytes > volume.bytes {
            volume.state = VolumeState::Growing { to: bytes };
            self.store().volumes.put(volume.clone()).await?;
            fault::reached("grow:intent");
            let grown = match (self.check_room().await, volume.content) {
                (Ok(()), Content::Directory(_)) => self.grow_directory(&volume, bytes).await,
                (Ok(()), Content::FileSystem(_) | Content::Block) => {
                    self.images().grow(&image, bytes, volume.allocation).await.map_err(Failure::from)
                }
                (Err(no_room), _) => Err(no_room),
            };
            fault::reached("grow:image");
            volume.state = VolumeState::Ready;
            if grown.is_ok() {
                volume.bytes = bytes;
                volume.grown = volume.content.grown(volume.grown, bytes);
            }
            self.store().volumes.put(volume.clone()).await?;
            grown?;
            fault::reached("grow:outcome");
            info!(volume = %id, bytes, "grown");
        }
        // Every time: a crash may have come between the image and its device.
        self.take_size(id).await?;
        Ok(volume)
    }

    /// Lets our devices over a volume's image have its size.
    pub(in crate::loop_driver) async fn take_size(&self, id: &Id) -> Result<(), Failure> {
        for device in self.place(id).await?.ours() {
            self.images().take_size(device).await?;
        }
        Ok(())
    }
}

/// Reads what a volume is to be from capabilities and parameters; both may be missing where a call lets them.
pub(super) fn shape(
    capabilities: &[csi::VolumeCapability],
    parameters: &BTreeMap<String, String>,
) -> Result<(WantedContent, Option<Allocation>), Failure> {
    check_parameters(parameters, &[ALLOCATION, FS_TYPE, BACKING])?;
    let allocation = parameters.get(ALLOCATION).map(|text| ask::allocation(text)).transpose()?;
    let backing = parameters.get(BACKING).map(|text| ask::backing(text)).transpose()?;
    if backing == Some(Backing::Directory) && allocation == Some(Allocation::Thick) {
        return Err(thick_directory());
    }
    let named = parameters.get(FS_TYPE).or_else(|| {
        let key = |key: &str| key.strip_prefix(COMMON).is_some_and(|rest| rest.eq_ignore_ascii_case(FS_TYPE));
        parameters.iter().find(|(name, _)| key(name)).map(|(_, value)| value)
    });
    let named = ask::fs_type(named.map(String::as_str).unwrap_or_default())?;
    let capabilities = match capabilities {
        [] => Vec::new(),
        given => Capability::of_all(given)?,
    };
    let mut fs_type = None;
    for capability in capabilities {
        match capability.access {
            Access::Block if backing == Some(Backing::Directory) => {
                return Err(Failure::Invalid(
                    "a volume with backing: directory is no block device; use backing: image, or volumeMode Filesystem"
                        .to_owned(),
                ));
            }
            Access::Block => return Ok((WantedContent::Block, allocation)),
            Access::Mount { fs_type: found, .. } => match (fs_type, found) {
                (Some(one), Some(other)) if one != other => {
                    return Err(Failure::Invalid("a volume has one file system".to_owned()));
                }
                (_, found) => fs_type = fs_type.or(found),
            },
        }
    }
    Ok((WantedContent::FileSystem { fs_type: fs_type.or(named), backing }, allocation))
}

/// Refuses to reserve a directory's room.
pub(in crate::loop_driver) fn thick_directory() -> Failure {
    Failure::Invalid(
        "allocation: thick is for images; of a volume with backing: directory no room can be taken before it is written to"
            .to_owned(),
    )
}

/// Refuses parameters that mean nothing here; those of the common prefix are for others.
pub(in crate::loop_driver) fn check_parameters(
    parameters: &BTreeMap<String, String>,
    known: &[&str],
) -> Result<(), Failure> {
    let unknown = |key: &&String| !known.contains(&key.as_str()) && !key.starts_with(COMMON);
    match parameters.keys().find(unknown) {
        None => Ok(()),
        Some(key) if known.is_empty() => Err(Failure::Invalid(format!("{key}: there are no parameters"))),
        Some(key) => Err(Failure::Invalid(format!("{key}: the parameters are {}", known.join(", ")))),
    }
}

fn fits(volume: &Volume, wanted: WantedContent, allocation: Option<Allocation>) -> Result<(), Failure> {
    if !wanted.fits(volume.content) || allocation.is_some_and(|allocation| allocation != volume.allocation) {
        return Err(Failure::Invalid(format!("the volume is {:?}, {:?}", volume.content, volume.allocation)));
    }
    Ok(())
}

fn source(given: csi::VolumeContentSource) -> Result<Source, Failure> {
    match given.r#type {
        None => Err(ask::missing("volume_content_source.type")),
        Some(Type::Volume(volume)) => ask::id("volume_content_source.volume_id", &volume.volume_id)?
            .map(Source::Volume)
            .ok_or_else(|| Failure::no_volume(&volume.volume_id)),
        Some(Type::Snapshot(snapshot)) => {
            ask::id("volume_content_source.snapshot_id", &snapshot.snapshot_id)?
                .map(Source::Snapshot)
                .ok_or_else(|| Failure::no_snapshot(&snapshot.snapshot_id))
        }
    }
}

/// Returns the lock of what a volume is made from.
pub(super) fn key_of(source: &Source) -> Key {
    match source {
        Source::Volume(id) => Key::Volume(id.clone()),
        Source::Snapshot(id) => Key::Snapshot(id.clone()),
    }
}
