//! Growth of a volume that several pods or nodes have, and how it is shown while it is under way.

use super::*;

/// A claim that has grown to 2Gi on another node: its controller says that it is finished.
fn grown_elsewhere(modes: &str, annotations: &str) -> String {
    let claim = sized("data", 2, None).replace("[ReadWriteOnce]", modes);
    claim.replace(
        "\nmetadata: {name: data}\nspec:\n  accessModes",
        &format!("\nmetadata: {{name: data, annotations: {{{annotations}}}}}\nspec:\n  accessModes"),
    ) + "status: {capacity: {storage: 2Gi}, allocatedResources: {storage: 2Gi}}\n"
}

#[test]
fn a_volume_of_many_writers_that_grew_elsewhere_grows_once_on_this_node() {
    const RWX: &str = "[ReadWriteMany]";
    let enough = "volume.kubernetes.io/node-expansion-not-required: \"\"";
    let once = [2 * GI];
    // Modes, annotations, whether the pod only reads, whether the driver can; what is asked.
    let cases: [(&str, &str, bool, bool, &[u64]); 7] = [
        (RWX, "", false, true, &once),
        ("[ReadOnlyMany, ReadWriteMany]", "", false, true, &once),
        (RWX, enough, false, true, &[]),
        (RWX, "", true, true, &[]),
        (RWX, "", false, false, &[]),
        ("[ReadOnlyMany]", "", false, true, &[]),
        ("[ReadWriteOnce]", "", false, true, &[]),
    ];
    for (modes, annotations, read_only, expand, expected) in cases {
        let what = format!("{modes} {annotations} {read_only} {expand}");
        let host = TestHost::new();
        let _driver = host.fakecsi(if expand { &["--expand"] } else { &[] });
        let daemon = host.volumed(&[]);
        let pod = pod_using("web", "uid-web", "data");
        let pod = pod.replace("claimName: data", &format!("claimName: data, readOnly: {read_only}"));
        host.manifest("claim.yaml", &grown_elsewhere(modes, annotations));
        host.manifest("web.yaml", &pod);
        host.wait(&["pod/web"]);
        assert_eq!(asked(&host), expected, "{what}");
        // Not for a second pod, nor after a restart, nor when it comes up again.
        host.manifest("more.yaml", &pod.replace("web", "more"));
        host.wait(&["pod/more"]);
        daemon.kill();
        let _daemon = host.volumed(&[]);
        host.remove_manifest("web.yaml");
        host.remove_manifest("more.yaml");
        host.wait(&["--for=released", "pod/web", "pod/more"]);
        assert_released(&host);
        host.manifest("web.yaml", &pod);
        host.wait(&["pod/web"]);
        assert_eq!(asked(&host), expected, "{what}: again");
    }
}

#[test]
fn a_volume_with_a_reader_and_a_writer_grows_for_the_writer() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    let _daemon = host.volumed(&[]);
    let claim = |size| sized("data", size, None).replace("ReadWriteOnce", "ReadWriteMany");
    host.manifest("claim.yaml", &claim(1));
    let reads = pod_using("reads", "uid-reads", "data");
    host.manifest("reads.yaml", &reads.replace("claimName: data", "claimName: data, readOnly: true"));
    host.wait(&["pod/reads"]);
    host.manifest("claim.yaml", &claim(2));
    drift::two_readings(&host);
    assert_eq!(asked(&host), Vec::<u64>::new());
    host.manifest("writes.yaml", &pod_using("writes", "uid-writes", "data"));
    host.wait(&["pod/writes"]);
    until_grown(&host, 2 * GI);
    let calls = host.calls(&["NodeExpandVolume"]);
    let [(_, request)] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!(request["volume_path"], json!(host.target("uid-writes", "data")));
    assert_eq!(request["volume_capability"]["access_mode"], 5, "{request}");
}

#[test]
fn a_growth_under_way_is_shown_with_its_size() {
    let host = TestHost::new();
    let driver = host.fakecsi(&["--expand"]);
    let _daemon = host.volumed(&[]);
    host.manifest("claim.yaml", &sized("data", 1, None));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    host.faults(&json!([{"method": "NodeExpandVolume", "action": "hang"}]));
    host.manifest("claim.yaml", &sized("data", 2, None));
    until("it is asked to grow", || asked(&host) == [2 * GI]);
    let shown = |command: &[&str]| String::from_utf8_lossy(&host.volumectl(command).stdout).into_owned();
    until("it grows", || shown(&["list"]).contains("growing to 2Gi"));
    for command in [&["list"][..], &["status", "pod/web"], &["explain", "pod/web"]] {
        assert!(shown(command).contains("growing to 2Gi"), "{command:?}: {}", shown(command));
    }
    let running = &volumes(&host)[0]["running"];
    assert_eq!((&running["step"], running["since_ms"].is_i64()), (&json!("expand"), true), "{running}");
    // The pod has it all the while.
    host.wait(&["pod/web"]);
    driver.kill();
    host.faults(&json!([]));
    let _driver = host.fakecsi(&["--expand"]);
    until_grown(&host, 2 * GI);
    until("it is shown as good", || volumes(&host)[0]["state"] == "good");
    assert!(!shown(&["list"]).contains("growing"), "{}", shown(&["list"]));
}
