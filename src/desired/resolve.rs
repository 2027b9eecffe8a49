//! Looks up the volumes of one pod. One volume that cannot be had never stops the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, PersistentVolumeSpec, Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::csi::Bound;
use super::index::Index;
use super::pod::{Place, PodView, Usage};
use super::{
    ResolvedPod, ResolvedVolume, ResolvedWant, claim, csi, fc, hold, iscsi, local, nfs, quantity, source,
};
use crate::manifest::Sourced;
use crate::model::{Hold, Link, LinkState, ObjectRef, PodIdentity, PodUid, Wanted};

/// A volume on its way: what is shown of it, and what it came to.
struct Found {
    claim: Option<ObjectRef>,
    links: Vec<Link>,
    capacity: Option<u64>,
    access_mode: Option<String>,
    place: Result<Place, Hold>,
}

/// Looks the volumes of a pod up.
pub(super) fn pod(index: &Index<'_>, uid: &PodUid, sourced: &Sourced<Pod>) -> ResolvedPod {
    let meta = &sourced.object.metadata;
    let identity = PodIdentity {
        uid: uid.clone(),
        namespace: meta.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned()),
        name: meta.name.clone().unwrap_or_default(),
    };
    let held = hold::stale(&ObjectRef::new("Pod", &identity.namespace, &identity.name), sourced);
    let manifest = Link {
        step: "manifest".to_owned(),
        state: if held.is_some() { LinkState::Failed } else { LinkState::Good },
        detail: sourced.source.to_string(),
    };
    let mut found = BTreeMap::new();
    if let Some(view) = PodView::new(&identity, &sourced.object) {
        let mut declared: BTreeMap<&str, Vec<&Volume>> = BTreeMap::new();
        for volume in view.spec.volumes.iter().flatten() {
            declared.entry(&volume.name).or_default().push(volume);
        }
        for (name, usage) in view.used() {
            let mut volume =
                look_up(index, &view, name, usage, declared.get(name).map_or(&[], Vec::as_slice));
            volume.links.insert(0, manifest.clone());
            if let Some(held) = &held {
                volume.place = Err(held.clone());
            }
            found.insert(name.to_owned(), volume);
        }
    }
    let volumes = merged(&identity, sourced, found);
    let leaving = meta.deletion_timestamp.is_some();
    ResolvedPod { identity, source: sourced.source.clone(), leaving, held, volumes }
}

/// Looks one volume up by the name that containers use.
fn look_up(index: &Index<'_>, pod: &PodView<'_>, name: &str, usage: Usage, declared: &[&Volume]) -> Found {
    let of_pod = |place| Found { claim: None, links: Vec::new(), capacity: None, access_mode: None, place };
    let volume = match declared {
        [volume] => *volume,
        [] => {
            return of_pod(Err(hold::invalid(
                format!("{}: a container uses volume {name}, which spec.volumes does not list", pod.identity),
                format!("add volume {name} to spec.volumes, or remove it from the container"),
            )));
        }
        _ => {
            return of_pod(Err(hold::invalid(
                format!("{}: spec.volumes lists volume {name} twice", pod.identity),
                "give each volume a name of its own",
            )));
        }
    };
    let kinds = source::kinds(volume);
    if let Some(source) = &volume.persistent_volume_claim
        && kinds.len() == 1
    {
        return claimed(index, pod, name, usage, source);
    }
    of_pod(unclaimed(index, pod, name, usage, volume, &kinds))
}

/// Looks a volume up that no claim stands for.
fn unclaimed(
    index: &Index<'_>,
    pod: &PodView<'_>,
    name: &str,
    usage: Usage,
    volume: &Volume,
    kinds: &[&str],
) -> Result<Place, Hold> {
    match kinds {
        // Kubernetes takes this for an emptyDir. Here a misspelt source must not become a directory whose content is lost.
        [] => {
            return Err(hold::invalid(
                format!("{}: volume {name} names no source that is known", pod.identity),
                "write the source, for an empty directory emptyDir: {}",
            ));
        }
        [_] => {}
        several => {
            return Err(hold::invalid(
                format!("{}: volume {name} names several sources: {}", pod.identity, several.join(", ")),
                "leave one source",
            ));
        }
    }
    if usage.device && volume.ephemeral.is_none() {
        return Err(hold::invalid(
            format!("{}: volume {name} is specified in volumeDevices, but is not a claim", pod.identity),
            "use volumeMounts, or a claim of volumeMode Block",
        ));
    }
    if let Some(source) = &volume.csi {
        csi::inline(index, pod, name, source)
    } else if let Some(source) = &volume.empty_dir {
        source::empty_dir(pod, name, source)
    } else if let Some(source) = &volume.host_path {
        source::host_path(pod, name, source)
    } else if let Some(source) = &volume.nfs {
        nfs::inline(pod, name, source)
    } else if let Some(source) = &volume.iscsi {
        iscsi::inline(index, pod, name, source)
    } else if let Some(source) = &volume.fc {
        fc::inline(pod, name, source)
    } else {
        Err(hold::not_supported(
            format!("{}: volume {name}: source {}", pod.identity, kinds.join(", ")),
            "use persistentVolumeClaim, csi, nfs, iscsi, fc, emptyDir or hostPath",
        ))
    }
}

/// Looks a volume up through its claim.
fn claimed(
    index: &Index<'_>,
    pod: &PodView<'_>,
    volume: &str,
    usage: Usage,
    source: &PersistentVolumeClaimVolumeSource,
) -> Found {
    let name = (pod.identity.namespace.as_str(), source.claim_name.as_str());
    let mut found = Found {
        claim: Some(ObjectRef::new("PersistentVolumeClaim", name.0, name.1)),
        links: Vec::new(),
        capacity: None,
        access_mode: None,
        // Replaced below.
        place: Err(hold::invalid("", "")),
    };
    let bound = index.claim(name, &format!("volume {volume} of {}", pod.identity)).and_then(|claim| {
        let spec = claim.spec.as_ref();
        let request = spec.and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"));
        found.capacity = request.and_then(size);
        found.access_mode = spec.and_then(|s| s.access_modes.as_ref()?.first().cloned());
        Ok((claim, claim::bound(index, name, claim)?))
    });
    let (state, detail) = match &bound {
        Ok((_, (pv, _))) => (LinkState::Good, format!("bound to pv {pv}")),
        Err(hold) => (LinkState::Failed, hold.detail.clone()),
    };
    found.links.push(Link { step: "claim".to_owned(), state, detail });
    found.place = bound.and_then(|(claim, (pv, object))| {
        let spec = object.spec.as_ref();
        let capacity = spec.and_then(|s| s.capacity.as_ref()?.get("storage")).and_then(size);
        found.capacity = capacity.or(found.capacity);
        let mode = spec.and_then(|s| s.access_modes.as_ref()?.first().cloned());
        found.access_mode = Some(mode.unwrap_or_else(|| "ReadWriteOnce".to_owned()));
        let read_only = source.read_only.unwrap_or_default();
        let bound = Bound { name: pv, volume: object, claim: (name, claim), read_only };
        let spec = csi::spec_of(pv, object)?;
        persistent(index, pod, &usage, &bound, spec)
    });
    found
}

/// Looks the volume of a PV up by its source.
fn persistent(
    index: &Index<'_>,
    pod: &PodView<'_>,
    usage: &Usage,
    bound: &Bound<'_>,
    spec: &PersistentVolumeSpec,
) -> Result<Place, Hold> {
    let named = [
        ("csi", spec.csi.is_some()),
        ("local", spec.local.is_some()),
        ("nfs", spec.nfs.is_some()),
        ("iscsi", spec.iscsi.is_some()),
        ("fc", spec.fc.is_some()),
    ];
    let named: Vec<&str> = named.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect();
    if named.len() > 1 {
        return Err(hold::invalid(
            format!("PersistentVolume {} names several sources: {}", bound.name, named.join(" and ")),
            "leave one source",
        ));
    }
    if let Some(source) = &spec.local {
        local::persistent(index, pod, usage, bound, spec, source)
    } else if let Some(source) = &spec.nfs {
        nfs::persistent(index, pod, usage, bound, spec, source)
    } else if let Some(source) = &spec.iscsi {
        iscsi::persistent(index, pod, usage, bound, spec, source)
    } else if let Some(source) = &spec.fc {
        fc::persistent(index, pod, usage, bound, spec, source)
    } else {
        csi::persistent(index, pod, usage, bound)
    }
}

/// For lists only; what cannot be read is left out here and reported where sizes matter.
fn size(quantity: &Quantity) -> Option<u64> {
    quantity::bytes(&quantity.0).ok()
}

/// Joins the names that lead to one place, and holds those that would get in each other's way there.
fn merged(
    identity: &PodIdentity,
    sourced: &Sourced<Pod>,
    mut found: BTreeMap<String, Found>,
) -> BTreeMap<String, Box<ResolvedVolume>> {
    let mut names_at = BTreeMap::new();
    for (name, volume) in &found {
        if let Ok(place) = &volume.place {
            names_at.entry(place.id.clone()).or_insert_with(BTreeSet::new).insert(name.clone());
        }
    }
    for names in names_at.values().filter(|n| n.len() > 1) {
        let mut places = names.iter().filter_map(|n| found.get(n)?.place.as_ref().ok());
        let first = places.next();
        let same = places.all(|p| first.is_some_and(|f| f.key == p.key && f.volume == p.volume));
        if !same {
            // Both are held: which of them is there already is not known here.
            let hold = in_the_way(identity, names);
            for name in names {
                if let Some(volume) = found.get_mut(name) {
                    volume.place = Err(hold.clone());
                }
            }
        }
    }
    let resolved = |volume: Found| {
        let want = match volume.place {
            Err(hold) => ResolvedWant::Held(hold),
            Ok(place) => ResolvedWant::Wanted {
                wanted: Arc::new(Wanted {
                    pod: identity.clone(),
                    names: names_at.get(&place.id).cloned().unwrap_or_default(),
                    claim: volume.claim.clone(),
                    manifest: Some(sourced.source.file.clone()),
                    volume: place.volume,
                }),
                key: place.key,
                id: place.id,
            },
        };
        let Found { claim, links, capacity, access_mode, .. } = volume;
        ResolvedVolume { claim, links, capacity, access_mode, want }
    };
    found.into_iter().map(|(name, volume)| (name, Box::new(resolved(volume)))).collect()
}

fn in_the_way(identity: &PodIdentity, names: &BTreeSet<String>) -> Hold {
    let names = names.iter().map(String::as_str).collect::<Vec<_>>().join(" and ");
    hold::invalid(
        format!("{identity}: volumes {names} would be different volumes at one place"),
        "use one readOnly for one claim, and no inline volume with the name of a PersistentVolume",
    )
}
