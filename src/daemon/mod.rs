//! Builds everything in order, owns the tasks, answers signals and systemd, and shuts down in order. Mounts stay.

mod forward;
mod identities;
mod refuse;
mod socket;
mod systemd;
mod tasks;

use std::hash::{BuildHasher as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{Config, ConfigError, Flags};
use crate::control::peer::Policy;
use crate::control::server::Server;
use crate::desired::TokenFiles;
use crate::error::Chain;
use crate::host::{self, Host};
use crate::model::{Ambient, Events, Layout, Millis, Status};
use crate::reconcile::{self, AbsenceSettings, Inputs, Parts, Reread};
use crate::record::{Directory, Store, StoreError};
use crate::{csi, health, manifest, telemetry};

pub use crate::host::as_child;
pub use identities::IdentitiesError;
pub use refuse::Refusal;
pub use socket::SocketError;
pub use tasks::{Fault, Tasks};

/// How the daemon was asked to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// `--config`
    pub config_file: Option<PathBuf>,
    /// The flags that beat the file, for reloads.
    pub flags: Flags,
    /// `--allow-private-mounts`
    pub allow_private_mounts: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was told to.
    Stopped,
    /// A task panicked or could not go on: systemd starts it again.
    Broken,
}

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It is not safe here.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The settings do not do.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The group of the settings does not exist.
    #[error("the group {name:?} of the configuration does not exist; create it or remove the key `group`")]
    Group {
        /// As set.
        name: String,
    },
    /// The root directory cannot be used.
    #[error("cannot use the root directory")]
    Root {
        /// Why.
        source: host::HostError,
    },
    /// The state directory cannot be used.
    #[error("cannot use the state directory")]
    State {
        /// Why.
        source: StoreError,
    },
    /// The manifest directories of the last run are not known.
    #[error(transparent)]
    Identities(#[from] IdentitiesError),
    /// There is no control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The process cannot do what every process can.
    #[error("cannot {doing}")]
    Process {
        /// "start the runtime", ...
        doing: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// Runs until SIGTERM or SIGINT, or until a task breaks.
///
/// # Errors
/// When it cannot start; nothing was mounted or unmounted then.
pub fn run(config: &Config, options: &Options) -> Result<Ending, StartError> {
    // Two: a pass that computes for a while must not keep the control socket or the watchdog waiting.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| StartError::Process { doing: "start the runtime", source })?;
    let ending = runtime.block_on(Box::pin(serve(config, options)));
    // What hangs in the kernel does so in child processes; a blocking call that is late is given up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ending
}

async fn serve(config: &Config, options: &Options) -> Result<Ending, StartError> {
    let signals =
        |kind| signal(kind).map_err(|source| StartError::Process { doing: "watch signals", source });
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;
    let mut hang_up = signals(SignalKind::hangup())?;

    let (house, mut faults) = House::build(config, options).await?;
    let ending = loop {
        // Signals and faults are kept for the next turn when an arm is dropped.
        tokio::select! {
            biased;
            _fault = faults.recv() => break Ending::Broken,
            _signal = terminate.recv() => break Ending::Stopped,
            _signal = interrupt.recv() => break Ending::Stopped,
            _signal = hang_up.recv() => house.reload(config, options).await,
        }
    };
    house.end().await;
    Ok(ending)
}

/// Everything that runs.
struct House {
    /// Those who ask: the control API, systemd's view.
    front: Tasks,
    /// The loop.
    reconcile: Tasks,
    /// What the loop is fed by.
    sources: Tasks,
    manifests: manifest::Handle,
    policy: watch::Sender<Policy>,
    socket: Option<PathBuf>,
    _locks: refuse::Locks,
}

impl House {
    async fn build(
        config: &Config,
        options: &Options,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Fault>), StartError> {
        let started = Instant::now();
        let node = config.node()?;
        let policy = policy(config)?;
        refuse::not_root()?;
        let store: Arc<dyn Store> =
            Arc::new(Directory::open(&config.state_dir).map_err(|source| StartError::State { source })?);
        let linux = open_root(&config.root_dir).map_err(|source| StartError::Root { source })?;
        let root = linux.root().to_owned();
        let locks = refuse::unsafe_places(&root, &config.state_dir, options.allow_private_mounts).await?;
        let known = identities::load(&*store).await?;
        let control = socket::control(&config.socket, policy.group).await?;
        info!(
            node,
            root = %root.display(),
            boot = linux.boot().0,
            "volumed {} starts", env!("CARGO_PKG_VERSION")
        );

        let ambient = Arc::new(ambient());
        let events = Events::new(|event| telemetry::tell(&event));
        let layout = Layout::new(&root);
        let (front, faults) = Tasks::new();
        let (reconcile, sources) = (front.beside(), front.beside());

        let (reader, handle, manifests) = manifest::reader(
            manifest::Settings {
                directories: config.manifest_dir.clone(),
                removal_grace: config.removal_grace,
                owner: 0,
                known: known.clone(),
            },
            started,
            Arc::clone(&ambient),
        );
        let (registry, drivers) =
            csi::registry(driver_settings(config, &layout), Arc::clone(&ambient), events.clone());
        let (commands, asked) = mpsc::channel(64);
        let (publish, status) = watch::channel(Status::default());
        let again = Arc::new(Notify::new());
        let ask_again = Arc::clone(&again);
        let host: Arc<dyn Host> = Arc::new(linux);
        let turns = csi::Turns::default();
        let (poller, health) = health::poller(
            health::Parts {
                host: Arc::clone(&host),
                turns: turns.clone(),
                layout: layout.clone(),
                ambient: Arc::clone(&ambient),
                events: events.clone(),
            },
            status.clone(),
            drivers.clone(),
        );
        let parts = Parts {
            host,
            store: Arc::clone(&store),
            turns,
            layout,
            node: node.clone(),
            tokens: token_files(config),
            node_labels: config.node_labels.clone(),
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            ambient: Arc::clone(&ambient),
            started,
            events,
            absence: AbsenceSettings {
                removal_grace: config.removal_grace,
                brake_release_after: config.brake_release_after,
            },
            republish: republish(),
            reread: Reread::new(move || ask_again.notify_one()),
        };
        let inputs =
            Inputs { manifests: manifests.clone(), drivers, commands: asked, shutdown: reconcile.stop() };
        let (policy, allowed) = watch::channel(policy);
        let (requests, requested) = mpsc::channel(64);
        let server = Server {
            status: status.clone(),
            health,
            requests,
            policy: allowed,
            node,
            ambient,
            stop: front.stop(),
        };

        sources.run("manifest", reader.run(sources.stop()));
        front.once("health", poller.run(front.stop()));
        sources.once("csi", registry.run(sources.stop()));
        sources.once("identities", identities::keep(store, manifests, known, sources.stop()));
        reconcile.run("reconcile", reconcile::run(parts, inputs, publish));
        sources.once("rereads", read_again(again, handle.clone(), sources.stop()));
        front.run("control", server.serve(control.listener));
        let desk = forward::Desk {
            requests: requested,
            commands: commands.clone(),
            manifests: handle.clone(),
            status: status.clone(),
            tasks: front.clone(),
        };
        front.once("requests", desk.serve());
        front.once("systemd", systemd::tell(status.clone(), front.stop()));
        front.once("watchdog", systemd::watchdog(status, commands, handle.clone(), front.stop()));
        let house = Self {
            front,
            reconcile,
            sources,
            manifests: handle,
            policy,
            socket: control.bound,
            _locks: locks,
        };
        Ok((house, faults))
    }

    /// SIGHUP: reads the settings and the manifests again. Bad settings change nothing.
    async fn reload(&self, running: &Config, options: &Options) {
        systemd::reloading();
        let settings = Config::load(options.config_file.as_deref(), &options.flags);
        match settings.map_err(StartError::from).and_then(|new| Ok((policy(&new)?, new))) {
            Ok((policy, new)) => {
                self.policy.send_replace(policy);
                // Everything else is wired in at the start.
                if new != (Config { group: new.group.clone(), ..running.clone() }) {
                    warn!(
                        "the configuration changed in more than `group`: restart volumed to use it; mounts stay"
                    );
                }
                info!("the configuration was read again");
            }
            Err(error) => error!("the configuration stays as it was: {}", Chain(&error)),
        }
        // systemd waits for READY, and a directory that hangs must not keep it waiting.
        let _late = tokio::time::timeout(Duration::from_secs(5), self.manifests.reread()).await;
        systemd::reloaded();
    }

    /// Stops who asks, then the loop with its steps, then what fed it.
    async fn end(self) {
        systemd::stopping();
        for (name, tasks, within) in
            [("front", &self.front, 2), ("reconcile", &self.reconcile, 15), ("sources", &self.sources, 3)]
        {
            if !tasks.end(Duration::from_secs(within)).await {
                warn!("the {name} tasks did not stop within {within} s and are given up");
            }
        }
        if let Some(path) = &self.socket
            && let Err(error) = std::fs::remove_file(path)
        {
            warn!("cannot remove {}: {error}", path.display());
        }
        info!("stopped; mounts stay");
    }
}

/// Opens the root directory. A test of a debug build can say which boot this is: it cannot boot the host.
fn open_root(root: &std::path::Path) -> Result<host::Linux, host::HostError> {
    #[cfg(debug_assertions)]
    if let Ok(boot) = std::env::var("VOLUMED_TEST_BOOT_ID") {
        return host::Linux::with_boot(root, crate::model::BootId(boot));
    }
    host::Linux::open(root)
}

/// Returns how long a volume stands before it is published again. A test of a debug build does not wait that long.
fn republish() -> Duration {
    #[cfg(debug_assertions)]
    if let Some(ms) = std::env::var("VOLUMED_TEST_REPUBLISH_MS").ok().and_then(|ms| ms.parse().ok()) {
        return Duration::from_millis(ms);
    }
    reconcile::REPUBLISH
}

/// Reads the manifests again when the loop asks; several askers get one reading.
async fn read_again(asked: Arc<Notify>, manifests: manifest::Handle, stop: CancellationToken) {
    // notified keeps what was asked meanwhile.
    while stop.run_until_cancelled(asked.notified()).await.is_some() {
        let _generation = stop.run_until_cancelled(manifests.reread()).await;
    }
}

fn driver_settings(config: &Config, layout: &Layout) -> csi::Settings {
    let drivers = config.drivers.iter().map(|(name, driver)| {
        let configured = csi::Configured { endpoint: driver.endpoint.clone(), deadline: driver.timeout };
        (name.clone(), configured)
    });
    csi::Settings {
        plugins_registry: layout.root().join("plugins_registry"),
        uid: 0,
        deadline: config.rpc_timeout,
        probe_period: csi::PROBE_PERIOD,
        drivers: drivers.collect(),
    }
}

fn token_files(config: &Config) -> TokenFiles {
    let mut files = TokenFiles::default();
    for token in &config.tokens {
        let account = &token.service_account;
        files.insert(&account.namespace, &account.name, &token.audience, &token.file);
    }
    files
}

fn policy(config: &Config) -> Result<Policy, StartError> {
    let number =
        |name: &String| host::group_number(name).ok_or_else(|| StartError::Group { name: name.clone() });
    Ok(Policy { group: config.group.as_ref().map(number).transpose()?, is_member: host::is_member })
}

/// The real clock, and a seed of the standard library's.
fn ambient() -> Ambient {
    let seed = std::hash::RandomState::new().build_hasher().finish();
    Ambient::new(seed, || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
    })
}
