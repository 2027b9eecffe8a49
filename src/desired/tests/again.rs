//! A `Resolver` that has seen many readings says of each what one says that sees it first.

use proptest::prelude::*;

use super::*;

/// One object of a world so small that its edits meet: two or three names of each kind, which name each other.
fn object(kind: u8, name: u8, version: u8) -> (&'static str, (String, String), Option<Value>) {
    let of = |kind, namespace: &str, name: String, object: Value| {
        let object = (version > 0).then_some(object);
        (kind, (namespace.to_owned(), name), object)
    };
    let (a, b) = (version % 2, version / 2 % 2);
    match kind {
        0 => {
            let uid = format!("1111111{name}-2222-3333-4444-555555555555");
            let volumes = json!([
                {"name": "a", "persistentVolumeClaim": {"claimName": format!("c{a}")}},
                {"name": "b", "persistentVolumeClaim": {"claimName": format!("c{b}"), "readOnly": true}},
                {"name": "i", "csi": {"driver": "d.example", "nodePublishSecretRef": {"name": "s0"}}}]);
            let mut object = pod(&volumes);
            merge(&mut object, json!({"metadata": {"uid": uid, "name": format!("p{name}")}}));
            of("Pod", "", uid, object)
        }
        1 => {
            let mut object =
                claim(if version == 1 { json!({}) } else { json!({"volumeName": format!("v{b}")}) });
            merge(&mut object, json!({"metadata": {"name": format!("c{name}"), "uid": format!("u{a}")}}));
            of("PersistentVolumeClaim", "default", format!("c{name}"), object)
        }
        2 => {
            let reference = json!({"namespace": "default", "name": format!("c{b}"), "uid": format!("u{a}")});
            let secret = json!({"namespace": "default", "name": format!("s{a}")});
            let mut object = pv(
                &format!("v{name}"),
                json!({"spec": {"csi": {
                "volumeHandle": format!("h{a}"), "nodeStageSecretRef": secret}}}),
            );
            if version.is_multiple_of(3) {
                merge(&mut object, json!({"spec": {"claimRef": reference}}));
            }
            of("PersistentVolume", "", format!("v{name}"), object)
        }
        3 => {
            let object =
                secret(&format!("s{name}"), json!({"stringData": {"key": format!("value-{version}")}}));
            of("Secret", "default", format!("s{name}"), object)
        }
        4 => {
            let modes = if a == 0 { json!(["Persistent"]) } else { json!(["Persistent", "Ephemeral"]) };
            let object = driver(json!({"attachRequired": b == 0, "volumeLifecycleModes": modes}));
            of("CSIDriver", "", "d.example".to_owned(), object)
        }
        _ => {
            let mut object =
                attachment(json!({"spec": {"source": {"persistentVolumeName": format!("v{a}")}},
                "status": {"attached": b == 0}}));
            merge(&mut object, json!({"metadata": {"name": format!("va{name}")}}));
            of("VolumeAttachment", "", format!("va{name}"), object)
        }
    }
}

fn remove(manifests: &mut Manifests, kind: &str, name: &(String, String)) {
    let objects = Arc::make_mut(&mut manifests.objects);
    match kind {
        "Pod" => drop(objects.pods.remove(&PodUid::new(&name.1).unwrap())),
        "PersistentVolumeClaim" => drop(objects.claims.remove(name)),
        "PersistentVolume" => drop(objects.volumes.remove(&name.1)),
        "Secret" => drop(objects.secrets.remove(name)),
        "CSIDriver" => drop(objects.drivers.remove(&name.1)),
        "VolumeAttachment" => drop(objects.attachments.remove(&name.1)),
        other => panic!("no kind {other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_reading_is_resolved_as_if_it_were_the_first(
        edits in prop::collection::vec((0_u8..6, 0_u8..3, 0_u8..8, any::<bool>()), 1..60),
    ) {
        let node = || Node { name: "node-1".to_owned(), ..Node::default() };
        let mut resolver = Resolver::new(node());
        let mut world = World::default();
        for (kind, name, version, stale) in edits {
            let (kind, full_name, object) = object(kind, name, version);
            match object {
                Some(object) if stale => world = world.stale().add(object),
                Some(object) => world = world.add(object),
                None => remove(&mut world.manifests, kind, &full_name),
            }
            let reading = Arc::new(world.manifests.clone());
            let again = resolver.resolve(&reading);
            let first = Resolver::new(node()).resolve(&reading);
            prop_assert_eq!(&again.pods, &first.pods);
            prop_assert_eq!(&again.problems, &first.problems);
        }
    }
}

#[test]
fn what_did_not_change_is_not_looked_up_again() {
    let mut world = World::with_claim();
    let mut resolver = Resolver::new(Node::default());
    let uid = PodUid::new(UID).unwrap();
    let before = resolver.resolve(&Arc::new(world.manifests.clone())).pods[&uid].clone();
    world = world.add(pv("of-others", json!({}))).add(secret("of-others", json!({})));
    let after = resolver.resolve(&Arc::new(world.manifests.clone())).pods[&uid].clone();
    assert!(Arc::ptr_eq(&before, &after));
    world = world.add(pv("pv-1", json!({})));
    let edited = resolver.resolve(&Arc::new(world.manifests.clone())).pods[&uid].clone();
    assert!(!Arc::ptr_eq(&before, &edited));
}
