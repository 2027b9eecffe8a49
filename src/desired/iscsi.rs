//! iSCSI volumes: a disk of a target, named by a PersistentVolume or by the pod itself (kubelet.md 4.8).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ISCSIPersistentVolumeSource, ISCSIVolumeSource, PersistentVolumeSpec};

use super::csi::Bound;
use super::index::Index;
use super::pod::{Place, PodView, Usage};
use super::{affinity, hold, lun, secrets};
use crate::model::{DiskSource, Hold, IscsiLun, Lun, Plugin, Portal, SecretMap, TargetName};

/// How many portals a target may have: all are asked at once.
const MOST_PORTALS: usize = 16;

/// What both kinds of sources say.
struct Source<'a> {
    /// "PersistentVolume x: spec.iscsi"
    field: String,
    target_portal: &'a str,
    portals: Option<&'a [String]>,
    iqn: &'a str,
    lun: i32,
    interface: Option<&'a str>,
    initiator: Option<&'a str>,
    discovery_chap: bool,
    session_chap: bool,
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
    let name = bound.name;
    let said = Source {
        field: format!("PersistentVolume {name}: spec.iscsi"),
        target_portal: &source.target_portal,
        portals: source.portals.as_deref(),
        iqn: &source.iqn,
        lun: source.lun,
        interface: source.iscsi_interface.as_deref(),
        initiator: source.initiator_name.as_deref(),
        discovery_chap: source.chap_auth_discovery == Some(true),
        session_chap: source.chap_auth_session == Some(true),
    };
    let disk = said.disk()?;
    affinity::check(name, spec, index.node)?;
    let secret = source.secret_ref.as_ref().map(|reference| {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        // A Secret without a namespace is the claim's (kubelet.md 4.8).
        let namespace = given(&reference.namespace).unwrap_or_else(|| bound.claim.0.0.to_owned());
        (namespace, given(&reference.name))
    });
    let passwords = said.passwords(index, secret)?;
    let of = lun::Source {
        field: &said.field,
        fs_type: source.fs_type.as_deref(),
        read_only: source.read_only == Some(true),
        disk: DiskSource::Lun(Lun::Iscsi(disk)),
        secrets: passwords,
        plugin: Plugin::Iscsi,
    };
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
    let said = Source {
        field: format!("{}: volume {name}: iscsi", pod.identity),
        target_portal: &source.target_portal,
        portals: source.portals.as_deref(),
        iqn: &source.iqn,
        lun: source.lun,
        interface: source.iscsi_interface.as_deref(),
        initiator: source.initiator_name.as_deref(),
        discovery_chap: source.chap_auth_discovery == Some(true),
        session_chap: source.chap_auth_session == Some(true),
    };
    let disk = said.disk()?;
    let secret = source.secret_ref.as_ref().map(|reference| {
        (pod.identity.namespace.clone(), Some(reference.name.clone()).filter(|name| !name.is_empty()))
    });
    let passwords = said.passwords(index, secret)?;
    let of = lun::Source {
        field: &said.field,
        fs_type: source.fs_type.as_deref(),
        read_only: source.read_only == Some(true),
        disk: DiskSource::Lun(Lun::Iscsi(disk)),
        secrets: passwords,
        plugin: Plugin::Iscsi,
    };
    lun::inline(pod, name, of)
}

impl Source<'_> {
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
        let mut portals = vec![portal("targetPortal".to_owned(), self.target_portal)?];
        for (i, text) in self.portals.into_iter().flatten().enumerate() {
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
        let iqn = TargetName::new(self.iqn).map_err(|problem| {
            hold::invalid(
                format!("{field}.iqn {:?} {problem}", self.iqn),
                "write the target's name, such as iqn.2026-11.com.example:disks",
            )
        })?;
        let lun = u8::try_from(self.lun).map_err(|_| {
            hold::invalid(
                format!("{field}.lun {} is not between 0 and 255", self.lun),
                "write the LUN's number",
            )
        })?;
        if let Some(interface) = self.interface.filter(|name| !name.is_empty() && *name != "default") {
            return Err(hold::not_supported(
                format!("{field}.iscsiInterface {interface:?}"),
                "remove it: the host's default interface is used, through TCP",
            ));
        }
        if let Some(initiator) = self.initiator.filter(|name| !name.is_empty()) {
            return Err(hold::not_supported(
                format!("{field}.initiatorName {initiator:?}"),
                "remove it, and write the name into /etc/iscsi/initiatorname.iscsi, which the whole host has",
            ));
        }
        let (discovery_chap, session_chap) = (self.discovery_chap, self.session_chap);
        let disk = IscsiLun { portals, iqn, lun, discovery_chap, session_chap };
        if disk.directory().len() > 255 {
            let detail =
                format!("{field}: targetPortal and iqn make a directory's name longer than 255 bytes");
            return Err(hold::invalid(detail, "write the portal's address in place of its name"));
        }
        Ok(disk)
    }

    /// Returns the passwords, and nothing else of the Secret.
    fn passwords(
        &self,
        index: &Index<'_>,
        secret: Option<(String, Option<String>)>,
    ) -> Result<Arc<SecretMap>, Hold> {
        let field = &self.field;
        let asked = [
            (self.discovery_chap, "chapAuthDiscovery", "discovery.sendtargets.auth"),
            (self.session_chap, "chapAuthSession", "node.session.auth"),
        ];
        let Some((_, first, _)) = asked.iter().find(|(asked, ..)| *asked) else { return Ok(Arc::default()) };
        let Some((namespace, Some(name))) = secret else {
            return Err(hold::invalid(
                format!("{field}.{first} is true, and there is no {field}.secretRef"),
                "name a Secret of the type kubernetes.io/iscsi-chap in secretRef",
            ));
        };
        let values = secrets::read(index, (namespace.clone(), name.clone()), field)?;
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
