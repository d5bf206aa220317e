//! Reads an access key from environment variables, for deployments without a configuration file. There are no flags for
//! it: other users of the machine could read a secret in the command line.

use std::ffi::OsString;

use crate::config::secret::Secret;
use crate::config::{ConfigError, EnvironmentKey};

const ID: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_ID";
const SECRET: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET";
const SECRET_FILE: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET_FILE";

pub(super) const VARIABLES: [&str; 3] = [ID, SECRET, SECRET_FILE];

/// A variable that is set but empty counts as not set.
///
/// # Errors
/// If the id or the secret is missing, or the secret is given twice.
pub(super) fn read(environment: impl Fn(&str) -> Option<OsString>) -> Result<Option<EnvironmentKey>, ConfigError> {
    let wrong = |origin: &str, message: String| Err(ConfigError::Invalid { origin: origin.to_owned(), message });
    let given = VARIABLES.map(|name| environment(name).filter(|value| !value.is_empty()));
    let (id, secret) = match given {
        [None, None, None] => return Ok(None),
        [None, secret, _] => {
            let set = if secret.is_some() { SECRET } else { SECRET_FILE };
            return wrong(set, format!("is set without an id: expected {ID}, too"));
        }
        [Some(_), None, None] => {
            return wrong(ID, format!("is set without a secret: expected {SECRET} or {SECRET_FILE}, too"));
        }
        [Some(_), Some(_), Some(_)] => {
            return wrong(SECRET_FILE, format!("is set together with {SECRET}: expected only one of the two"));
        }
        [Some(id), Some(_), None] => (id, (Secret::Environment(SECRET.to_owned()), SECRET)),
        [Some(id), None, Some(path)] => (id, (Secret::File(path.into()), SECRET_FILE)),
    };
    let (secret, secret_origin) = secret;
    Ok(Some(EnvironmentKey { id: id.to_string_lossy().into_owned(), secret, origin: ID, secret_origin }))
}
