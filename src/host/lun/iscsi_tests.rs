//! iSCSI over a `/sys` of the test's own and an iscsiadm that is a script: it notes its arguments, keeps records as the real one does,
//! and makes and ends sessions.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use super::error::LunCause;
use super::iscsi::{attach, detach, find};
use super::tree::Tree;
use crate::model::{IscsiLun, Portal, TargetName};

const IQN: &str = "iqn.2026-11.io.volumed:one";

/// `refuse-login-ADDRESS` and `refuse-discovery-ADDRESS` have an exit code, `targets` what a portal names.
const ISCSIADM: &str = r#"#!/bin/sh
T=TREE; echo "$*" >>$T/arguments
portal=; name=; interface=; session=; all="$*"
while [ $# -gt 0 ]; do
  case $1 in -p) portal=$2; shift;; -T) name=$2; shift;; -I) interface=$2; shift;; -r) session=$2; shift;; esac
  shift
done
address=${portal%%:*}; number=${address##*.}
case $all in
  *iface*show) test -e $T/interface || exit 6;;
  *iface*new) touch $T/interface;;
  *discoverydb*"-o new") mkdir -p $T/etc/iscsi/send_targets/$address,3260
    printf '# BEGIN RECORD\ndiscovery.sendtargets.reopen_max = 5\n# END RECORD\n' >$T/etc/iscsi/send_targets/$address,3260/st_config;;
  *--discover*) cp $T/etc/iscsi/send_targets/$address,3260/st_config $T/asked-$address
    test ! -e $T/hang-discovery-$address || exec sleep 100
    test ! -e $T/refuse-discovery-$address || { echo "cannot make connection"; exit $(cat $T/refuse-discovery-$address); }
    cat $T/targets;;
  *node*"-o new") mkdir -p $T/etc/iscsi/nodes/$name/$address,3260,1
    printf '# BEGIN RECORD\nnode.session.scan = auto\n# END RECORD\n' >$T/etc/iscsi/nodes/$name/$address,3260,1/$interface;;
  *--login) cp $T/etc/iscsi/nodes/$name/$address,3260,1/$interface $T/logged-in-$address
    test ! -e $T/refuse-login-$address || { echo "iSCSI login failed"; exit $(cat $T/refuse-login-$address); }
    reset=$(sed -n 's/^node.session.err_timeo.lu_reset_timeout = //p' $T/logged-in-$address)
    sh $T/session $number $address $interface $name sd$number ${reset:-30};;
  *--logout) rm $T/sys/class/iscsi_session/session$session
    rm -r $T/sys/devices/platform/host$session;;
  *node*delete) rm -r $T/etc/iscsi/nodes/$name/$address,3260,1; rmdir $T/etc/iscsi/nodes/$name 2>/dev/null || true;;
esac
"#;

/// What the kernel does for a new session: number, address, interface, target, the disk that it has at once, and the limit for
/// resets.
const SESSION: &str = r#"
T=TREE; host=$T/sys/devices/platform/host$1; of=$host/session$1; class=$of/iscsi_session/session$1
mkdir -p $class $of/target$1:0:0 $T/sys/class/iscsi_connection/connection$1:0 $T/sys/class/scsi_host/host$1
echo $4 >$class/targetname; echo $3 >$class/ifacename; echo $6 >$class/lu_reset_tmo; echo LOGGED_IN >$class/state
ln -s ../.. $class/device
ln -s ../../devices/platform/host$1/session$1/iscsi_session/session$1 $T/sys/class/iscsi_session/session$1
c=$T/sys/class/iscsi_connection/connection$1:0
echo $2 >$c/persistent_address; echo 3260 >$c/persistent_port; echo $2 >$c/address; echo 3260 >$c/port
if [ -n "$5" ]; then
  disk=$of/target$1:0:0/$1:0:0:3; mkdir -p $disk/block/$5 $T/sys/class/block/$5/holders
  touch $disk/rescan $disk/delete; echo naa.1 >$disk/wwid
fi
"#;

/// The last that is done before the kernel forgets a disk: here it forgets it then.
const BLOCKDEV: &str = "#!/bin/sh\nrm -r $(dirname $(dirname TREE/sys/devices/platform/host*/session*/target*/*/block/${2##*/}))\n";

struct World(Tree);

impl World {
    fn new() -> Self {
        let tree = Tree::new();
        tree.write("sys/class/iscsi_transport/tcp/handle", "1");
        for (name, text) in [("tools/iscsiadm", ISCSIADM), ("tools/blockdev", BLOCKDEV), ("session", SESSION)]
        {
            tree.write(name, &text.replace("TREE", &tree.path().display().to_string()));
            let file = tree.path().join(name);
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        tree.write("targets", &format!("10.0.0.1:3260,1 {IQN}\n10.0.0.2:3260,1 {IQN}\n"));
        Self(tree)
    }

    /// Makes a session of ours.
    fn our_session(&self, number: u32, disk: &str) {
        self.session(number, "volumed", disk, "33");
    }

    /// Makes a session as somebody else would.
    fn session(&self, number: u32, interface: &str, disk: &str, reset: &str) {
        let address = format!("10.0.0.{number}");
        #[expect(clippy::disallowed_methods, reason = "a test's own script")]
        let made = std::process::Command::new("sh")
            .arg(self.0.path().join("session"))
            .args([&number.to_string(), &address, interface, IQN, disk, reset])
            .status();
        assert!(made.unwrap().success());
    }

    fn arguments(&self) -> String {
        self.0.read("arguments").unwrap_or_default()
    }

    /// Counts the portals of which there is a record of having been asked.
    fn records(&self) -> usize {
        std::fs::read_dir(self.0.path().join("etc/iscsi/send_targets")).unwrap().count()
    }

    fn sessions(&self) -> usize {
        self.0.roots().sessions(IQN).unwrap().len()
    }
}

fn lun(portals: &[&str]) -> IscsiLun {
    IscsiLun {
        portals: portals.iter().map(|portal| Portal::new(portal).unwrap()).collect(),
        iqn: TargetName::new(IQN).unwrap(),
        lun: 3,
        discovery_chap: false,
        session_chap: false,
    }
}

fn passwords() -> BTreeMap<String, String> {
    ["discovery.sendtargets.auth", "node.session.auth"]
        .iter()
        .flat_map(|of| {
            [(format!("{of}.username"), "me".to_owned()), (format!("{of}.password"), "hush".to_owned())]
        })
        .collect()
}

#[tokio::test]
async fn a_session_is_made_with_the_passwords_and_ends_with_its_disk() {
    let world = World::new();
    let lun = IscsiLun { discovery_chap: true, session_chap: true, ..lun(&["10.0.0.1"]) };
    let attached = attach(&world.0.host(), &lun, &passwords()).await.unwrap();
    assert!(attached.node.ends_with("dev/sd1") && attached.notes.is_empty(), "{attached:?}");
    let asked = world.0.read("asked-10.0.0.1").unwrap();
    assert!(asked.contains("discovery.sendtargets.auth.password = hush"), "{asked}");
    let record = world.0.read("logged-in-10.0.0.1").unwrap();
    for line in ["node.session.scan = manual", "node.session.auth.password = hush", "node.startup = manual"] {
        assert!(record.lines().any(|one| one == line), "{line}: {record}");
    }
    assert!(!world.arguments().contains("hush"), "{}", world.arguments());
    assert!(std::fs::read_dir(world.0.path().join("etc/iscsi/send_targets")).unwrap().next().is_none());
    // Again: nothing is done but to ask how large it is.
    let before = world.arguments();
    assert_eq!(attach(&world.0.host(), &lun, &passwords()).await.unwrap(), attached);
    assert_eq!(find(&world.0.host(), &lun, false).await.unwrap(), attached.node);
    assert_eq!(world.arguments(), before);
    detach(&world.0.host(), &lun).await.unwrap();
    assert_eq!(world.sessions(), 0);
    assert!(!world.0.path().join("etc/iscsi/nodes").join(IQN).try_exists().unwrap(), "the password is left");
    detach(&world.0.host(), &lun).await.unwrap();
}

#[tokio::test]
async fn a_session_with_another_disk_stays() {
    let world = World::new();
    attach(&world.0.host(), &lun(&["10.0.0.1"]), &passwords()).await.unwrap();
    std::fs::create_dir_all(world.0.path().join("sys/devices/platform/host1/session1/target1:0:0/1:0:0:7"))
        .unwrap();
    detach(&world.0.host(), &lun(&["10.0.0.1"])).await.unwrap();
    assert_eq!(world.sessions(), 1);
    assert!(!world.arguments().contains("--logout"), "{}", world.arguments());
}

#[tokio::test]
async fn somebody_else_s_session_is_used_and_left() {
    // iscsiadm takes our interface record for whoever names none.
    for interface in ["default", "volumed"] {
        let world = World::new();
        world.session(1, interface, "sd1", "30");
        let attached = attach(&world.0.host(), &lun(&["10.0.0.1"]), &passwords()).await.unwrap();
        assert!(attached.node.ends_with("dev/sd1"), "{attached:?}");
        detach(&world.0.host(), &lun(&["10.0.0.1"])).await.unwrap();
        assert_eq!((world.sessions(), world.arguments()), (1, String::new()), "{interface}");
        assert!(find(&world.0.host(), &lun(&["10.0.0.1"]), false).await.is_ok(), "its disk was taken away");
    }
}

#[tokio::test]
async fn one_portal_is_enough_and_the_others_are_told_of() {
    let world = World::new();
    world.0.write("refuse-discovery-10.0.0.2", "11");
    let both = lun(&["10.0.0.1", "10.0.0.2"]);
    let attached = attach(&world.0.host(), &both, &passwords()).await.unwrap();
    assert!(attached.node.ends_with("dev/sd1"), "{attached:?}");
    assert!(attached.notes[0].starts_with("portal 10.0.0.2:3260 is not used: "), "{attached:?}");
    detach(&world.0.host(), &both).await.unwrap();
    assert_eq!(world.sessions(), 0);
}

#[tokio::test]
async fn a_portal_that_hangs_delays_nobody_for_long_and_leaves_nothing() {
    let world = World::new();
    world.0.write("hang-discovery-10.0.0.2", "");
    let both = IscsiLun { discovery_chap: true, ..lun(&["10.0.0.1", "10.0.0.2"]) };
    // First with a new session at the other, then with that as an old one.
    for _ in 0..2 {
        let attached = tokio::time::timeout(Duration::from_secs(20), async {
            attach(&world.0.host(), &both, &passwords()).await.unwrap()
        });
        let attached = attached.await.unwrap();
        assert!(attached.node.ends_with("dev/sd1"), "{attached:?}");
        assert!(
            attached.notes[0].starts_with("portal 10.0.0.2:3260 is not used: no session"),
            "{attached:?}"
        );
        assert!(world.0.read("asked-10.0.0.2").unwrap().contains("hush"));
        assert_eq!(world.records(), 0, "the password is left");
    }
}

#[tokio::test]
async fn a_detach_removes_what_a_killed_child_left() {
    let world = World::new();
    let record = format!("etc/iscsi/nodes/{IQN}/10.0.0.1,3260,1/volumed");
    world.0.write(&record, "hush\nnode.session.err_timeo.lu_reset_timeout = 33\n");
    let theirs = ["10.0.0.2,3260,1/default", "10.0.0.3,3260,1/volumed"]
        .map(|record| format!("etc/iscsi/nodes/{IQN}/{record}"));
    theirs.iter().for_each(|record| world.0.write(record, "node.session.err_timeo.lu_reset_timeout = 30\n"));
    world.0.write("etc/iscsi/.volumed-new", "hush");
    detach(&world.0.host(), &lun(&["10.0.0.1", "10.0.0.2", "10.0.0.3"])).await.unwrap();
    assert_eq!((world.0.read(&record), world.0.read("etc/iscsi/.volumed-new")), (None, None));
    assert!(theirs.iter().all(|record| world.0.read(record).is_some()), "{}", world.arguments());
}

#[tokio::test]
async fn a_session_that_is_lost_and_has_no_disk_is_made_anew() {
    let world = World::new();
    world.our_session(1, "");
    world.0.write("sys/devices/platform/host1/session1/iscsi_session/session1/state", "FAILED\n");
    let attached = attach(&world.0.host(), &lun(&["10.0.0.1"]), &passwords()).await.unwrap();
    assert!(attached.node.ends_with("dev/sd1") && attached.notes.is_empty(), "{attached:?}");
    assert!(world.arguments().contains("-m session -r 1 --logout"), "{}", world.arguments());
}

#[tokio::test(start_paused = true)]
async fn a_session_of_somebody_else_that_is_lost_is_left() {
    let world = World::new();
    world.session(1, "default", "", "30");
    world.0.write("sys/devices/platform/host1/session1/iscsi_session/session1/state", "FAILED\n");
    let refused = attach(&world.0.host(), &lun(&["10.0.0.1"]), &passwords()).await.unwrap_err();
    assert_eq!((refused.cause, world.arguments()), (LunCause::Lost, String::new()));
}

#[tokio::test]
async fn a_refused_login_tells_the_cause_and_leaves_no_password() {
    for (code, cause) in [
        ("24", LunCause::Refused),
        ("8", LunCause::Unreachable),
        ("20", LunCause::NoDaemon),
        ("9", LunCause::Other),
    ] {
        let world = World::new();
        world.0.write("refuse-login-10.0.0.1", code);
        let lun = IscsiLun { session_chap: true, ..lun(&["10.0.0.1"]) };
        let refused = attach(&world.0.host(), &lun, &passwords()).await.unwrap_err();
        assert_eq!(refused.cause, cause, "{refused:?}");
        assert!(refused.said.contains("portal 10.0.0.1:3260: iscsiadm: iSCSI login failed"), "{refused:?}");
        assert!(
            !world.0.path().join("etc/iscsi/nodes").join(IQN).try_exists().unwrap(),
            "the password is left"
        );
    }
}

#[tokio::test]
async fn a_target_that_the_portal_does_not_name_is_told_with_those_that_it_does() {
    let world = World::new();
    world.0.write("targets", "10.0.0.1:3260,1 iqn.2026-11.io.volumed:other\n");
    let refused = attach(&world.0.host(), &lun(&["10.0.0.1"]), &passwords()).await.unwrap_err();
    assert_eq!(refused.cause, LunCause::NoTarget);
    assert!(refused.said.ends_with("it names iqn.2026-11.io.volumed:other"), "{refused:?}");
}

#[tokio::test]
async fn what_this_host_lacks_is_named() {
    let tree = Tree::new();
    let refused = attach(&tree.host(), &lun(&["10.0.0.1"]), &passwords()).await.unwrap_err();
    assert_eq!(refused.cause, LunCause::NoKernel, "{refused:?}");
    tree.write("sys/class/iscsi_transport/tcp/handle", "1");
    let refused = attach(&tree.host(), &lun(&["10.0.0.1"]), &passwords()).await.unwrap_err();
    assert_eq!(refused.cause, LunCause::NoTool);
    assert!(refused.said.contains("install open-iscsi"), "{refused:?}");
}

#[tokio::test]
async fn what_somebody_wrote_about_asking_a_portal_is_put_back() {
    let world = World::new();
    world.0.write("etc/iscsi/send_targets/10.0.0.1,3260/st_config", "theirs\n");
    attach(&world.0.host(), &lun(&["10.0.0.1"]), &passwords()).await.unwrap();
    assert_eq!(world.0.read("etc/iscsi/send_targets/10.0.0.1,3260/st_config").as_deref(), Some("theirs\n"));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_lost_its_target_is_told_with_its_state() {
    let world = World::new();
    world.our_session(1, "sd1");
    world.0.write("sys/devices/platform/host1/session1/iscsi_session/session1/state", "FAILED\n");
    for refused in [
        attach(&world.0.host(), &lun(&["10.0.0.1"]), &passwords()).await.map(drop).unwrap_err(),
        find(&world.0.host(), &lun(&["10.0.0.1"]), true).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(refused.cause, LunCause::Lost);
        assert!(refused.said.contains("session1: FAILED"), "{refused:?}");
    }
    let refused = find(&world.0.host(), &lun(&["10.0.0.9"]), false).await.unwrap_err();
    assert_eq!(refused.cause, LunCause::NotConnected);
}

#[tokio::test(start_paused = true)]
async fn only_the_disk_that_is_asked_for_is_looked_for() {
    let world = World::new();
    world.our_session(1, "");
    let refused = attach(&world.0.host(), &lun(&["10.0.0.1"]), &passwords()).await.unwrap_err();
    assert_eq!(refused.cause, LunCause::NoLun);
    assert_eq!(world.0.read("sys/class/scsi_host/host1/scan").as_deref(), Some("0 0 3"));
}

#[tokio::test(start_paused = true)]
async fn portals_that_lead_to_different_disks_are_refused() {
    let world = World::new();
    world.our_session(1, "sd1");
    world.our_session(2, "sd2");
    let both = lun(&["10.0.0.1", "10.0.0.2"]);
    assert!(attach(&world.0.host(), &both, &passwords()).await.is_ok());
    world.0.write("sys/devices/platform/host2/session2/target2:0:0/2:0:0:3/wwid", "naa.2\n");
    let refused = attach(&world.0.host(), &both, &passwords()).await.unwrap_err();
    assert!(refused.said.contains("naa.1 (session1) and naa.2 (session2)"), "{refused:?}");
}
