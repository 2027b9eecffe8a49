//! iSCSI volumes: a disk of a target, named by a PersistentVolume or by the pod itself (kubelet.md 4.8).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ISCSIPersistentVolumeSource, ISCSIVolumeSource, PersistentVolumeSpec, SecretReference,
};

use super::csi::Bound;
use super::index::Index;
use super::pod::{Place, PodView, Usage};
use super::{affinity, hold, lun, secrets};
use crate::model::{Hold, IscsiLun, Lun, Plugin, Portal, SecretMap, TargetName};

/// How many portals a target may have: all are asked at once.
const MOST_PORTALS: usize = 16;

/// What a source says, and where that stands.
struct Source<'a> {
    /// "PersistentVolume x: spec.iscsi"
    field: String,
    said: &'a ISCSIPersistentVolumeSource,
}

/// Returns the volume behind a PV with an iscsi source.
///
/// # Errors
/// The hold, when it is not this node's, its target cannot be what is meant, or its Secret is missing.
pub(super) fn persistent(
    index: &Index<'_>,
    pod: &PodView<'_>,
    usage: &Usage,
    bound: &Bound<'_>,
    spec: &PersistentVolumeSpec,
    source: &ISCSIPersistentVolumeSource,
) -> Result<Place, Hold> {
    let source = Source { field: format!("PersistentVolume {}: spec.iscsi", bound.name), said: source };
    let disk = source.disk()?;
    affinity::check(bound.name, spec, index.node)?;
    // A Secret without a namespace is the claim's (kubelet.md 4.8).
    let of = source.checked(index, disk, bound.claim.0.0)?;
    lun::persistent(index, pod, usage, bound, spec, of)
}

/// Returns the volume that a pod itself names.
///
/// # Errors
/// The hold, when its target cannot be what is meant, or its Secret is missing.
pub(super) fn inline(
    index: &Index<'_>,
    pod: &PodView<'_>,
    name: &str,
    source: &ISCSIVolumeSource,
) -> Result<Place, Hold> {
    // Only where the Secret is differs.
    let said = ISCSIPersistentVolumeSource {
        chap_auth_discovery: source.chap_auth_discovery,
        chap_auth_session: source.chap_auth_session,
        fs_type: source.fs_type.clone(),
        initiator_name: source.initiator_name.clone(),
        iqn: source.iqn.clone(),
        iscsi_interface: source.iscsi_interface.clone(),
        lun: source.lun,
        portals: source.portals.clone(),
        read_only: source.read_only,
        secret_ref: source
            .secret_ref
            .as_ref()
            .map(|reference| SecretReference { name: Some(reference.name.clone()), namespace: None }),
        target_portal: source.target_portal.clone(),
    };
    let source = Source { field: format!("{}: volume {name}: iscsi", pod.identity), said: &said };
    let of = source.checked(index, source.disk()?, &pod.identity.namespace)?;
    lun::inline(pod, name, of)
}

impl Source<'_> {
    /// Returns all of it that was checked. `namespace`: of a Secret without one.
    fn checked(&self, index: &Index<'_>, disk: IscsiLun, namespace: &str) -> Result<lun::Source<'_>, Hold> {
        Ok(lun::Source {
            field: &self.field,
            fs_type: self.said.fs_type.as_deref(),
            read_only: self.said.read_only == Some(true),
            disk: Lun::Iscsi(disk),
            secrets: self.passwords(index, namespace)?,
            plugin: Plugin::Iscsi,
        })
    }

    fn disk(&self) -> Result<IscsiLun, Hold> {
        let field = &self.field;
        let portal = |of: String, text: &str| {
            Portal::new(text).map_err(|problem| {
                hold::invalid(
                    format!("{field}.{of} {text:?} {problem}"),
                    "write host:port; an IPv6 address in brackets, and no port for 3260",
                )
            })
        };
        let mut portals = vec![portal("targetPortal".to_owned(), &self.said.target_portal)?];
        for (i, text) in self.said.portals.iter().flatten().enumerate() {
            let one = portal(format!("portals[{i}]"), text)?;
            if !portals.contains(&one) {
                portals.push(one);
            }
        }
        if portals.len() > MOST_PORTALS {
            return Err(hold::invalid(
                format!(
                    "{field}: targetPortal and portals are {} portals, and at most {MOST_PORTALS} are asked",
                    portals.len()
                ),
                "name fewer portals of the target",
            ));
        }
        let iqn = TargetName::new(&self.said.iqn).map_err(|problem| {
            hold::invalid(
                format!("{field}.iqn {:?} {problem}", self.said.iqn),
                "write the target's name, such as iqn.2026-11.com.example:disks",
            )
        })?;
        let lun = u8::try_from(self.said.lun).map_err(|_| {
            hold::invalid(
                format!("{field}.lun {} is not between 0 and 255", self.said.lun),
                "write the LUN's number",
            )
        })?;
        if let Some(interface) = given(self.said.iscsi_interface.as_ref()).filter(|name| *name != "default") {
            return Err(hold::not_supported(
                format!("{field}.iscsiInterface {interface:?}"),
                "remove it: the host's default interface is used, through TCP",
            ));
        }
        if let Some(initiator) = given(self.said.initiator_name.as_ref()) {
            return Err(hold::not_supported(
                format!("{field}.initiatorName {initiator:?}"),
                "remove it, and write the name into /etc/iscsi/initiatorname.iscsi, which the whole host has",
            ));
        }
        let (discovery_chap, session_chap) = self.chap();
        let disk = IscsiLun { portals, iqn, lun, discovery_chap, session_chap };
        if disk.directory().len() > 255 {
            let detail =
                format!("{field}: targetPortal and iqn make a directory's name longer than 255 bytes");
            return Err(hold::invalid(detail, "write the portal's address in place of its name"));
        }
        Ok(disk)
    }

    /// Returns whether discovery and session ask for CHAP.
    fn chap(&self) -> (bool, bool) {
        (self.said.chap_auth_discovery == Some(true), self.said.chap_auth_session == Some(true))
    }

    /// Returns the passwords, and nothing else of the Secret.
    fn passwords(&self, index: &Index<'_>, namespace: &str) -> Result<Arc<SecretMap>, Hold> {
        let field = &self.field;
        let (discovery_chap, session_chap) = self.chap();
        let asked = [
            (discovery_chap, "chapAuthDiscovery", "discovery.sendtargets.auth"),
            (session_chap, "chapAuthSession", "node.session.auth"),
        ];
        let Some((_, first, _)) = asked.iter().find(|(asked, ..)| *asked) else { return Ok(Arc::default()) };
        let secret = self.said.secret_ref.as_ref();
        let Some(name) = secret.and_then(|reference| given(reference.name.as_ref())) else {
            return Err(hold::invalid(
                format!("{field}.{first} is true, and there is no {field}.secretRef"),
                "name a Secret of the type kubernetes.io/iscsi-chap in secretRef",
            ));
        };
        let namespace = secret.and_then(|reference| given(reference.namespace.as_ref())).unwrap_or(namespace);
        let values = secrets::read(index, (namespace.to_owned(), name.to_owned()), field)?;
        let values = values.reveal();
        let mut passwords = std::collections::BTreeMap::new();
        for (_, flag, prefix) in asked.iter().filter(|(asked, ..)| *asked) {
            for (what, needed) in
                [("username", true), ("password", true), ("username_in", false), ("password_in", false)]
            {
                let key = format!("{prefix}.{what}");
                let problem = match values.get(&key) {
                    Some(value) if value.contains(char::is_control) => {
                        "has a control character, such as the end of a line"
                    }
                    Some(value) if !value.is_empty() => {
                        passwords.insert(key, value.clone());
                        continue;
                    }
                    Some(_) | None if needed => "is missing",
                    Some(_) | None => continue,
                };
                return Err(hold::invalid(
                    format!(
                        "Secret {namespace}/{name}: value {key:?} {problem}, and {field}.{flag} needs it"
                    ),
                    format!("write it as data or stringData {key:?} of the Secret, in one line"),
                ));
            }
        }
        Ok(Arc::new(SecretMap::new(passwords)))
    }
}

/// Returns a text that is not left out and not empty, which is the same.
fn given(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|text| !text.is_empty())
}
