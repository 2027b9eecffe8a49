//! A kubelet, played by its rules as far as a driver meets them (kubelet.md 3, 5 and 7): what it makes and removes itself, with which
//! modes, what it asks and expects. It shares no code with volumed.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "every test binary uses a part of it"
)]

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use sha2::{Digest as _, Sha256};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use volumed::proto::csi::identity_client::IdentityClient;
use volumed::proto::csi::node_client::NodeClient;
use volumed::proto::csi::{self, node_service_capability};
use volumed::proto::registration::registration_client::RegistrationClient;
use volumed::proto::registration::{InfoRequest, RegistrationStatus};

use crate::looped::PROGRAM;
use crate::support::{Process, TestHost, loop_devices, until};

pub const NAME: &str = "loop.example.com";

/// The node's directory, its driver, and what the kubelet knows of it.
pub struct Kubelet {
    pub host: TestHost,
    pub driver: Option<Process>,
    /// What the registration said; calls go there.
    pub endpoint: PathBuf,
    watch: Inotify,
}

impl Kubelet {
    /// Starts a kubelet, then the driver, and registers it.
    pub fn new() -> Self {
        let host = TestHost::new();
        let registry = host.root.join("plugins_registry");
        for made in ["pods", "plugins", "plugins_registry"] {
            make(&host.root.join(made));
        }
        let watch = Inotify::init().expect("inotify");
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE;
        watch.watches().add(&registry, mask).expect("the registry is there");
        let mut kubelet = Self { host, driver: None, endpoint: PathBuf::new(), watch };
        assert_eq!(kubelet.start_driver(), [format!("+{NAME}-reg.sock")]);
        kubelet
    }

    /// Starts the driver and registers it when its socket is created; returns what was seen until then.
    pub fn start_driver(&mut self) -> Vec<String> {
        let registry = self.host.root.join("plugins_registry");
        let mut command = Command::new(PROGRAM);
        command.args(["--name", NAME, "--node-id", "node-1", "--dir"]).arg(self.host.path("images"));
        command.arg("--endpoint").arg(self.host.root.join("plugins").join(NAME).join("csi.sock"));
        command.arg("--plugins-registry").arg(&registry);
        let config = self.host.path("loop.toml");
        fs::write(&config, "reserve = '0'\n").expect("a configuration");
        command.arg("--config").arg(config);
        self.driver = Some(self.host.spawn(command, "driver.log"));
        let mut seen = Vec::new();
        until("its socket is created", || {
            seen.extend(self.seen());
            seen.last().is_some_and(|event| event.starts_with('+'))
        });
        self.register(&registry.join(seen.last().expect("an event").trim_start_matches('+')));
        seen
    }

    /// What the watcher has seen since: `+name` created, `-name` removed. It sees no renames, so there may be none.
    pub fn seen(&mut self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let Ok(events) = self.watch.read_events(&mut buffer) else { return Vec::new() };
        events
            .filter_map(|event| {
                let name = event.name?.to_str()?.to_owned();
                assert!(
                    !event.mask.intersects(inotify::EventMask::MOVED_FROM | inotify::EventMask::MOVED_TO)
                );
                // Names with a dot are none of its.
                let sign = if event.mask.contains(inotify::EventMask::CREATE) { '+' } else { '-' };
                (!name.starts_with('.')).then(|| format!("{sign}{name}"))
            })
            .collect()
    }

    /// Registers what serves a socket: GetInfo, validation, NodeGetInfo, notification (kubelet.md 7).
    fn register(&mut self, socket: &Path) {
        let kind = fs::symlink_metadata(socket).expect("it was created").file_type();
        assert!(kind.is_socket(), "what is no socket is not looked at");
        // It is there before anybody listens: a kubelet's dial takes up to 10 s, an answer 1 s.
        until("somebody listens", || UnixStream::connect(socket).is_ok());
        let second = Duration::from_secs(1);
        let info = call(socket, second, async |channel| {
            RegistrationClient::new(channel).get_info(InfoRequest {}).await
        });
        let info = info.expect("it answers at once");
        assert_eq!(info.r#type, "CSIPlugin");
        let name = socket.file_name().and_then(|name| name.to_str()).expect("a name");
        assert_eq!(name, format!("{}-reg.sock", info.name));
        assert!(understood(&info.supported_versions), "{:?}", info.supported_versions);
        assert!(info.endpoint.starts_with('/') && info.endpoint.len() <= 104, "{:?}", info.endpoint);
        self.endpoint = PathBuf::from(info.endpoint);
        let node = self
            .call(async |channel| NodeClient::new(channel).node_get_info(csi::NodeGetInfoRequest {}).await);
        let node = node.expect("whoever is registered is asked at once");
        assert_eq!(node.node_id, "node-1");
        for (key, value) in node.accessible_topology.expect("a topology").segments {
            // They become labels of the node.
            assert!(key.starts_with(&info.name) && value.len() <= 63, "{key}={value}");
        }
        let plugin = self.call(async |channel| {
            IdentityClient::new(channel).get_plugin_info(csi::GetPluginInfoRequest {}).await
        });
        assert_eq!(plugin.expect("an answer").name, info.name);
        self.notify(socket, "");
    }

    /// Tells the driver how its registration went; an error refuses it.
    pub fn notify(&self, socket: &Path, error: &str) {
        let status = RegistrationStatus { plugin_registered: error.is_empty(), error: error.to_owned() };
        let told = call(socket, Duration::from_secs(5), async |channel| {
            RegistrationClient::new(channel).notify_registration_status(status).await
        });
        told.expect("a kubelet that cannot tell takes the registration back");
    }

    pub fn registration(&self) -> PathBuf {
        self.host.root.join("plugins_registry").join(format!("{NAME}-reg.sock"))
    }

    /// Makes a call with a connection of its own (kubelet.md 5.1).
    pub fn call<T>(
        &self,
        one: impl AsyncFnOnce(Channel) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        call(&self.endpoint, Duration::from_secs(120), one)
    }

    /// What the node service can do, asked before every use.
    pub fn can(&self, what: node_service_capability::rpc::Type) -> bool {
        let answer = self.call(async |channel| {
            NodeClient::new(channel).node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await
        });
        answer.expect("an answer").capabilities.iter().any(|one| {
            matches!(&one.r#type, Some(node_service_capability::Type::Rpc(rpc)) if rpc.r#type() == what)
        })
    }

    fn plugin(&self) -> PathBuf {
        self.host.root.join("plugins/kubernetes.io/csi")
    }

    /// The directory of a staged file system, made with its record beside it.
    pub fn global(&self, handle: &str) -> PathBuf {
        let directory = self.plugin().join(NAME).join(hex(handle.as_bytes()));
        make(&directory.join("globalmount"));
        let record = format!("{{\"driverName\":\"{NAME}\",\"volumeHandle\":\"{handle}\"}}\n");
        fs::write(directory.join("vol_data.json"), record).expect("a record");
        directory.join("globalmount")
    }

    /// A target, which only the driver makes; its parent is made, with the record in it.
    pub fn target(&self, pod: &str, spec: &str) -> PathBuf {
        let directory = self.host.root.join(format!("pods/{pod}/volumes/kubernetes.io~csi/{spec}"));
        make(&directory);
        fs::write(directory.join("vol_data.json"), "{}\n").expect("a record");
        directory.join("mount")
    }

    /// Where a block volume is staged, published to a pod, and mapped for it by the kubelet itself.
    pub fn block_paths(&self, spec: &str, pod: &str) -> [PathBuf; 3] {
        let devices = self.plugin().join("volumeDevices");
        let (staging, publish) = (devices.join("staging").join(spec), devices.join("publish").join(spec));
        let map = devices.join(spec).join("dev");
        for made in [&staging, &publish, &map] {
            make(made);
        }
        [staging, publish.join(pod), map.join(pod)]
    }

    /// Cleans up as `removeMountDir` does, which never deletes what it did not make: fails where the driver left something, or
    /// took what is the kubelet's.
    pub fn remove_mount_dir(&self, mount: &Path) {
        assert!(!self.host.mounts().iter().any(|at| at == mount), "{} is a mount", mount.display());
        match fs::remove_dir(mount) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.expect("it is empty"),
        }
        let directory = mount.parent().expect("it has one");
        assert_eq!(mode(directory), 0o750, "the kubelet's directory was changed");
        fs::remove_file(directory.join("vol_data.json")).expect("the record is the kubelet's");
        fs::remove_dir(directory).expect("nothing else is in it");
    }

    /// Ends with no mount, loop device or volume.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.host.mounts(), Vec::<PathBuf>::new());
        let images = self.host.path("images");
        until("no loop device is left", || loop_devices(&images).is_empty());
        let volumes: Vec<_> = fs::read_dir(images.join("volumes")).expect("there").flatten().collect();
        assert!(volumes.is_empty(), "{volumes:?}");
    }
}

fn call<T>(
    socket: &Path,
    limit: Duration,
    call: impl AsyncFnOnce(Channel) -> Result<tonic::Response<T>, Status>,
) -> Result<T, Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("an address");
        let endpoint = endpoint.origin("http://localhost".parse().expect("an authority"));
        let channel = endpoint.connect().await.map_err(|e| Status::unavailable(format!("{e:?}")))?;
        tokio::time::timeout(limit, call(channel))
            .await
            .expect("an answer in time")
            .map(tonic::Response::into_inner)
    })
}

/// Whether a kubelet takes a driver of these versions: the highest that it can read, of two or more numbers and not above 1, is 1.
fn understood(versions: &[String]) -> bool {
    let read = versions.iter().filter_map(|version| {
        let parts: Option<Vec<u32>> =
            version.trim_start_matches('v').split('.').map(|part| part.parse().ok()).collect();
        parts.filter(|parts| parts.len() >= 2 && parts[0] <= 1)
    });
    read.max().is_some_and(|highest| highest[0] == 1)
}

/// Makes a directory as a kubelet does, 0750 with all above it that are missing.
pub fn make(directory: &Path) {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(directory).expect("a directory");
}

pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o7777
}

pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the kubelet takes an error for final: it cleans up then, as nothing can still be under way (kubelet.md 5.1).
pub fn is_final(status: &Status) -> bool {
    use tonic::Code;
    !matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}
