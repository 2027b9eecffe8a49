//! The bundled driver's directories (`backing: directory`) on real project quotas, which most hosts of tests do not have in their
//! kernels: ext4 and xfs in a machine. A pod's writer meets the limit, his neighbour and the host do not; he goes on when it is
//! raised; copies are whole; the driver dies at every point of what it does; and it works by the older of the two system calls too.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

mod vm;

use std::fs;
use std::process::Command;
use std::time::Duration;

use vm::Machine;
use vm::host::{MIB, pod, target};
use vm::load::{mount_of, total_of};

/// Where the driver's file system is.
const AT: &str = "/var/lib/volumed-csi-loop";

/// The first of the driver's projects.
const FIRST: u32 = 1_000_000_000;

/// Who writes in the pods.
const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";

#[test]
fn directories_on_ext4_are_limited() {
    directories_are_limited("directories_on_ext4_are_limited", "ext4");
}

#[test]
fn directories_on_xfs_are_limited() {
    directories_are_limited("directories_on_xfs_are_limited", "xfs");
}

#[test]
fn directories_on_ext4_are_whole_whatever_dies() {
    they_are_whole_whatever_dies("directories_on_ext4_are_whole_whatever_dies", "ext4");
}

#[test]
fn directories_on_xfs_are_whole_whatever_dies() {
    they_are_whole_whatever_dies("directories_on_xfs_are_whole_whatever_dies", "xfs");
}

#[test]
fn csi_sanity_passes_with_directories_on_ext4() {
    csi_sanity_passes("csi_sanity_passes_with_directories_on_ext4", "ext4");
}

#[test]
fn csi_sanity_passes_with_directories_on_xfs() {
    csi_sanity_passes("csi_sanity_passes_with_directories_on_xfs", "xfs");
}

fn directories_are_limited(test: &str, fs_type: &str) {
    let Some(mut machine) = Machine::resume(test) else { return };
    machine.add_disk("data", 2 << 30);
    without_quotas_they_are_refused(&mut machine, fs_type);
    a_writer_meets_the_limit_and_nobody_else(&mut machine, fs_type);
    a_writer_goes_on_in_a_larger_one(&mut machine);
    a_restart_changes_nothing(&mut machine);
    a_copy_is_whole_and_of_what_nobody_writes(&mut machine);
    they_go_and_nothing_else(&mut machine);
    they_can_be_a_pod_s_own(&mut machine);
}

fn they_are_whole_whatever_dies(test: &str, fs_type: &str) {
    let Some(mut machine) = Machine::resume(test) else { return };
    with_quotas(&mut machine, fs_type);
    they_are_made_grown_and_deleted_once_whatever_dies(&mut machine);
    the_older_system_call_does_as_well(&mut machine);
}

/// A file system that limits projects, and in it somebody else's with the very number that would be taken first.
fn with_quotas(machine: &mut Machine, fs_type: &str) {
    machine.add_disk("data", 2 << 30);
    let features = if fs_type == "ext4" { "-O project,quota" } else { "" };
    machine.sh(&format!(
        "mkdir -p {AT}; mkfs.{fs_type} -q {features} /dev/disk/by-id/virtio-data
         mount -o prjquota /dev/disk/by-id/virtio-data {AT}
         mkdir {AT}/foreign; chattr -p {FIRST} {AT}/foreign"
    ));
}

/// Makes a volume and gives volumed what it prints, with a claim for it.
fn create(machine: &mut Machine, name: &str, mebibytes: u64) {
    machine.sh(&format!(
        "volumed-csi-loop volume create {name} --size {mebibytes}Mi --backing directory >/run/{name}.yaml
         cat >>/run/{name}.yaml <<'CLAIM'
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec: {{accessModes: [ReadWriteOnce], storageClassName: '', volumeName: {name}, resources: {{requests: {{storage: 1Mi}}}}}}
CLAIM
         mv /run/{name}.yaml /etc/volumed/manifests/.{name}.yaml
         mv /etc/volumed/manifests/.{name}.yaml /etc/volumed/manifests/{name}.yaml"
    ));
}

/// A script that has to fail, and to say this.
fn refused(script: &str, words: &str) -> String {
    format!("! {{ {script}; }} >/run/said 2>&1; cat /run/said; grep -qF -- '{words}' /run/said")
}

fn without_quotas_they_are_refused(machine: &mut Machine, fs_type: &str) {
    let (make, counted) = match fs_type {
        "ext4" => ("mkfs.ext4 -q", "tune2fs -O project,quota"),
        _ => ("mkfs.xfs -q", "mount it with -o prjquota"),
    };
    machine.sh(&format!(
        "mkdir -p {AT}; {make} /dev/disk/by-id/virtio-data; mount /dev/disk/by-id/virtio-data {AT}"
    ));
    machine.start_services();
    let create = "volumed-csi-loop volume create no --size 8Mi --backing directory";
    machine.sh(&refused(create, counted));
    machine.sh("systemctl stop volumed-csi-loop");
    if fs_type == "ext4" {
        machine.sh(&format!(
            "umount {AT}; tune2fs -O project,quota /dev/disk/by-id/virtio-data; mount /dev/disk/by-id/virtio-data {AT}
             systemctl start volumed-csi-loop"
        ));
        // It counts, and does not limit.
        machine.sh(&refused(create, "mount it with -o prjquota"));
        machine.sh("systemctl stop volumed-csi-loop");
    }
    machine.sh(&format!(
        "umount {AT}; mount -o prjquota /dev/disk/by-id/virtio-data {AT}
         # Somebody else's, with the very number that would be taken next.
         mkdir {AT}/foreign; chattr -p {FIRST} {AT}/foreign; systemctl start volumed-csi-loop"
    ));
    machine.driver_is_ready();
    machine.sh(&refused(&format!("{create} --fs btrfs"), &format!("directory, {fs_type}, not btrfs")));
    machine.sh(&refused(&format!("{create} --allocation thick"), "allocation: thick is for images"));
    machine
        .sh(&refused("volumed-csi-loop volume create no --size 8Mi --backing directory --block", "--block"));
}

fn a_writer_meets_the_limit_and_nobody_else(machine: &mut Machine, fs_type: &str) {
    create(machine, "a", 32);
    create(machine, "b", 32);
    machine.manifest("web", &pod("web", &["a", "b"]));
    let reader = pod("reader", &["a"]).replace("{claimName: a}", "{claimName: a, readOnly: true}");
    machine.manifest("reader", &reader);
    machine.wait_for_pods(&["web", "reader"]);
    let (a, b, read) = (target("web", "a"), target("web", "b"), target("reader", "a"));
    let meta = format!("{AT}/loop.csi.volumed.io/volumes");
    machine.sh(&format!("jq .project {meta}/a/meta.json | grep -qx {}", FIRST + 1));
    machine.sh(&format!("jq .project {meta}/b/meta.json | grep -qx {}", FIRST + 2));
    // What statfs tells is the volume's, for whoever asks how full it is.
    for path in [&a, &b, &read] {
        assert_eq!(total_of(machine, path), 32 * MIB, "{path}");
    }
    machine.sh("volumed-csi-loop volume list | tee /dev/stderr | grep -E ' a +32Mi +directory +- +well'");
    let full = if fs_type == "xfs" { "No space left" } else { "quota exceeded" };
    // The paths above are for root; whoever is in a pod sees only what is mounted.
    machine.sh(&format!(
        "chown 65534:65534 {a} {b}; cd {a}
         {NOBODY} mkdir below
         {}
         size=$(stat --format=%s below/file); echo $size
         ((size > 30 * {MIB} && size <= 32 * {MIB}))
         (cd {b}; {NOBODY} dd if=/dev/zero of=file bs=1M count=16 conv=fsync status=none)
         dd if=/dev/zero of={AT}/foreign/file bs=1M count=64 conv=fsync status=none
         {}",
        refused(&format!("{NOBODY} dd if=/dev/zero of=below/file bs=64k conv=fsync status=none"), full),
        // Nothing gets out of it by a link.
        refused(&format!("ln below/file {AT}/foreign/out"), "ross-device"),
    ));
    let why = machine.sh(&format!("! touch {read}/no 2>&1"));
    assert!(why.contains("Read-only"), "{why}");
    // Not even the superuser writes more on xfs; on ext4 he does, as the manual says.
    let more = format!("dd if=/dev/zero of={a}/more bs=1M count=4 conv=fsync status=none");
    machine.sh(&if fs_type == "xfs" { refused(&more, full) } else { more });
    machine.sh(&format!("rm -f {a}/more"));
}

fn a_writer_goes_on_in_a_larger_one(machine: &mut Machine) {
    let a = target("web", "a");
    let mount = mount_of(machine, &a);
    machine.put(
        "/run/waiting",
        format!(
            "#!/bin/bash
cd {a}; head --bytes=8M /dev/urandom >/run/block
until {NOBODY} dd if=/run/block of=late bs=64k conv=fsync status=none; do touch /run/refused; sleep 0.1; done
cmp /run/block late && touch /run/written
"
        ),
    );
    machine.sh("systemd-run --quiet --unit=waiting bash /run/waiting");
    machine.until("he is refused", "[[ -e /run/refused ]]");
    machine.resize_volume("a", 64);
    machine.until("he goes on", "[[ -e /run/written ]]");
    assert_eq!(total_of(machine, &a), 64 * MIB);
    assert_eq!(mount_of(machine, &a), mount, "it was never mounted anew");
    let told = machine.sh("volumectl status pod/web; volumed-csi-loop volume list");
    assert!(!told.contains("blocked") && told.contains("64Mi"), "{told}");
}

fn a_restart_changes_nothing(machine: &mut Machine) {
    let a = target("web", "a");
    let mount = mount_of(machine, &a);
    machine.sh("systemctl kill --signal=KILL volumed-csi-loop volumed");
    machine.until("both are back", "systemctl is-active volumed volumed-csi-loop; volumectl list");
    machine.driver_is_ready();
    machine.wait_for_pods(&["web", "reader"]);
    assert_eq!((total_of(machine, &a), mount_of(machine, &a)), (64 * MIB, mount));
    machine.sh("volumed-csi-loop volume list | tee /dev/stderr | grep -E ' a .* well'");
}

fn a_copy_is_whole_and_of_what_nobody_writes(machine: &mut Machine) {
    create(machine, "c", 16);
    machine.manifest("copied", &pod("copied", &["c"]));
    machine.wait_for_pods(&["copied"]);
    let c = target("copied", "c");
    machine.sh(&format!(
        "cd {c}; mkdir -p d/e; chmod 2750 d; chown 65534:12 d/e
         head --bytes=3M /dev/urandom >d/file; chmod 4711 d/file; touch --date=@1000000 d/file; ln d/file d/linked
         ln -s /etc/passwd d/away; truncate --size=64M d/sparse; echo x >>d/sparse; mkfifo d/pipe"
    ));
    machine.sh(&refused("volumed-csi-loop volume snapshot c early", "while pods write to it"));
    machine.remove_manifests(&["copied"]);
    machine.wait_until_released(&["copied"]);
    machine.sh("volumed-csi-loop volume snapshot c monday
         volumed-csi-loop volume create again --from-snapshot monday -o name
         volumed-csi-loop volume create twin --from-volume c --size 24Mi -o name");
    let files =
        "find . -printf '%P %y %m %U:%G %s %T@ %n %l\\n' | sort; find . -type f -exec sha256sum {} + | sort";
    machine.sh(&format!(
        "cd {AT}/loop.csi.volumed.io/volumes
         for of in c again twin; do (cd $of/data && {{ {files}; }} >/run/files-$of); done
         cmp /run/files-c /run/files-again; cmp /run/files-c /run/files-twin; grep -q 'd/file f 4711 0:0' /run/files-c
         for of in again twin; do lsattr -pd $of/data; jq .content,.project,.bytes $of/meta.json; done
         echo $(($(stat -f -c '%b * %S' twin/data))) | grep -qx {}
         (($(du --apparent-size -sm twin/data | cut -f1) > 60 && $(du -sm twin/data | cut -f1) < 8))",
        24 * MIB
    ));
    machine.sh("volumed-csi-loop snapshot delete monday
         for of in again twin; do volumed-csi-loop volume delete $of; done");
}

fn they_go_and_nothing_else(machine: &mut Machine) {
    let data = format!("{AT}/loop.csi.volumed.io/volumes/c/data");
    machine.sh(&refused("volumed-csi-loop volume delete a", "is in use, shown at"));
    // Somebody in a mount namespace of his own has it, which no table of ours shows.
    machine.sh(&format!(
        "systemd-run --quiet --unit=other unshare --mount --propagation private bash -c \\
           'mount --bind {data} /mnt; touch /run/other; exec sleep 1000'
         until [[ -e /run/other ]]; do sleep 0.1; done
         {}
         systemctl stop other; test -e {data}/d/file
         volumed-csi-loop volume delete c; test -e /etc/passwd",
        refused("volumed-csi-loop volume delete c", "in the mount namespace of")
    ));
    machine.remove_manifests(&["web", "reader"]);
    machine.wait_until_released(&["web", "reader"]);
    machine.remove_manifests(&["a", "b", "c"]);
    machine.sh(&format!(
        "volumed-csi-loop volume delete a; volumed-csi-loop volume delete b
         test -z \"$(ls {AT}/loop.csi.volumed.io/volumes)\"; test -e {AT}/foreign/file"
    ));
    machine.nothing_is_left();
}

/// A driver of its own, so that dying is nobody else's matter.
const DIES: &str = r#"
    dir=/var/lib/volumed-csi-loop/dies socket=/run/dies.sock
    start() { # POINT
      VOLUMED_TEST_FAULT=$1 volumed-csi-loop --name dies.example.com --dir $dir --endpoint $socket --node-id n >>/run/dies.log 2>&1 &
      driver=$!
      until volumed-csi-loop volume list --driver-socket $socket >/run/list 2>&1; do
        kill -0 $driver || { tail /run/dies.log; exit 1; }
        sleep 0.05
      done
    }
    stop() { kill -KILL $driver; wait $driver || true; }
    ask() { volumed-csi-loop "$@" --driver-socket $socket -o name; }
    dies_at() { # POINT COMMAND...: it dies there, and the repeated command succeeds.
      local point=$1; shift
      stop; start $point
      if ask "$@"; then echo "$point was never reached"; exit 1; fi
      wait $driver && exit 1
      start none
      ask "$@" || { echo "$point: repeated"; exit 1; }
    }
    limit() { echo $(($(stat -f -c '%b * %S' $dir/volumes/v/data))); }
    is_free() { # The number would not be taken again if it had a limit or a file. xfs counts late unless it is frozen.
      fsfreeze -f $dir; fsfreeze -u $dir
      test -z "$(ls $dir/volumes)$(ls $dir/snapshots)" || { ls $dir/*; exit 1; }
    }
    start none
    make="volume create v --size 8Mi --backing directory"
"#;

fn they_are_made_grown_and_deleted_once_whatever_dies(machine: &mut Machine) {
    let next = FIRST + 1;
    lasts(machine, &format!(
        "{DIES}
         for point in create:intent create:directory create:project create:image create:format create:outcome; do
           echo $SECONDS s, $point; dies_at $point $make
           jq .project $dir/volumes/v/meta.json | grep -qx {next} || {{ echo $point; cat $dir/volumes/v/meta.json; exit 1; }}
           test $(limit) = $((8 * {MIB}))
           ask volume delete v; is_free
         done
         stop"
    ));
    lasts(
        machine,
        &format!(
            "{DIES}
         # Nobody asks again: what was begun is gone after the start.
         for point in create:project create:format; do
           stop; start $point; ! ask $make; wait $driver || true; start none; is_free
         done
         ask $make
         size=8
         for point in grow:intent grow:image grow:outcome; do
           size=$((size + 8))
           dies_at $point volume resize v --size ${{size}}Mi
           test $(limit) = $((size * {MIB}))
         done
         # Nobody asks again: it has the size that the kernel keeps it to.
         stop; start grow:image; ! ask volume resize v --size 64Mi; wait $driver || true; start none
         test $(limit) = $(jq .bytes $dir/volumes/v/meta.json)
         head --bytes=1M /dev/urandom >$dir/volumes/v/data/file
         for point in snapshot:intent snapshot:image snapshot:outcome; do
           dies_at $point volume snapshot v s
           cmp $dir/volumes/v/data/file $dir/snapshots/s/data/file
           ask snapshot delete s
         done
         ask volume snapshot v s
         dies_at create:image volume create w --from-snapshot s --backing directory
         cmp $dir/volumes/v/data/file $dir/volumes/w/data/file
         ask volume delete w
         for point in delete:intent delete:data delete:outcome; do
           # The start finishes it; asked again it is not there.
           stop; start $point; if ask volume delete v; then exit 1; fi
           wait $driver && exit 1
           start none
           test ! -e $dir/volumes/v; fsfreeze -f $dir; fsfreeze -u $dir
           ask volume create v --from-snapshot s
           jq .project $dir/volumes/v/meta.json | grep -qx {next}
         done
         ask volume delete v; ask snapshot delete s; is_free; stop"
        ),
    );
}

/// Runs a script that starts many programs, one after the other.
fn lasts(machine: &mut Machine, script: &str) {
    let ran = machine.run(script, Duration::from_secs(600));
    assert_eq!(ran.status, 0, "{script}\n--- it said:\n{}", ran.output);
    println!("{}", ran.output);
}

fn the_older_system_call_does_as_well(machine: &mut Machine) {
    let start = |filter: &str| {
        format!(
            "systemctl stop older 2>/dev/null || true; systemctl reset-failed older 2>/dev/null || true
             systemd-run --quiet --unit=older --property='SystemCallFilter={filter}' volumed-csi-loop \
               --name dies.example.com --dir {AT}/dies --endpoint /run/dies.sock --node-id n
             until volumed-csi-loop volume list --driver-socket /run/dies.sock; do sleep 0.1; done"
        )
    };
    let create = "volumed-csi-loop volume create v --size 8Mi --backing directory --driver-socket /run/dies.sock -o name";
    machine.sh(&format!(
        "{}
         {create}; test $(($(stat -f -c '%b * %S' {AT}/dies/volumes/v/data))) = $((8 * {MIB}))
         volumed-csi-loop volume list --driver-socket /run/dies.sock | grep -w well
         volumed-csi-loop volume delete v --driver-socket /run/dies.sock",
        start("~quotactl_fd:ENOSYS")
    ));
    // With neither there are no quotas: the filter does what it says.
    machine.sh(&format!(
        "{}
         {}
         systemctl stop older",
        start("~quotactl_fd:ENOSYS quotactl:ENOSYS"),
        refused(create, "-o prjquota")
    ));
}

fn they_can_be_a_pod_s_own(machine: &mut Machine) {
    let manifest = "apiVersion: v1
kind: Pod
metadata: {name: own, uid: uid-own}
spec:
  containers: [{name: main, image: none, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, csi: {driver: loop.csi.volumed.io, volumeAttributes: {size: 8Mi, backing: directory}}}]
";
    machine.manifest("own", manifest);
    machine.wait_for_pods(&["own"]);
    let path = target("own", "data");
    assert_eq!(total_of(machine, &path), 8 * MIB);
    machine.sh(&format!(
        "echo x >{path}/file; volumed-csi-loop volume list | grep -E '8Mi +directory +inline +well'"
    ));
    machine.remove_manifests(&["own"]);
    machine.wait_until_released(&["own"]);
    machine.sh(&format!("test -z \"$(ls {AT}/loop.csi.volumed.io/volumes)\""));
    machine.nothing_is_left();
}

/// How many specs of the suite have to pass: as many as with images (`drivers_loop_sanity.rs`).
const PASSED: usize = 83;

fn csi_sanity_passes(test: &str, fs_type: &str) {
    const SANITY: &str = "VOLUMED_TEST_CSI_SANITY";
    let Some(program) = std::env::var_os(SANITY) else {
        println!("NOT-RUN: {test}: {SANITY} is not set; scripts/test vm makes the program and sets it");
        return;
    };
    let Some(mut machine) = Machine::resume(test) else { return };
    with_quotas(&mut machine, fs_type);
    let directory = tempfile::tempdir().expect("a directory");
    let (tree, disk) = (directory.path().join("tree"), directory.path().join("disk"));
    fs::create_dir(&tree).expect("a directory");
    fs::copy(program, tree.join("csi-sanity")).expect("the program is copied");
    fs::File::create(&disk).and_then(|file| file.set_len(64 << 20)).expect("a disk");
    let made = Command::new("mkfs.ext4").args(["-q", "-d"]).args([&tree, &disk]).status();
    assert!(made.expect("mkfs.ext4 can be run").success());
    machine.add_kept_disk("sanity", &disk);
    machine.put("/run/class.yaml", "backing: directory\ncsi.storage.k8s.io/pvc/name: claim\n");
    let size = 8 * MIB;
    let ran = machine.run(
        &format!(
            "# csi-sanity
             mkdir /run/sanity; mount -o ro /dev/disk/by-id/virtio-sanity /run/sanity
             volumed-csi-loop --name s.example.com --dir {AT}/s --endpoint /run/s.sock --node-id n >/run/s.log 2>&1 &
             until [[ -S /run/s.sock ]]; do sleep 0.1; done
             /run/sanity/csi-sanity -csi.endpoint=/run/s.sock -csi.mountdir=/run/s-mount -csi.stagingdir=/run/s-stage \
               -csi.testvolumesize={size} -csi.testvolumeexpandsize={} -csi.testvolumeparameters=/run/class.yaml \
               -ginkgo.json-report=/run/report.json -ginkgo.no-color >/run/sanity.log 2>&1 ||
               {{ tail -150 /run/sanity.log; tail -30 /run/s.log; exit 1; }}
             kill $!; ! wait $!
             test -z \"$(ls {AT}/s/volumes)$(ls {AT}/s/snapshots)$(grep /run/s- /proc/self/mountinfo)\"
             test -e {AT}/foreign
             jq '[.[0].SpecReports[] | select(.LeafNodeType == \"It\") | .State] | group_by(.) | map({{(.[0]): length}}) | add' \
               /run/report.json | tee /run/states
             test $(jq .passed /run/states) = {PASSED}",
            2 * size
        ),
        Duration::from_secs(600),
    );
    assert_eq!(ran.status, 0, "{}", ran.output);
}
