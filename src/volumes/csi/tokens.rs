//! Service-account tokens: there is no issuer here, so they come from files that the configuration names (csi.md 2.10).
//!
//! They are read anew for each call, so that who renews the files renews the tokens; they are in no record.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::model::{Effect, Failure, Millis, TokenRequests};
use crate::volumes::host_failure;

/// The key under which a driver finds the tokens.
pub(super) const KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// One token, as a driver reads it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    token: String,
    expiration_timestamp: String,
}

/// Reads the tokens of all audiences and returns them as JSON.
pub(super) async fn read(host: &dyn Host, requests: &TokenRequests) -> Result<String, Failure> {
    let mut tokens = BTreeMap::new();
    for (audience, (file, valid_s)) in &requests.files {
        let read = host.read_token(file.clone()).await;
        let (token, changed) = read.map_err(|error| host_failure(&error, Effect::NotDone))?;
        let expires = expiry(&token).unwrap_or(changed.saturating_div(1000).saturating_add(*valid_s));
        let expiration_timestamp = jiff::Timestamp::from_second(expires)
            .map_err(|_| {
                Failure::not_done(
                    "token",
                    format!("the token in {} expires at a time that is none", file.display()),
                    "write another token",
                )
            })?
            .to_string();
        tokens.insert(audience, Token { token, expiration_timestamp });
    }
    // Maps of strings can always be written.
    Ok(serde_json::to_string(&tokens).unwrap_or_default())
}

/// Returns when a token says that it expires, s since the epoch; `None` for what is no JWT with `exp`.
fn expiry(token: &str) -> Option<Millis> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Claims>(&payload).ok().map(|claims| claims.exp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_itself_when_it_expires() {
        let payload = URL_SAFE_NO_PAD.encode(r#"{"aud":["a"],"exp":1800000000}"#);
        assert_eq!(expiry(&format!("head.{payload}.signature")), Some(1_800_000_000));
        for none in ["", "opaque", "a.b.c", "a.e30.c"] {
            assert_eq!(expiry(none), None, "{none:?}");
        }
    }
}
