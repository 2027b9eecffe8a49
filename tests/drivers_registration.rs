//! The registry against programs that nobody here wrote, and against fakecsi's worst answers.
//!
//! Each test has its own directory and ends the processes that it started. Without their variables the tests of foreign
//! programs say NOT-RUN and why.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "what a test needs and lacks ends it"
)]

#[path = "registration/world.rs"]
#[expect(dead_code, reason = "tests/registration.rs uses the rest")]
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use volumed::csi::Code;
use volumed::model::{Connection, DriverOrigin, DriverState};
use volumed::proto::csi;
use world::{World, is_ready};

/// A program that is ended with the test.
struct Program(Child);

impl Program {
    fn start(program: &Path, arguments: &[String], environment: &[(&str, String)]) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "host::exec is for tools that end; this is a daemon of the test"
        )]
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.envs(environment.iter().map(|(key, value)| (key, value)));
        Self(command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display())))
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let process = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(process, signal).unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Returns the program that a variable names, or says that the test does not run.
fn program(test: &str, variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("NOT-RUN: {test}: {variable} is not set");
    }
    path
}

fn gone(state: &DriverState) -> bool {
    !is_ready(state)
}

fn unix(path: &Path) -> String {
    format!("unix://{}", path.display())
}

fn strings(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

fn mount_capability() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(csi::volume_capability::AccessMode { mode: 1 }),
        access_type: Some(csi::volume_capability::AccessType::Mount(
            csi::volume_capability::MountVolume::default(),
        )),
    }
}

#[tokio::test]
async fn mock_driver_named_in_the_configuration_is_called_and_called_again_after_its_death() {
    const NAME: &str = "io.kubernetes.storage.mock";
    let test = "mock_driver_named_in_the_configuration_is_called_and_called_again_after_its_death";
    let Some(mock) = program(test, "VOLUMED_TEST_MOCK_DRIVER") else { return };
    let mut world = World::new().configure(NAME, "csi.sock").start();
    let start = |world: &World| {
        let endpoint = [("CSI_ENDPOINT", unix(&world.path("csi.sock")))];
        Program::start(&mock, &strings(&["-disable-attach"]), &endpoint)
    };
    world.driver(NAME, gone).await;
    let driver = start(&world);

    let entry = world.driver(NAME, is_ready).await;
    assert_eq!(entry.state.origin, DriverOrigin::Configured);
    assert!(entry.state.info.stage_unstage);
    assert!(entry.state.info.capabilities.contains(&"node/UNKNOWN".to_owned()), "{:?}", entry.state.info);
    let staging = world.path("staging");
    std::fs::create_dir(&staging).unwrap();
    let stage = csi::NodeStageVolumeRequest {
        volume_id: "1".into(),
        staging_target_path: staging.to_str().unwrap().into(),
        volume_capability: Some(mount_capability()),
        ..Default::default()
    };
    entry.client.stage(stage.clone()).await.unwrap();
    let error = entry.client.stage(csi::NodeStageVolumeRequest::default()).await.unwrap_err();
    assert_eq!((error.code, error.sent), (Code::INVALID_ARGUMENT, true), "{error}");

    driver.signal(nix::sys::signal::Signal::SIGKILL);
    world.driver(NAME, gone).await;
    drop(driver);
    let _driver = start(&world);
    world.driver(NAME, is_ready).await.client.stage(stage).await.unwrap();
}

#[tokio::test]
async fn hostpathplugin_registers_by_the_registrar_and_survives_the_death_of_both() {
    const NAME: &str = "hostpath.csi.k8s.io";
    let test = "hostpathplugin_registers_by_the_registrar_and_survives_the_death_of_both";
    let Some(hostpath) = program(test, "VOLUMED_TEST_HOSTPATHPLUGIN") else { return };
    let Some(registrar) = program(test, "VOLUMED_TEST_REGISTRAR") else { return };
    let mut world = World::new().start();
    let socket = world.path("csi.sock");
    let start_driver = |world: &World| {
        let state = format!("-statedir={}", world.path("state").display());
        let endpoint = format!("-endpoint={}", unix(&world.path("csi.sock")));
        Program::start(&hostpath, &strings(&[&endpoint, &state, "-nodeid=n1"]), &[])
    };
    let start_registrar = |world: &World| {
        let arguments = [
            format!("--csi-address={}", socket.display()),
            format!("--kubelet-registration-path={}", socket.display()),
            format!("--plugin-registration-path={}", world.registration("").display()),
        ];
        Program::start(&registrar, &arguments, &[])
    };
    let driver = start_driver(&world);
    let mut registration = start_registrar(&world);
    let entry = world.driver(NAME, is_ready).await;
    assert_eq!(entry.state.info.node_id, "n1");
    assert_eq!(entry.state.endpoint, socket);
    assert!(entry.state.info.stage_unstage);

    driver.signal(nix::sys::signal::Signal::SIGKILL);
    world.driver(NAME, gone).await;
    drop(driver);
    let _driver = start_driver(&world);
    world.driver(NAME, is_ready).await;
    // It ends with 1 when it is told that it was refused.
    assert!(registration.0.try_wait().unwrap().is_none(), "the registrar gave up");

    registration.signal(nix::sys::signal::Signal::SIGTERM);
    let removed = |state: &DriverState| matches!(&state.connection, Connection::Disconnected { reason } if reason.contains("was removed"));
    world.driver(NAME, removed).await;
    drop(registration);
    let _registration = start_registrar(&world);
    world.driver(NAME, is_ready).await;
}

const FAKE: &str = "fake.csi.volumed.io";

/// Returns the example's program, built with the profile of this test: `cargo test --test` builds no example.
fn fakecsi() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let tests = std::env::current_exe().unwrap();
        let profile = tests.ancestors().nth(2).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a build has no deadline")]
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--offline", "--example", "fakecsi"]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "fakecsi does not build");
        profile.join("examples/fakecsi")
    })
}

fn start_fakecsi(world: &World, more: &[&str]) -> Program {
    let mut arguments = strings(&["--no-mount", "--lenient"]);
    for (option, path) in [
        ("--endpoint", world.path("csi.sock")),
        ("--state", world.path("state")),
        ("--registry", world.registration("")),
        ("--log", world.path("log")),
        ("--faults", world.path("faults")),
    ] {
        arguments.extend([option.to_owned(), path.to_str().unwrap().to_owned()]);
    }
    arguments.extend(strings(more));
    Program::start(fakecsi(), &arguments, &[])
}

fn stage_request(volume: &str) -> csi::NodeStageVolumeRequest {
    csi::NodeStageVolumeRequest {
        volume_id: volume.into(),
        staging_target_path: "/nowhere".into(),
        volume_capability: Some(mount_capability()),
        secrets: BTreeMap::from([("password".to_owned(), "hunter2".to_owned())]),
        ..Default::default()
    }
}

#[tokio::test]
async fn fakecsi_registers_itself_and_its_worst_answers_are_understood() {
    let mut world = World::new().deadline(std::time::Duration::from_secs(2)).start();
    let _driver = start_fakecsi(&world, &["--attach", "--multi-writer"]);
    let entry = world.driver(FAKE, is_ready).await;
    assert!(entry.state.info.publish_unpublish && entry.state.info.single_node_multi_writer);
    entry.client.stage(stage_request("v0")).await.unwrap();

    let unavailable = Code::UNAVAILABLE;
    let cases = [
        (r#"{"code": "NOT_FOUND", "message": "no such volume"}"#, Code::NOT_FOUND, "no such volume"),
        (r#"{"leak": "bad request"}"#, Code(13), "bad request"),
        (r#""oversize""#, unavailable, "too large"),
        (r#""garbage""#, unavailable, "decode"),
        (r#""hang""#, Code::DEADLINE_EXCEEDED, "no answer within 2s"),
    ];
    for (action, code, text) in cases {
        let faults = format!(r#"[{{"method": "NodeStageVolume", "volume": "v1", "action": {action}}}]"#);
        std::fs::write(world.path("faults"), faults).unwrap();
        let error = entry.client.stage(stage_request("v1")).await.unwrap_err();
        assert_eq!((error.code, error.sent), (code, true), "{action}: {error}");
        assert!(error.message.contains(text), "{action}: {error}");
        assert!(!error.message.contains("hunter2"), "{action}: {error}");
        entry.client.stage(stage_request("v2")).await.unwrap();
    }
    let log = std::fs::read_to_string(world.path("log")).unwrap();
    assert!(log.contains("hunter2"), "the log is the witness of what was sent");
    assert!(log.contains(r#""code":"DROPPED""#), "the call that hung was not given up");
}

#[tokio::test]
async fn a_driver_that_crashes_after_the_effect_leaves_a_call_in_doubt() {
    let mut world = World::new().start();
    let driver = start_fakecsi(&world, &[]);
    let entry = world.driver(FAKE, is_ready).await;
    let crash = r#"[{"method": "NodeStageVolume", "nth": 2, "when": "after", "action": "crash"}]"#;
    std::fs::write(world.path("faults"), crash).unwrap();
    entry.client.stage(stage_request("v1")).await.unwrap();
    let error = entry.client.stage(stage_request("v1")).await.unwrap_err();
    assert_eq!((error.code, error.sent), (Code::UNAVAILABLE, true), "{error}");
    world.driver(FAKE, gone).await;
    drop(driver);
    let _driver = start_fakecsi(&world, &[]);
    world.driver(FAKE, is_ready).await.client.stage(stage_request("v1")).await.unwrap();
}

#[tokio::test]
async fn a_root_s_socket_that_another_user_s_process_serves_is_refused() {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    const NOBODY: u32 = 65534;
    if !nix::unistd::geteuid().is_root() {
        println!(
            "NOT-RUN: a_root_s_socket_that_another_user_s_process_serves_is_refused: only root can be another"
        );
        return;
    }
    let world = World::new().configure(FAKE, "run/csi.sock");
    // Where that user can run it and make its socket.
    std::fs::set_permissions(world.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    // By another process: a descriptor of ours that can write to it could still be open in what another test starts.
    #[expect(clippy::disallowed_methods, reason = "a test's own tool")]
    let copied = Command::new("cp").arg(fakecsi()).arg(world.path("fakecsi")).status().unwrap();
    assert!(copied.success(), "{copied}");
    std::fs::create_dir(world.path("run")).unwrap();
    chown(world.path("run"), Some(NOBODY), None).unwrap();
    let [endpoint, state] = ["run/csi.sock", "run/state"].map(|name| world.path(name).display().to_string());
    let user = NOBODY.to_string();
    let arguments = [
        "--reuid",
        &user,
        "--clear-groups",
        &world.path("fakecsi").display().to_string(),
        "--endpoint",
        &endpoint,
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(["--no-mount", "--state", &state].map(str::to_owned));
    let _driver = Program::start(Path::new("setpriv"), &arguments.collect::<Vec<_>>(), &[]);
    let mut world = world.start();
    let says = |text: &'static str| move |state: &DriverState| matches!(&state.connection, Connection::Disconnected { reason } if reason.contains(text));
    world.driver(FAKE, says("belongs to user 65534")).await;
    chown(&endpoint, Some(0), None).unwrap();
    world.driver(FAKE, says("served by a process of user 65534")).await;
}

#[tokio::test]
async fn fakecsi_passes_csi_sanity_s_node_and_identity_parts() {
    let test = "fakecsi_passes_csi_sanity_s_node_and_identity_parts";
    let Some(sanity) = program(test, "VOLUMED_TEST_CSI_SANITY") else { return };
    if !nix::unistd::geteuid().is_root() {
        println!("NOT-RUN: {test}: only root can mount");
        return;
    }
    let world = World::new();
    let at = |name: &str| world.path(name).display().to_string();
    // In a mount namespace of its own, so that nothing is left behind whatever happens.
    let driver = strings(&["--mount", "--propagation", "private", "--"]);
    let mut driver: Vec<String> = driver.into_iter().chain([fakecsi().display().to_string()]).collect();
    driver.extend(["--endpoint", &at("csi.sock"), "--state", &at("state"), "--create"].map(str::to_owned));
    let _driver = Program::start(Path::new("unshare"), &driver, &[]);
    world.until(|| world.path("csi.sock").try_exists().unwrap()).await;
    let arguments = [
        format!("-csi.endpoint={}", at("csi.sock")),
        format!("-csi.mountdir={}", at("mount")),
        format!("-csi.stagingdir={}", at("staging")),
        "-ginkgo.focus=Identity|Node Service".to_owned(),
        "-ginkgo.no-color".to_owned(),
    ];
    #[expect(clippy::disallowed_methods, reason = "its output is the test's verdict")]
    let output = Command::new(sanity).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("Ran 22 of"), "another number of tests ran: {text}");
}
