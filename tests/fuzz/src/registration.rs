//! A plugin's answer to GetInfo: what becomes of it is a driver's name, a socket, and one sentence for a plugin that is refused.

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message as _;
use volumed::csi::fuzz::registration;
use volumed::model::{DriverName, Layout};
use volumed::proto::registration::PluginInfo;

/// The longest path that a socket's address takes, with room for the name through which volumed reaches it.
const LONGEST_SOCKET: usize = 104;

/// What is accepted is a driver whose names lead nowhere but into its own directories; what is refused is told in a sentence.
pub fn check(bytes: &[u8]) {
    let Ok(info) = PluginInfo::decode(bytes) else { return };
    let socket = Path::new("/var/lib/kubelet/plugins_registry/d.sock");
    let taken = BTreeSet::from([DriverName::new("taken.example.com").expect("a name")]);
    let name_fits = DriverName::new(info.name.clone()).is_ok_and(|name| !taken.contains(&name));
    let path_fits = info.endpoint.is_empty()
        || (info.endpoint.starts_with('/')
            && info.endpoint.len() <= LONGEST_SOCKET
            && !info.endpoint.contains('\0'));
    let fits = info.r#type == "CSIPlugin" && name_fits && path_fits;
    match registration(socket, info.clone(), &taken) {
        Ok((name, path)) => {
            assert!(fits, "{info:?} was accepted");
            let one = |version: &str| {
                let version = version.trim_start();
                version.strip_prefix('v').unwrap_or(version).starts_with("1.")
            };
            assert!(info.supported_versions.iter().any(|v| one(v)), "{info:?} has no version 1.x");
            assert_eq!(name.as_str(), info.name);
            if info.endpoint.is_empty() {
                assert_eq!(path, socket);
            } else {
                assert_eq!(path, Path::new(&info.endpoint));
            }
            let volume = Layout::new("/var/lib/kubelet").csi_volume(&name, "handle");
            let parent = volume.parent().expect("it has one");
            assert_eq!(parent.as_path(), Path::new("plugins/kubernetes.io/csi").join(&info.name));
        }
        Err(why) => {
            super::assert_fit_for_people("the refusal", &why, 1024);
            let plain = ["1.0.0", "v1.0", "1.13.0"];
            let versions = &info.supported_versions;
            let version_fits = !versions.is_empty() && versions.iter().all(|v| plain.contains(&v.as_str()));
            assert!(!(fits && version_fits), "{info:?} was refused: {why}");
        }
    }
}
