//! What the volumes of one pod need to know of it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec, SELinuxOptions, SecurityContext, VolumeDevice, VolumeMount};

use super::hold;
use crate::model::{Hold, Plugin, PodIdentity, PublicationId, SpecName, VolumeKey, WantedVolume};

/// A volume that is wanted, and its place.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) key: VolumeKey,
    pub(super) id: PublicationId,
    pub(super) volume: WantedVolume,
}

/// The fields of a pod that its volumes depend on.
#[derive(Debug)]
pub(super) struct PodView<'a> {
    pub(super) identity: &'a PodIdentity,
    pub(super) spec: &'a PodSpec,
    pub(super) fs_group: Option<i64>,
    pub(super) fs_group_change_policy: Option<&'a str>,
    pub(super) service_account: &'a str,
    /// `seLinuxChangePolicy` is not Recursive.
    pub(super) changes_labels_by_mount: bool,
}

/// How the containers use a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Some container's volumeMounts names it.
    pub(super) mounted: bool,
    /// Some container's volumeDevices names it.
    pub(super) device: bool,
    /// Some container that uses it has SELinux labels.
    pub(super) labelled: bool,
}

impl<'a> PodView<'a> {
    /// Takes a pod; `None` when it has no spec.
    pub(super) fn new(identity: &'a PodIdentity, pod: &'a Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let context = spec.security_context.as_ref();
        // serviceAccount is the old name of the field, and still an alias.
        let account = [spec.service_account_name.as_deref(), spec.service_account.as_deref()];
        let account = account.into_iter().flatten().find(|a| !a.is_empty());
        Some(Self {
            identity,
            spec,
            fs_group: context.and_then(|c| c.fs_group),
            fs_group_change_policy: context.and_then(|c| c.fs_group_change_policy.as_deref()),
            service_account: account.unwrap_or("default"),
            changes_labels_by_mount: context.and_then(|c| c.se_linux_change_policy.as_deref())
                != Some("Recursive"),
        })
    }

    /// Returns the place of a volume in this pod.
    ///
    /// # Errors
    /// The hold, when the name cannot be a directory's.
    pub(super) fn publication(&self, plugin: Plugin, name: &str) -> Result<PublicationId, Hold> {
        let spec = SpecName::new(name)
            .map_err(|e| hold::invalid(format!("{}: {e}", self.identity), "use another name"))?;
        Ok(PublicationId { pod: self.identity.uid.clone(), plugin, spec })
    }

    /// Returns the volumes that some container uses; the others are ignored everywhere (kubelet.md 1.3).
    pub(super) fn used(&self) -> BTreeMap<&'a str, Usage> {
        let spec = self.spec;
        let pod_labels = spec.security_context.as_ref().and_then(|c| c.se_linux_options.as_ref());
        let mut used = BTreeMap::new();
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let labelled = is_labelled(pod_labels, container.security_context.as_ref());
            add(&mut used, container.volume_mounts.as_deref(), container.volume_devices.as_deref(), labelled);
        }
        for container in spec.ephemeral_containers.iter().flatten() {
            let labelled = is_labelled(pod_labels, container.security_context.as_ref());
            add(&mut used, container.volume_mounts.as_deref(), container.volume_devices.as_deref(), labelled);
        }
        used
    }
}

fn is_labelled(pod: Option<&SELinuxOptions>, container: Option<&SecurityContext>) -> bool {
    pod.is_some() || container.is_some_and(|c| c.se_linux_options.is_some())
}

fn add<'a>(
    used: &mut BTreeMap<&'a str, Usage>,
    mounts: Option<&'a [VolumeMount]>,
    devices: Option<&'a [VolumeDevice]>,
    labelled: bool,
) {
    for mount in mounts.unwrap_or_default() {
        let usage = used.entry(&mount.name).or_default();
        usage.mounted = true;
        usage.labelled |= labelled;
    }
    for device in devices.unwrap_or_default() {
        let usage = used.entry(&device.name).or_default();
        usage.device = true;
        usage.labelled |= labelled;
    }
}
