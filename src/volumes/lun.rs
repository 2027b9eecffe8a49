//! What to do about a disk of a storage system that is not connected.

use crate::host::{LunCause, LunError};
use crate::model::{BlockedCause, Effect, Failure, Lun, Retry};

/// Returns the failure of a step that the connection stands in the way of, with what to do about it.
pub(super) fn failure(error: &LunError, effect: Effect) -> Failure {
    let (code, retry, remedy) = match error.cause {
        LunCause::NoTool => (
            "no-tool",
            Retry::Backoff,
            "install the package that the message names; volumed tries again by itself".to_owned(),
        ),
        LunCause::NoDaemon => (
            "no-iscsid",
            Retry::Backoff,
            "start iscsid (systemctl enable --now iscsid.socket); volumed tries again by itself".to_owned(),
        ),
        LunCause::NoKernel => (
            "no-iscsi-in-kernel",
            Retry::Backoff,
            "load the module by hand (modprobe iscsi_tcp), and at every boot (/etc/modules-load.d)".to_owned(),
        ),
        LunCause::Unreachable => (
            "target-unreachable",
            Retry::Backoff,
            format!("start the target or mend the way to {}; volumed tries again by itself", portals(error)),
        ),
        LunCause::NoSuchHost => (
            "target-unreachable",
            Retry::Backoff,
            format!("let this host know the name in {}, or write an address", portals(error)),
        ),
        LunCause::NoTarget => (
            "no-such-target",
            Retry::Backoff,
            "correct iqn and targetPortal, or make the target; what the portal has says iscsiadm -m discovery -t st -p PORTAL"
                .to_owned(),
        ),
        LunCause::Refused => (
            "target-refuses",
            Retry::Backoff,
            "correct the user name and password in the Secret that secretRef names, set chapAuthSession and chapAuthDiscovery \
             as the target wants them, and let the target know this host (/etc/iscsi/initiatorname.iscsi)"
                .to_owned(),
        ),
        LunCause::NoPassword => (
            "no-password",
            Retry::WhenChanged,
            "write it into the Secret that secretRef names, or do not ask for CHAP".to_owned(),
        ),
        LunCause::NoLun => (
            "no-such-lun",
            Retry::Backoff,
            "correct lun, or let the storage system show the disk to this host; volumed tries again by itself".to_owned(),
        ),
        LunCause::Lost => (
            "session-lost",
            Retry::Soon,
            format!(
                "start the target or mend the way to {}, look whether iscsid runs (systemctl status iscsid), and whether the \
                 Secret still has the target's password: the kernel and iscsid connect again by themselves",
                portals(error)
            ),
        ),
        LunCause::NotConnected => (
            "not-connected",
            Retry::Soon,
            "restart the pod: its volume is mounted from a session that somebody ended".to_owned(),
        ),
        LunCause::InUse => {
            ("in-use", Retry::Soon, "stop who has the disk; volumed goes on by itself".to_owned())
        }
        LunCause::Late => (
            "target-silent",
            Retry::Backoff,
            format!("look whether {} answers; volumed tries again by itself", portals(error)),
        ),
        LunCause::Other => {
            ("host", Retry::Backoff, "mend what the message names; volumed tries again by itself".to_owned())
        }
    };
    Failure { effect, settled: false, retry, cause: BlockedCause::new(code, error.to_string()), remedy }
}

fn portals(error: &LunError) -> String {
    match &error.lun {
        Lun::Iscsi(lun) => lun.portals.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        Lun::Fc(_) => "the storage system".to_owned(),
    }
}
