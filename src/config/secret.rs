//! Settings that are secrets: in the configuration itself, in a file, or in an environment variable. No error, log or
//! printed configuration may show a secret.

use std::env::VarError;
use std::fmt;
use std::path::PathBuf;

use constant_time_eq::constant_time_eq_32;
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::{Table, Value};

use super::files::Files;
use super::read_file::secret_path;

/// A secret, or where it is.
#[derive(Clone, PartialEq)]
pub enum Secret {
    Inline(String),
    /// The path of a file that contains nothing else.
    File(PathBuf),
    /// The name of an environment variable.
    Environment(String),
}

/// Shown in place of a secret.
const HIDDEN: &str = "(not shown)";

const BYTE_ORDER_MARK: char = '\u{feff}';

const ALLOWED: &str = "expected a text, { file = \"/path\" } or { env = \"NAME\" }";

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => f.write_str(HIDDEN),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "variable {name}"),
        }
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut place = match self {
            Self::Inline(_) => return serializer.serialize_str(HIDDEN),
            Self::File(_) | Self::Environment(_) => serializer.serialize_map(Some(1))?,
        };
        match self {
            Self::File(path) => place.serialize_entry("file", path)?,
            Self::Environment(name) => place.serialize_entry("env", name)?,
            Self::Inline(_) => {}
        }
        place.end()
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As any value first: serde's own errors would show a wrong value, which may be the secret.
        match Value::deserialize(deserializer)? {
            Value::String(text) if text == HIDDEN => Err(D::Error::custom(format!(
                "{HIDDEN:?} is what `check` shows in place of a secret that is in the file: {ALLOWED}"
            ))),
            Value::String(text) => Ok(Self::Inline(text)),
            Value::Table(place) if place.len() == 1 => match place.into_iter().next() {
                Some((name, Value::String(path))) if name == "file" => Ok(Self::File(path.into())),
                Some((name, Value::String(variable))) if name == "env" => Ok(Self::Environment(variable)),
                _ => Err(D::Error::custom(ALLOWED)),
            },
            _ => Err(D::Error::custom(ALLOWED)),
        }
    }
}

impl Secret {
    /// In the form of the file. An inline secret is in it.
    pub(crate) fn to_value(&self) -> Value {
        let (place, value) = match self {
            Self::Inline(text) => return Value::String(text.clone()),
            Self::File(path) => ("file", path.to_string_lossy().into_owned()),
            Self::Environment(name) => ("env", name.clone()),
        };
        Value::Table(Table::from_iter([(place.to_owned(), Value::String(value))]))
    }

    /// Reads the secret. Line breaks at its end are removed, because files often end with one.
    pub(super) fn look_up(&self, files: &mut Files) -> Result<String, String> {
        let (text, source) = match self {
            Self::Inline(text) => (text.clone(), None),
            Self::File(path) => {
                let shown = secret_path(path);
                let text = files.read(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
                (text, Some(shown))
            }
            Self::Environment(name) => {
                // If no variable has this name, the name may be the secret itself.
                let text = std::env::var(name).map_err(|error| match error {
                    VarError::NotPresent => {
                        "the environment variable (name not shown, may be the secret) is not set".to_owned()
                    }
                    VarError::NotUnicode(_) => format!("the variable {name} is not UTF-8"),
                })?;
                (text, Some(format!("the variable {name}")))
            }
        };
        // Editors and shells of Windows may begin a file with a byte order mark (RFC 3629 §6).
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text).trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(match source {
                Some(source) => format!("{source} is empty: expected the secret there"),
                None => format!("is empty: {ALLOWED}"),
            });
        }
        // For example a file that also contains a heading or the id.
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(match source {
                Some(source) => {
                    format!("{source} has blanks or line breaks: expected the secret there, and nothing else")
                }
                None => format!("has blanks or line breaks: {ALLOWED}, and nothing else"),
            });
        }
        Ok(text.to_owned())
    }
}

/// The minimum length of the admin token, in characters. It makes guessing impractical.
const MIN_TOKEN_LENGTH: usize = 16;

/// The token that requests to the admin listener must have. Only a hash of it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken(blake3::Hash);

impl AdminToken {
    pub(super) fn look_up(secret: &Secret, files: &mut Files) -> Result<Self, String> {
        let token = secret.look_up(files).map_err(|error| format!("listen.admin_token: {error}"))?;
        if token.len() < MIN_TOKEN_LENGTH {
            return Err(format!("listen.admin_token: is too short: expected at least {MIN_TOKEN_LENGTH} characters"));
        }
        Ok(Self(blake3::hash(token.as_bytes())))
    }

    /// Compares in constant time.
    pub fn is(&self, given: &[u8]) -> bool {
        constant_time_eq_32(self.0.as_bytes(), blake3::hash(given).as_bytes())
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_variable_says_what_is_expected_there() {
        // Cargo sets the variables. This package has no license file, and its description has blanks.
        for (name, expected) in [
            ("CARGO_PKG_LICENSE_FILE", "the variable CARGO_PKG_LICENSE_FILE is empty: expected the secret there"),
            ("CARGO_PKG_DESCRIPTION", "has blanks or line breaks: expected the secret there, and nothing else"),
        ] {
            let error = Secret::Environment(name.to_owned()).look_up(&mut Files::default()).unwrap_err();
            assert!(error.ends_with(expected), "{error}");
        }
        let error = Secret::Inline(String::new()).look_up(&mut Files::default()).unwrap_err();
        assert_eq!(error, format!("is empty: {ALLOWED}"));
    }
}
