//! An access key that the environment tells of, for deployments without a file of settings.

use std::ffi::OsString;

use crate::config::secret::Secret;
use crate::config::{ConfigError, GivenKey};

const ID: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_ID";
const SECRET: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET";
const SECRET_FILE: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET_FILE";

/// The variables.
pub(super) const VARIABLES: [&str; 3] = [ID, SECRET, SECRET_FILE];

/// The access key, if there is one. A variable that is set but empty counts as not set.
///
/// # Errors
/// If a part of it is missing, or there is one too many.
pub(super) fn read(environment: impl Fn(&str) -> Option<OsString>) -> Result<Option<GivenKey>, ConfigError> {
    let wrong = |origin: &str, message: String| Err(ConfigError::Invalid { origin: origin.to_owned(), message });
    let given = VARIABLES.map(|name| environment(name).filter(|value| !value.is_empty()));
    let (id, secret) = match given {
        [None, None, None] => return Ok(None),
        [None, secret, _] => {
            let set = if secret.is_some() { SECRET } else { SECRET_FILE };
            return wrong(set, format!("is set alone: expected {ID} with it"));
        }
        [Some(_), None, None] => return wrong(ID, format!("is set alone: expected {SECRET} or {SECRET_FILE} with it")),
        [Some(_), Some(_), Some(_)] => {
            return wrong(SECRET_FILE, format!("is set, and {SECRET} as well: expected only one of the two"));
        }
        [Some(id), Some(_), None] => (id, (Secret::Environment(SECRET.to_owned()), SECRET)),
        [Some(id), None, Some(path)] => (id, (Secret::File(path.into()), SECRET_FILE)),
    };
    let (secret, secret_origin) = secret;
    Ok(Some(GivenKey { id: id.to_string_lossy().into_owned(), secret, origin: ID, secret_origin }))
}
