//! NFS volumes: a directory of a server, mounted for each pod by itself (kubelet.md 4.7). Nothing is staged, and whose the files
//! are is the server's to say.

use std::path::Path;

use super::{Answer, Call, Place, Site, VolumeType, host_failure, vanished};
use crate::BoxFuture;
use crate::host::{Directory, HostError, NfsCause, NfsError, NfsMount, NoUsage, Progress, Tree};
use crate::model::{BlockedCause, Effect, Failure, MountsAt, PublishStep, RecordedVolume, Retry, StageStep};

/// The type.
#[derive(Debug)]
pub(super) struct Nfs;

/// The code of what waits for a server.
const NOT_ANSWERING: &str = "server-not-answering";

impl VolumeType for Nfs {
    fn stage<'a>(
        &'a self,
        _site: &'a Site,
        _call: &'a Call,
        _step: &'a StageStep,
    ) -> BoxFuture<'a, Result<Vec<String>, Failure>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn publish<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        step: &'a PublishStep,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let (RecordedVolume::Nfs { server, path }, Some(arguments)) =
                (&call.volume, &step.plan.arguments)
            else {
                return Err(Failure::not_done(
                    "no-arguments",
                    "the record is not that of an NFS volume",
                    "report this as a fault of volumed",
                ));
            };
            let target = site.layout.publication(&step.id);
            let not_done = |error: HostError| failure(&error, Effect::NotDone);
            let mounts = site.host.mounts().await.map_err(not_done)?;
            let shown = &arguments.target_path;
            match mounts.at(shown) {
                // An earlier try whose outcome was lost, with these very arguments: a mount is whole before it is seen.
                MountsAt::One(mount) if mount.read_only || !arguments.read_only => return Ok(()),
                MountsAt::One(_) | MountsAt::Stacked(_) => {
                    let found = "it is mounted there otherwise".to_owned();
                    return Err(not_done(HostError::WrongMount { path: shown.clone(), found }));
                }
                MountsAt::None => {}
            }
            drop(mounts);
            let directory = Directory { path: target.clone(), mode: 0o750, exact: false };
            let tree = Tree { directories: vec![directory], files: Vec::new() };
            site.host.create(tree).await.map_err(not_done)?;
            let mount = NfsMount {
                server: server.clone(),
                path: path.clone(),
                target,
                read_only: arguments.read_only,
                options: arguments.capability.mount_flags.clone(),
            };
            let Err(error) = site.host.mount_nfs(mount).await else { return Ok(()) };
            // A child may have mounted it and died before it said so.
            let mounts = site.host.mounts().await;
            let is_absent = mounts.is_ok_and(|mounts| matches!(mounts.at(shown), MountsAt::None));
            let is_known = !matches!(error, HostError::Deadline { .. } | HostError::Busy { .. });
            Err(failure(&error, if is_known && is_absent { Effect::NotDone } else { Effect::MayBeDone }))
        })
    }

    fn finish_publication<'a>(
        &'a self,
        site: &'a Site,
        step: &'a PublishStep,
        _progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(vanished(site, step))
    }

    /// Says that it may go, once the server has answered: an unmount hands it what was written. What is recorded there is
    /// unmounted by `execute`, which knows it (design 5, "Undo").
    fn unpublish<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        place: Place<'a>,
        forced: bool,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async move {
            if let (Some(arguments), false) = (place.arguments, forced) {
                must_answer(site, call, &arguments.target_path).await?;
            }
            Ok(Answer::Done)
        })
    }
}

/// Refuses to unmount what a server that says nothing has behind it: the unmount would hang in the kernel, and by then nothing
/// could be forced any more. A server that answers with an error answers.
async fn must_answer(site: &Site, call: &Call, target: &Path) -> Result<(), Failure> {
    let not_done = |error: HostError| host_failure(&error, Effect::NotDone);
    let mounts = site.host.mounts().await.map_err(not_done)?;
    if matches!(mounts.at(target), MountsAt::None) {
        return Ok(());
    }
    let mut answers = site.host.usage(vec![target.to_owned()]).await.map_err(not_done)?;
    let Some(Err(NoUsage::Silent(said))) = answers.remove(target) else { return Ok(()) };
    let server = match &call.volume {
        RecordedVolume::Nfs { server, .. } => server.as_str(),
        RecordedVolume::Csi { .. }
        | RecordedVolume::EmptyDir
        | RecordedVolume::Local { .. }
        | RecordedVolume::Device { .. } => "",
    };
    let target = target.display();
    Err(Failure::not_done(
        NOT_ANSWERING,
        format!("the NFS server {server} does not answer: {said}; {target} stays mounted"),
        format!(
            "start the server or mend the way to it: volumed goes on by itself; or volumectl release --force {target}, which \
             loses what the server has not got yet"
        ),
    ))
}

/// Says what to do about an export that cannot be shown.
fn failure(error: &HostError, effect: Effect) -> Failure {
    let HostError::Nfs(refused) = error else { return host_failure(error, effect) };
    let NfsError { mount, cause, .. } = &**refused;
    let NfsMount { server, path, .. } = mount;
    let (code, remedy) = match cause {
        NfsCause::NoHelper => (
            "mount-helper-missing",
            "install nfs-common (Debian, Ubuntu) or nfs-utils (others); volumed goes on by itself".to_owned(),
        ),
        NfsCause::NoKernel => ("kernel-without-nfs", "run a kernel with NFS (modprobe nfs)".to_owned()),
        NfsCause::Late | NfsCause::Unreachable => (
            NOT_ANSWERING,
            format!(
                "start the server {server} or mend the way to it (firewall, routes); volumed goes on by itself"
            ),
        ),
        NfsCause::NoService => (
            "no-nfs-server",
            format!("start the NFS server on {server}, for NFSv3 also rpcbind; volumed goes on by itself"),
        ),
        NfsCause::NoSuchServer => (
            "server-unknown",
            format!("correct the name {server} in the manifest, or add it to DNS or /etc/hosts"),
        ),
        NfsCause::NoExport => (
            "no-such-export",
            format!(
                "let {server} export {path}, or correct the path in the manifest (showmount -e {server})"
            ),
        ),
        NfsCause::Denied => (
            "access-denied",
            format!("let {server} export {path} to this host (/etc/exports there, then exportfs -ra)"),
        ),
        NfsCause::Version => (
            "protocol-not-supported",
            format!(
                "name a version that {server} speaks in spec.mountOptions (nfsvers=4.1, nfsvers=3), or turn it on there"
            ),
        ),
        NfsCause::Options => {
            ("mount-options", "correct spec.mountOptions of the PersistentVolume: see nfs(5)".to_owned())
        }
        NfsCause::Stale => (
            "stale-export",
            format!("export {path} again on {server} (exportfs -ra): what it exported before is gone"),
        ),
        NfsCause::Locks => (
            "lock-service-missing",
            "start rpc-statd and rpcbind on this host, or add nolock to spec.mountOptions".to_owned(),
        ),
        NfsCause::Other => return host_failure(error, effect),
    };
    Failure {
        effect,
        settled: false,
        // The next try hangs for as long, and while it does nobody is told why.
        retry: if *cause == NfsCause::Late { Retry::Slow } else { Retry::Backoff },
        cause: BlockedCause::new(code, error.to_string()),
        remedy,
    }
}
