//! Reads secrets from environment variables, for deployments without a configuration file. There are no flags for
//! them: other users of the machine could read a secret in the command line.

use std::ffi::OsString;

use crate::config::secret::Secret;
use crate::config::{ConfigError, EnvironmentKey, Override};

const KEY_ID: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_ID";
const KEY_SECRET: Pair =
    Pair { value: "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET", file: "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET_FILE" };
const ADMIN_TOKEN: Pair = Pair { value: "WORKSPACE_GATEWAY_ADMIN_TOKEN", file: "WORKSPACE_GATEWAY_ADMIN_TOKEN_FILE" };

pub(super) const VARIABLES: [&str; 5] =
    [KEY_ID, KEY_SECRET.value, KEY_SECRET.file, ADMIN_TOKEN.value, ADMIN_TOKEN.file];

/// The variables of a secret: one has the secret, the other the path of its file.
struct Pair {
    value: &'static str,
    file: &'static str,
}

impl Pair {
    /// The secret, and the variable that it is from. A variable that is set but empty counts as not set.
    ///
    /// # Errors
    /// If both variables are set.
    fn read(
        &self,
        environment: &impl Fn(&str) -> Option<OsString>,
    ) -> Result<Option<(Secret, &'static str)>, ConfigError> {
        let given = |name| environment(name).filter(|value| !value.is_empty());
        match (given(self.value), given(self.file)) {
            (None, None) => Ok(None),
            (Some(_), None) => Ok(Some((Secret::Environment(self.value.to_owned()), self.value))),
            (None, Some(path)) => Ok(Some((Secret::File(path.into()), self.file))),
            (Some(_), Some(_)) => {
                wrong(self.file, format!("is set together with {}: expected only one of the two", self.value))
            }
        }
    }
}

fn wrong<T>(origin: &str, message: String) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { origin: origin.to_owned(), message })
}

/// # Errors
/// If the id or the secret is missing, or the secret is given twice.
pub(super) fn access_key(
    environment: &impl Fn(&str) -> Option<OsString>,
) -> Result<Option<EnvironmentKey>, ConfigError> {
    let id = environment(KEY_ID).filter(|id| !id.is_empty());
    match (id, KEY_SECRET.read(environment)?) {
        (None, None) => Ok(None),
        (None, Some((_, set))) => wrong(set, format!("is set without an id: expected {KEY_ID}, too")),
        (Some(_), None) => {
            let Pair { value, file } = KEY_SECRET;
            wrong(KEY_ID, format!("is set without a secret: expected {value} or {file}, too"))
        }
        (Some(id), Some((secret, secret_origin))) => {
            let id = id.to_string_lossy().into_owned();
            Ok(Some(EnvironmentKey { id, secret, origin: KEY_ID, secret_origin }))
        }
    }
}

/// # Errors
/// If the token is given twice.
pub(super) fn admin_token(environment: &impl Fn(&str) -> Option<OsString>) -> Result<Option<Override>, ConfigError> {
    let token = ADMIN_TOKEN.read(environment)?;
    Ok(token.map(|(secret, origin)| Override {
        path: &["listen", "admin_token"],
        value: secret.to_value(),
        origin: origin.to_owned(),
    }))
}
