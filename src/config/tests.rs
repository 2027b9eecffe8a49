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
         [drivers.\"nfs.csi.k8s.io\"]\nendpoint = \"unix:///run/nfs.sock\"\ntimeout = \"5m\"\n\
         [[tokens]]\nservice-account = \"db/robot\"\naudience = \"vault\"\nfile = \"/run/tokens/vault\"\n\
         [[tokens]]\nservice-account = \"db/robot\"\naudience = \"\"\nfile = \"/run/tokens/api\"\n\
         [node-labels]\ndisk = \"nvme\"\n",
    );
    let driver = DriverConfig { endpoint: "/run/nfs.sock".into(), timeout: Some(Duration::from_secs(300)) };
    let token = |audience: &str, file: &str| TokenConfig {
        service_account: ServiceAccount { namespace: "db".to_owned(), name: "robot".to_owned() },
        audience: audience.to_owned(),
        file: file.into(),
    };
    let expected = Config {
        manifest_dir: vec!["/a".into(), "/b".into()],
        root_dir: "/r".into(),
        state_dir: "/s".into(),
        socket: "/c.sock".into(),
        node_name: Some("n1".into()),
        node_labels: [("disk".to_owned(), "nvme".to_owned())].into(),
        group: Some("volumes".into()),
        removal_grace: Duration::from_millis(500),
        brake_release_after: Some(Duration::from_secs(3600)),
        rpc_timeout: Duration::from_secs(30),
        log_level: LogLevel::Debug,
        drivers: [(DriverName::new("nfs.csi.k8s.io").unwrap(), driver)].into(),
        tokens: vec![token("vault", "/run/tokens/vault"), token("", "/run/tokens/api")],
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

#[test]
fn a_token_file_belongs_to_one_service_account_and_one_audience() {
    let entry = |account: &str, audience: &str, file: &str| {
        format!("[[tokens]]\nservice-account = \"{account}\"\naudience = \"{audience}\"\nfile = \"{file}\"\n")
    };
    let first = entry("a/b", "x", "/t");
    for other in [entry("a/b", "y", "/t"), entry("a/c", "x", "/t"), entry("c/b", "x", "/t")] {
        assert_eq!(parse(&format!("{first}{other}")).unwrap().tokens.len(), 2);
    }
    let error = parse(&format!("{first}{}", entry("a/b", "x", "/u"))).unwrap_err();
    assert!(error.contains("tokens: service account a/b has two files for audience \"x\""), "{error}");
    assert!(error.contains("write [[tokens]]"), "{error}");
}

#[test]
fn a_wrong_token_entry_is_said_with_its_place_and_the_remedy() {
    for (text, place, words) in [
        ("service-account = \"a/b\"", "/etc/v.toml:1:1: tokens[0]: ", "missing field `audience`"),
        ("service-account = \"robot\"", "/etc/v.toml:2:19: tokens[0].service-account: ", "default/robot"),
        ("service-account = \"a/b/c\"", "/etc/v.toml:2:19: tokens[0].service-account: ", "default/robot"),
        ("service-account = \"../b\"", "/etc/v.toml:2:19: tokens[0].service-account: ", "default/robot"),
        ("service-account = \"A/b\"", "/etc/v.toml:2:19: tokens[0].service-account: ", "default/robot"),
        ("service-account = \"a/\"", "/etc/v.toml:2:19: tokens[0].service-account: ", "default/robot"),
        ("audience = 3", "/etc/v.toml:2:12: tokens[0].audience: ", "the CSIDriver asks for"),
        ("file = \"t\"", "/etc/v.toml:2:8: tokens[0].file: ", "absolute path"),
        ("path = \"/t\"", "/etc/v.toml:2:1: tokens[0].path: ", "unknown field `path`"),
    ] {
        let error = parse(&format!("[[tokens]]\n{text}")).unwrap_err();
        assert!(error.starts_with(place), "{text:?}: {error}");
        assert!(error.contains(words), "{text:?}: {error}");
    }
}
