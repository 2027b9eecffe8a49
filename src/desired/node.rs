//! What the volumes of this node depend on besides its manifests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// This node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name: attachments to others do not count.
    pub name: String,
    /// Its labels, which PersistentVolumes' nodeAffinity may name; `kubernetes.io/hostname` is its name unless it is among them.
    pub labels: BTreeMap<String, String>,
    /// Where its tokens are.
    pub tokens: TokenFiles,
}

/// The files with service-account tokens that the configuration names: there is no API server to issue one (kubelet.md 5.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenFiles {
    /// By namespace, service account and audience.
    files: BTreeMap<(String, String, String), PathBuf>,
}

impl TokenFiles {
    /// Adds the file with the token of a service account for an audience; `""` is the API server's default audience. One that
    /// is there already is replaced: duplicates are the configuration's to refuse.
    pub fn insert(
        &mut self,
        namespace: impl Into<String>,
        account: impl Into<String>,
        audience: impl Into<String>,
        file: impl Into<PathBuf>,
    ) {
        self.files.insert((namespace.into(), account.into(), audience.into()), file.into());
    }

    /// Returns the file with the token of a service account for an audience.
    pub fn file(&self, namespace: &str, account: &str, audience: &str) -> Option<&Path> {
        let name = (namespace.to_owned(), account.to_owned(), audience.to_owned());
        self.files.get(&name).map(PathBuf::as_path)
    }
}
