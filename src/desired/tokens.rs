//! CSIDriver.tokenRequests: which file has the token of the pod's service account for each audience (kubelet.md 5.3).

use std::collections::BTreeMap;

use k8s_openapi::api::storage::v1::CSIDriverSpec;

use super::hold;
use super::node::TokenFiles;
use super::pod::PodView;
use crate::model::{DriverName, Hold, HoldCode, TokenRequests};

/// For how many seconds a token is asked for when the request does not say (kubelet.md 4.4).
const DEFAULT_EXPIRATION: i64 = 3600;

/// Returns the tokens that a driver asks for; `None` when it asks for none.
///
/// # Errors
/// The hold, when a request has no meaning, or the configuration names no file for it.
pub(super) fn requested(
    files: &TokenFiles,
    pod: &PodView<'_>,
    spec: Option<&CSIDriverSpec>,
    driver: &DriverName,
) -> Result<Option<TokenRequests>, Hold> {
    let Some(spec) = spec else { return Ok(None) };
    let requests = spec.token_requests.as_deref().unwrap_or_default();
    if requests.is_empty() {
        return Ok(None);
    }
    let (namespace, account) = (pod.identity.namespace.as_str(), pod.service_account);
    let mut found = BTreeMap::new();
    let mut lacking = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let bad = |problem: String, remedy: &str| {
            hold::invalid(format!("CSIDriver {driver}: spec.tokenRequests[{i}].{problem}"), remedy)
        };
        let expiration = request.expiration_seconds.unwrap_or(DEFAULT_EXPIRATION);
        if expiration <= 0 {
            return Err(bad(
                format!("expirationSeconds {expiration} is no time at all"),
                "write for how many seconds a token is to be valid, or remove expirationSeconds",
            ));
        }
        let audience = &request.audience;
        match files.file(namespace, account, audience) {
            None => lacking.push(audience),
            Some(file) => {
                if found.insert(audience.clone(), (file.to_owned(), expiration)).is_some() {
                    return Err(bad(
                        format!("audience {audience:?} is that of another request, too"),
                        "name each audience once",
                    ));
                }
            }
        }
    }
    match lacking.first() {
        None => {
            let in_secrets = spec.service_account_token_in_secrets == Some(true);
            Ok(Some(TokenRequests { in_secrets, files: found }))
        }
        Some(first) => {
            let audiences = lacking.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(", ");
            Err(hold::hold(
                HoldCode::NotSupported,
                format!(
                    "CSIDriver {driver}: spec.tokenRequests: there is no token issuer here, and the configuration names no \
                     file with a token of service account {namespace}/{account} for audience {audiences}"
                ),
                format!(
                    "add [[tokens]] with service-account = \"{namespace}/{account}\", audience = {first:?} and \
                     file = \"/path/of/the/token\" to volumed.toml and restart volumed, or remove tokenRequests from the \
                     CSIDriver if the driver can do without"
                ),
            ))
        }
    }
}
