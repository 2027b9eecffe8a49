use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("/etc/v.toml"), text).map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_is_the_defaults() {
    assert_eq!(parse(""), Ok(Config::default()));
}

#[test]
fn every_key_is_read() {
    let config = parse(
        "manifest-dir = [\"/a\", \"/b\"]\nroot-dir = \"/r\"\nstate-dir = \"/s\"\nsocket = \"/c.sock\"\n\
         node-name = \"n1\"\ngroup = \"volumes\"\nremoval-grace = \"500ms\"\nbrake-release-after = \"1h\"\n\
         rpc-timeout = \"30s\"\nlog-level = \"debug\"\n\
         [drivers.\"nfs.csi.k8s.io\"]\nendpoint = \"unix:///run/nfs.sock\"\ntimeout = \"5m\"\n",
    );
    let driver = DriverConfig { endpoint: "/run/nfs.sock".into(), timeout: Some(Duration::from_secs(300)) };
    let expected = Config {
        manifest_dir: vec!["/a".into(), "/b".into()],
        root_dir: "/r".into(),
        state_dir: "/s".into(),
        socket: "/c.sock".into(),
        node_name: Some("n1".into()),
        group: Some("volumes".into()),
        removal_grace: Duration::from_millis(500),
        brake_release_after: Some(Duration::from_secs(3600)),
        rpc_timeout: Duration::from_secs(30),
        log_level: LogLevel::Debug,
        drivers: [(DriverName::new("nfs.csi.k8s.io").unwrap(), driver)].into(),
    };
    assert_eq!(config, Ok(expected));
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_the_remedy() {
    for (text, place, words) in [
        ("roots = 1", "/etc/v.toml:1:1: ", "unknown field `roots`"),
        ("\nroot-dir = \"var\"", "/etc/v.toml:2:12: root-dir: ", "give an absolute path"),
        ("root-dir = \"/a/../b\"", "/etc/v.toml:1:12: root-dir: ", "has a `..`"),
        ("manifest-dir = []", "/etc/v.toml:1:16: manifest-dir: ", "the list is empty"),
        ("manifest-dir = 3", "/etc/v.toml:1:16: manifest-dir: ", "give a list of directories"),
        ("removal-grace = 3", "/etc/v.toml:1:17: removal-grace: ", "give a time span"),
        ("removal-grace = \"-1s\"", "/etc/v.toml:1:17: removal-grace: ", "is not a time span"),
        ("rpc-timeout = \"0s\"", "/etc/v.toml:1:15: rpc-timeout: ", "is no time at all"),
        ("log-level = \"loud\"", "/etc/v.toml:1:13: log-level: ", "error, warn, info"),
        ("node-name = \"a/b\"", "/etc/v.toml:1:13: node-name: ", "is not a host name"),
        ("[drivers.\"a^b\"]\nendpoint = \"/x\"", "/etc/v.toml:1:", "driver name"),
        ("[drivers.a]\ntimeout = \"1s\"", "/etc/v.toml:1:1: drivers.a: ", "missing field `endpoint`"),
        ("[drivers.a]\nendpoint = \"x\"", "/etc/v.toml:2:12: drivers.a.endpoint: ", "the driver's socket"),
        ("root-dir = \"/a\"\nroot-dir = \"/b\"", "/etc/v.toml:2:1: ", "duplicate key"),
        ("root-dir = ", "/etc/v.toml:1:", ""),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(place), "{text:?}: {error}");
        assert!(error.contains(words), "{text:?}: {error}");
    }
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("v.toml");
    std::fs::write(&file, "root-dir = \"/file\"\nstate-dir = \"/file\"\nmanifest-dir = \"/file\"").unwrap();
    let flags = Flags {
        root_dir: Some("/flag".into()),
        manifest_dir: vec!["/flag/a".into(), "relative".into()],
        ..Flags::default()
    };
    let config = Config::load(Some(&file), &flags).unwrap();
    assert_eq!(config.root_dir, Path::new("/flag"));
    assert_eq!(config.state_dir, Path::new("/file"));
    assert_eq!(config.socket, Path::new("/run/volumed/control.sock"));
    let here = std::env::current_dir().unwrap();
    assert_eq!(config.manifest_dir, [PathBuf::from("/flag/a"), here.join("relative")]);
}

#[test]
fn only_a_file_that_was_named_must_be_there() {
    let missing = Config::load(Some(Path::new("/nonexistent/v.toml")), &Flags::default());
    assert!(matches!(missing, Err(ConfigError::Read { .. })), "{missing:?}");
}

#[test]
fn the_node_is_named_after_the_host_unless_it_is_set() {
    let named = Config { node_name: Some("n1".into()), ..Config::default() };
    assert_eq!(named.node().unwrap(), "n1");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(Config::default().node().unwrap(), host.trim().to_lowercase());
}
