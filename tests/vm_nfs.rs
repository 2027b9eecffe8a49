//! NFS volumes with real clients and servers, in one machine: its own kernel's server, and another one in a network namespace
//! and under a host name of its own, so that the client takes it for another machine. That one dies by losing its address: what is
//! sent to it goes nowhere.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test: it takes times and tells figures"
)]

mod vm;

use std::time::Instant;

use vm::Machine;
use vm::host::named;

/// The machine's own server, the one that dies, and an address where nobody ever answers.
const ALIVE: &str = "10.9.0.1";
const MORTAL: &str = "10.8.0.2";
const DEAD: &str = "10.9.0.66";

/// Makes the machine's own server. The rest of 10.9.0.0/24 leads into a device that drops everything.
const SERVER: &str = "
    modprobe dummy; modprobe nfsd
    ip link add void type dummy; ip link set void up; ip route add 10.9.0.0/24 dev void
    ip addr add 10.9.0.1/32 dev lo; ip -6 addr add fd00:9::1/128 dev lo
    mkdir -p /srv/a /srv/b /srv/m
    echo '/srv *(rw,no_root_squash,insecure,no_subtree_check)' >/etc/exports
    systemctl start rpcbind
    mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
    echo 10 >/proc/fs/nfsd/nfsv4leasetime; echo 10 >/proc/fs/nfsd/nfsv4gracetime
    exportfs -ra; rpc.mountd; rpc.nfsd 4
    echo Y >/proc/fs/nfsd/v4_end_grace";

/// Makes the other server. Its machine is known by its hardware address, so that packets go there when it says nothing.
const OTHER: &str = "
    modprobe nfsd; mkdir -p /srv/m
    ip netns add other
    ip link add o0 type veth peer name o1 netns other
    ip addr add 10.8.0.1/24 dev o0; ip link set o0 up
    ip netns exec other ip link set o1 up; ip netns exec other ip link set lo up
    ip netns exec other ip addr add 10.8.0.2/24 dev o1
    ip neigh replace 10.8.0.2 dev o0 nud permanent lladdr $(ip netns exec other cat /sys/class/net/o1/address)
    ip netns exec other unshare --uts bash -euc '
      hostname other
      mount -t nfsd nfsd /proc/fs/nfsd
      echo 10 >/proc/fs/nfsd/nfsv4leasetime; echo 10 >/proc/fs/nfsd/nfsv4gracetime
      rpc.mountd -N 3; rpc.nfsd -N 3 -V 4 2'";

const DIES: &str = "ip netns exec other ip addr del 10.8.0.2/24 dev o1";
const COMES_BACK: &str = "ip netns exec other ip addr add 10.8.0.2/24 dev o1";

/// Writes and syncs one line after the other, each noted elsewhere once it is synced.
const WRITER: &str = r#"#!/bin/bash
number=0
while [[ ! -e /run/stop ]]; do
  number=$((number + 1))
  echo "line $number" | dd of="$1/lines" oflag=append conv=notrunc,fsync status=none || exit 1
  echo "line $number" >>/run/synced
  sleep 0.1
done
"#;

/// A PersistentVolume and its claim.
fn volume(name: &str, server: &str, path: &str, options: &str) -> String {
    format!(
        "apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteMany]
  mountOptions: [{options}]
  nfs: {{server: '{server}', path: {path}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec: {{accessModes: [ReadWriteMany], volumeName: {name}, storageClassName: '', resources: {{requests: {{storage: 1Gi}}}}}}
---
"
    )
}

/// A pod whose volume `data` has this source.
fn pod(name: &str, source: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, uid: uid-{name}}}
spec:
  containers: [{{name: main, image: none, volumeMounts: [{{name: data, mountPath: /data}}]}}]
  volumes: [{{name: data, {source}}}]
---
"
    )
}

fn claim(name: &str, more: &str) -> String {
    format!("persistentVolumeClaim: {{claimName: {name}{more}}}")
}

fn inline(server: &str, path: &str) -> String {
    format!("nfs: {{server: '{server}', path: {path}}}")
}

fn target(pod: &str, name: &str) -> String {
    format!("/var/lib/kubelet/pods/uid-{pod}/volumes/kubernetes.io~nfs/{name}")
}

/// A script that succeeds when volumectl says this of a pod.
fn says(pod: &str, words: &str) -> String {
    format!("volumectl explain pod/{pod} | tee /dev/stderr | grep -qF '{words}'")
}

/// The lines of PID 1's mount table for the volumes; a mount made again has another id.
fn mounts(machine: &mut Machine) -> String {
    machine.sh("grep -F /var/lib/kubelet/pods /proc/1/mountinfo | sort")
}

#[test]
fn nfs_volumes_work_and_their_servers_deaths_concern_nobody_else() {
    let test = "nfs_volumes_work_and_their_servers_deaths_concern_nobody_else";
    let Some(mut machine) = Machine::resume(test) else { return };
    // In this order: both tell the one rpcbind what they serve, and the other one nothing of NFSv3.
    machine.sh(OTHER);
    machine.sh(SERVER);
    let units = "volumed.socket volumed.service";
    machine.sh(&format!("systemctl enable --quiet --no-reload {units}; systemctl start {units}"));
    mounting_from_a_dead_server_delays_nobody(&mut machine);
    every_kind_is_what_it_says(&mut machine);
    a_writer_goes_on_when_its_server_does(&mut machine);
    let words = "no answer within 60 s.*start the server 10.9.0.66 or mend the way to it";
    machine.until(
        "it is told of the dead server",
        &format!("volumectl explain pod/dead | tr '\\n' ' ' | grep -q '{words}'"),
    );
    a_server_dies_under_its_volumes(&mut machine);
    they_come_up_after_a_reboot(&mut machine);
}

fn mounting_from_a_dead_server_delays_nobody(machine: &mut Machine) {
    machine.manifest("dead", &pod("dead", &inline(DEAD, "/srv/a")));
    machine.until("it hangs", "pgrep -x mount.nfs");
    machine.manifest("quick", &pod("quick", "emptyDir: {}"));
    machine.wait_for_pods(&["quick"]);
    let table = machine.sh("grep -c 10.9.0.66 /proc/1/mountinfo || true");
    assert_eq!(table.trim(), "0", "what is not mounted yet is seen");
    let took = machine.sh(
        "written=$(stat --format=%.3Z /etc/volumed/manifests/quick.yaml)
         up=$(journalctl --unit=volumed --output=short-unix --grep='published .*quick' | tail -1 | cut -d. -f1,2 | cut -c1-14)
         echo \"$up - $written\" | awk '{ printf \"%.3f\", $1 - $3 }'",
    );
    println!("beside a mount that hangs an emptyDir was published {took} s after its manifest");
    assert!(took.trim().parse::<f64>().is_ok_and(|seconds| seconds < 10.0), "{took}");
}

fn every_kind_is_what_it_says(machine: &mut Machine) {
    let four = volume("four", ALIVE, "/srv/a", "nfsvers=4.2, noatime");
    let reader = pod("reader", &claim("four", ", readOnly: true"));
    machine.manifest("four", &(four + &pod("four", &claim("four", "")) + &reader));
    let three = volume("three", "fd00:9::1", "/srv/b", "nfsvers=3, soft");
    machine.manifest("three", &(three + &pod("three", &claim("three", ""))));
    machine.manifest("inline", &pod("inline", &inline(ALIVE, "/srv/b")));
    machine.wait_for_pods(&["four", "reader", "three", "inline"]);
    let [four, reader] = ["four", "reader"].map(|pod| target(pod, "four"));
    let (three, inline) = (target("three", "three"), target("inline", "data"));
    machine.sh(&format!(
        "echo four >{four}/file; grep -qx four /srv/a/file; grep -qx four {reader}/file
         ! touch {reader}/no 2>/dev/null
         echo three >{three}/file; grep -qx three /srv/b/file; grep -qx three {inline}/file
         findmnt --noheadings --output FSTYPE,OPTIONS {four} | grep -E '^nfs4 +rw,noatime,.*vers=4.2'
         findmnt --noheadings --output FSTYPE,OPTIONS {reader} | grep -E '^nfs4 +ro,noatime,.*vers=4.2'
         findmnt --noheadings --output FSTYPE,OPTIONS {three} | grep -E '^nfs +rw,.*vers=3,.*soft,proto=tcp6'
         findmnt --noheadings --output FSTYPE,OPTIONS {inline} | grep -E '^nfs4 +rw,.*vers=4.2'
         test $(stat --format=%a $(dirname {three})) = 750"
    ));
    let list = machine.sh("volumectl list -o wide");
    assert!(list.contains("[fd00:9::1]:/srv/b") && list.contains("10.9.0.1:/srv/a"), "{list}");
}

fn a_writer_goes_on_when_its_server_does(machine: &mut Machine) {
    let before = mounts(machine);
    machine.put("/run/writer", WRITER);
    machine.sh(&format!("systemd-run --quiet --unit=writer bash /run/writer {}", target("four", "four")));
    machine.until("it writes", "(($(wc -l </run/synced) > 3))");
    machine.sh("rpc.nfsd 0; ! systemctl is-active nfs-server");
    machine.sh("wc -l </run/synced >/run/at; sleep 2; (($(wc -l </run/synced) <= $(cat /run/at) + 1))");
    machine.sh("rpc.nfsd 4; echo Y >/proc/fs/nfsd/v4_end_grace");
    machine.until("it goes on", "systemctl is-active writer; (($(wc -l </run/synced) > $(cat /run/at) + 5))");
    machine.sh("touch /run/stop");
    machine.until("the writer ends", "! systemctl is-active writer");
    machine.sh(
        "test $(systemctl show --property=Result --value writer) = success; cmp /run/synced /srv/a/lines",
    );
    assert_eq!(mounts(machine), before, "nothing was mounted anew");
}

fn a_server_dies_under_its_volumes(machine: &mut Machine) {
    for pod in ["lost", "given-up"] {
        machine.manifest(pod, &self::pod(pod, &inline(MORTAL, "/srv/m")));
    }
    machine.wait_for_pods(&["lost", "given-up"]);
    let (lost, given_up) = (target("lost", "data"), target("given-up", "data"));
    // Somebody else has the export, too.
    machine.sh(&format!("mkdir -p /run/third; mount -t nfs {MORTAL}:/srv/m /run/third"));
    machine.sh("systemd-run --quiet --unit=third --working-directory=/run/third sleep infinity");
    // Somebody is left who cannot write what he wants to.
    machine.put("/run/stuck", "#!/bin/bash\nexec 3>$1/unwritten\ntouch /run/open\nuntil [[ -e /run/died ]]; do sleep 0.1; done\necho unwritten >&3\n");
    machine.sh(&format!(
        "echo kept >{lost}/kept; sync {lost}/kept
         systemd-run --quiet --unit=stuck bash /run/stuck {given_up}
         until [[ -e /run/open ]]; do sleep 0.1; done
         {DIES}; touch /run/died"
    ));
    let before = mounts(machine);
    // volumed starts, answers and brings others up all the same.
    machine.sh("systemctl restart volumed");
    machine.manifest("fresh", &pod("fresh", &inline(ALIVE, "/srv/a")));
    machine.wait_for_pods(&["fresh", "lost", "given-up"]);
    let seconds = machine.sh("TIMEFORMAT=%R; time { volumectl list && volumectl status; } >/dev/null");
    println!("with a dead server list and status took {} s", seconds.trim());
    machine.until(
        "the condition says so",
        &format!(
            "{}; {}",
            says("lost", "not-answering: the NFS server 10.8.0.2 does not answer (since "),
            "volumectl list -o wide | grep lost | grep -q not-answering"
        ),
    );
    let now = mounts(machine);
    assert!(before.lines().all(|line| now.contains(line)), "something was mounted anew:\n{before}\n{now}");

    machine.remove_manifests(&["lost", "given-up", "fresh"]);
    machine.wait_until_released(&["fresh"]);
    // While it asks again nobody is told why.
    let words = format!("does not answer.*volumectl release --force {lost}");
    let said = format!("volumectl explain pod/lost | tr '\\n' ' ' | tee /dev/stderr | grep -q '{words}'");
    machine.until("it waits for its server", &said);
    machine.sh(&format!("grep -qF {given_up} /proc/1/mountinfo"));
    // Who unmounts the export by force ends what anybody asks of its server. That is no answer of the server's.
    println!(
        "{}",
        machine.sh(&format!(
            "timeout 30 stat -f {lost} >/run/asked 2>&1 &
             for i in $(seq 30); do timeout 5 umount -c -i -f /run/third 2>&1 || true; sleep 0.3; done | sort | uniq -c
             cat /run/asked; grep -F {lost} /proc/1/mountinfo; grep -F {given_up} /proc/1/mountinfo"
        ))
    );
    let began = Instant::now();
    machine.sh("volumectl release --force pod/given-up");
    machine.wait_until_released(&["given-up"]);
    println!("given up by force within {:?}", began.elapsed());
    machine.until("who was stuck has ended", "! systemctl is-active stuck");
    println!("{}", machine.sh("ps axo pid,stat,wchan:30,args | grep -E 'internal-child| D' || true"));
    machine.sh(&format!("grep -qF {lost} /proc/1/mountinfo; ! grep -qF {given_up} /proc/1/mountinfo"));
    // The other one goes when its server is there again.
    machine.sh(COMES_BACK);
    machine.wait_until_released(&["lost"]);
    machine.sh("grep -qx kept /srv/m/kept; systemctl stop third; umount /run/third");
    machine.until(
        "no process is left of it",
        "! pgrep -f 'volumed.*internal-child' >/run/left || grep -c . /run/left | grep -qx 1",
    );
}

fn they_come_up_after_a_reboot(machine: &mut Machine) {
    machine.remove_manifests(&["dead"]);
    machine.wait_until_released(&["dead"]);
    machine.until("no helper is left", "! pgrep -x mount.nfs");
    println!("the reboot took {:?}", machine.reboot());
    machine.until("volumed runs", "volumectl status");
    machine.sh(SERVER);
    machine.sh("volumectl retry pod/four pod/reader pod/three pod/inline || true");
    let pods = ["four", "reader", "three", "inline"];
    machine.wait_for_pods(&pods);
    machine.sh(&format!("grep -qx four {}/file", target("reader", "four")));
    machine.remove_manifests(&["four", "three", "inline"]);
    machine.sh("volumectl approve 2>/dev/null || true");
    machine.sh(&format!("volumectl wait --for=released {} --timeout 100s", named(&pods)));
    machine.sh("! grep -F /var/lib/kubelet /proc/1/mountinfo");
}
