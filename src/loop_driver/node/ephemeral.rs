//! Inline volumes: made when they are published, mounted at the target itself, and gone with it (csi.md 2.10).

use std::collections::BTreeMap;
use std::path::Path;

use tracing::info;

use super::directory::check_flags;
use crate::desired::quantity;
use crate::execute::fault;
use crate::loop_driver::ask::{self, Access, Capability};
use crate::loop_driver::errors::Failure;
use crate::loop_driver::store::Id;
use crate::loop_driver::volumes::{WantedContent, Wish};
use crate::loop_driver::{BACKING, Driver};
use crate::proto::csi;

/// Reads what an inline volume is to be from the attributes of the pod's volume.
pub(super) fn wish(
    id: &Id,
    capability: &Capability,
    attributes: &BTreeMap<String, String>,
) -> Result<Wish, Failure> {
    let Access::Mount { fs_type, .. } = &capability.access else {
        return Err(Failure::Invalid("an inline volume is a file system".to_owned()));
    };
    let (mut bytes, mut named, mut allocation, mut backing) = (None, None, None, None);
    for (key, value) in attributes {
        match key.as_str() {
            "size" => {
                let size = quantity::bytes(value).map_err(|e| Failure::Invalid(format!("size: {e}")))?;
                bytes = Some(i64::try_from(size).unwrap_or(i64::MAX));
            }
            "fsType" => named = ask::fs_type(value)?,
            BACKING => backing = Some(ask::backing(value)?),
            "allocation" => allocation = Some(ask::allocation(value)?),
            other if other.starts_with("csi.storage.k8s.io/") => {}
            other => {
                let known = "size, fsType, allocation (thin or thick) and backing (image or directory)";
                return Err(Failure::Invalid(format!(
                    "the volume attribute {other}={value}: there are {known}"
                )));
            }
        }
    }
    if let (Some(given), Some(named)) = (*fs_type, named)
        && given != named
    {
        return Err(Failure::Invalid(format!(
            "the volume attribute fsType={} and the volume's own fsType {} (csi.fsType) disagree; give one",
            named.name(),
            given.name()
        )));
    }
    let range = bytes.map(|required_bytes| csi::CapacityRange { required_bytes, limit_bytes: 0 });
    Ok(Wish {
        id: id.clone(),
        name: id.to_string(),
        range,
        content: WantedContent::FileSystem { fs_type: fs_type.or(named), backing }.or_image(),
        allocation,
        source: None,
        ephemeral: true,
    })
}

impl Driver {
    /// Makes an inline volume and publishes it. Its lock is held.
    pub(super) async fn publish_ephemeral(
        &self,
        wish: Wish,
        target: &Path,
        capability: &Capability,
        read_only: bool,
    ) -> Result<(), Failure> {
        let id = wish.id.clone();
        if self.store().volumes.get(&id).is_some_and(|found| !found.ephemeral) {
            return Err(Failure::Exists(format!("the volume {id} is there, and is no pod's own")));
        }
        // Before there is a volume that only its unpublication would remove.
        check_flags(&id, wish.content.is_directory(), &capability.access)?;
        let target = self.target(target).await?;
        let volume = self.make_volume(wish).await?;
        let place = self.place_at_rest(&id).await?;
        let mut usage = self.store().usage(&id).await;
        let asked = capability.asked(read_only);
        let access = match &capability.access {
            // Nobody can write to it, so nobody's group matters.
            Access::Mount { fs_type, flags, group: _ } if asked.read_only => {
                let flags = flags.iter().cloned().chain(["ro".to_owned()]).collect();
                Access::Mount { fs_type: *fs_type, flags, group: None }
            }
            access => access.clone(),
        };
        if self.is_published(&place, &usage, &target, &asked).await? {
            self.note_target(&id, usage, &target, asked).await?;
            return self.settle(volume, &place, &target, &access).await;
        }
        if let Some(at) = place.elsewhere(&target) {
            return Err(Failure::Precondition(format!("it is published at {}", at.display())));
        }
        usage.targets.insert(target.clone(), asked.clone());
        self.store().set_usage(&id, &usage).await?;
        fault::reached("ephemeral:intent");
        self.make_target(&target).await?;
        self.show_volume(volume, &place, &target, &access).await?;
        fault::reached("ephemeral:outcome");
        info!(volume = %id, target = %target.display(), "published a pod's own volume");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loop_driver::{Config, Flags};
    use crate::proto::csi::volume_capability::access_mode::Mode;

    #[tokio::test]
    async fn mount_options_that_no_directory_has_are_refused_before_there_is_a_volume() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config");
        std::fs::write(&file, "").unwrap();
        let dir = Some(directory.path().join("images"));
        let flags = Flags { dir, node_id: Some("n".to_owned()), ..Flags::default() };
        let driver = Driver::open(Config::load(Some(&file), flags).unwrap()).await.unwrap();
        let id = Id::new(&format!("csi-{}", "a".repeat(64))).unwrap();
        let access = Access::Mount { fs_type: None, flags: vec!["discard".to_owned()], group: None };
        let capability = Capability { access, mode: Mode::SingleNodeWriter };
        let attributes = [("size", "8Mi"), (BACKING, "directory")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let wish = wish(&id, &capability, &attributes.into()).unwrap();
        let target = directory.path().join("target");
        let refused = driver.publish_ephemeral(wish, &target, &capability, false).await;
        // Without project quotas, too: the options are looked at first.
        assert!(matches!(&refused, Err(Failure::Invalid(why)) if why.contains("discard")), "{refused:?}");
        assert!(driver.store().volumes.get(&id).is_none());
    }
}
