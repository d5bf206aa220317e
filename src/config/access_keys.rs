//! `[[access_key]]`: the access keys whose signatures the gateway verifies, and makes anew. Secrets come from
//! files, the environment or the configuration itself, and go to the key ring; nothing shows them.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use http::HeaderValue;
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Value;

use super::units::{AccessKeyId, ProjectId};
use crate::signing::ring::KeyRing;
use crate::signing::{AccessKey, Projects};

/// `[[access_key]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct AccessKeySettings {
    /// Its public half.
    pub id: AccessKeyId,
    /// Its secret half.
    pub secret: Secret,
    /// What goes with it, if it is temporary.
    pub security_token: Option<Secret>,
    /// The projects that it may be used for; any, if it doesn't say.
    pub projects: Option<Vec<ProjectId>>,
}

/// Something secret, or where it is.
#[derive(Clone, PartialEq)]
pub enum Secret {
    /// In the configuration.
    Inline(String),
    /// In a file, which has nothing else in it.
    File(PathBuf),
    /// In a variable of the environment.
    Environment(String),
}

/// What stands for a secret where the configuration is shown.
const HIDDEN: &str = "(not shown)";

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
        // Any value first: whatever is wrong with it may be the secret, and no error shows it.
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
    /// What it is. Files and variables end with a line break more often than secrets do.
    fn look_up(&self) -> Result<String, String> {
        let text = match self {
            Self::Inline(text) => text.clone(),
            Self::File(path) => {
                let text = std::fs::read_to_string(path);
                text.map_err(|error| format!("cannot read {}: {error}", path.display()))?
            }
            Self::Environment(name) => {
                // What is set but isn't text is not shown.
                let text = std::env::var(name);
                text.map_err(|_| format!("the variable {name} is not set in the environment, or is not UTF-8"))?
            }
        };
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() { Err(format!("{self:?} is empty: {ALLOWED}")) } else { Ok(text.to_owned()) }
    }

    /// The file that it is in.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Inline(_) | Self::Environment(_) => None,
        }
    }
}

/// The files that the entries name.
pub(super) fn files(entries: &[AccessKeySettings]) -> impl Iterator<Item = &Path> {
    entries
        .iter()
        .flat_map(|entry| [Some(&entry.secret), entry.security_token.as_ref()])
        .flatten()
        .filter_map(Secret::file)
}

/// The key ring that the entries amount to. What is wrong with one, and the file that should have its secret, are
/// told apart, so that somebody can wait for that file.
pub(super) fn ring(entries: &[AccessKeySettings]) -> Result<KeyRing, (String, Option<PathBuf>)> {
    let mut seen = HashSet::new();
    let mut keys = Vec::new();
    for entry in entries {
        let id = &entry.id.0;
        if !seen.insert(id) {
            return Err((format!("access_key.{id}: is there twice: expected each id once"), None));
        }
        let look_up = |name: &str, secret: &Secret| {
            let wrong = |wrong| (format!("access_key.{id}.{name}: {wrong}"), secret.file().map(Path::to_owned));
            secret.look_up().map_err(wrong)
        };
        let secret = look_up("secret", &entry.secret)?;
        let token = entry.security_token.as_ref().map(|token| look_up("security_token", token)).transpose()?;
        let token = token.map(HeaderValue::try_from).transpose();
        let not_a_value = |_| (format!("access_key.{id}.security_token: is not the value of a header"), None);
        let projects = match &entry.projects {
            None => Projects::Any,
            Some(projects) => Projects::These(projects.iter().map(|project| project.0.clone()).collect()),
        };
        keys.push(AccessKey::new(id.clone(), secret.as_bytes(), token.map_err(not_a_value)?, projects));
    }
    Ok(KeyRing::new(keys))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/rust-toolchain.toml");

    fn load(entry: &str) -> Result<Config, String> {
        let text = format!("region = \"r\"\n[[access_key]]\n{entry}");
        Config::from_layers("test.toml", &text, &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_may_be_in_three_places() {
        for secret in ["\"s\"".to_owned(), format!("{{ file = \"{FILE}\" }}"), "{ env = \"PATH\" }".to_owned()] {
            let config = load(&format!("id = \"AK\"\nsecret = {secret}")).unwrap();
            assert_eq!(config.keys.keys().map(|key| key.id()).collect::<Vec<_>>(), ["AK"], "{secret}");
        }
    }

    #[test]
    fn line_breaks_at_its_end_are_no_part_of_a_secret() {
        let key = |secret: &str| {
            let config = load(&format!("id = \"AK\"\nsecret = {secret:?}")).unwrap();
            config.keys.keys().map(|key| *key.fingerprint()).next()
        };
        for same in ["s\n", "s\r\n", "s\n\n"] {
            assert_eq!(key(same), key("s"), "{same:?}");
        }
        for other in [" s", "\ns", "s "] {
            assert_ne!(key(other), key("s"), "{other:?}");
        }
    }

    #[test]
    fn the_files_of_both_halves_are_known_and_the_one_that_is_missing_is_told() {
        let entry = "id = \"AK\"\nsecret = { file = \"/no/one\" }\nsecurity_token = { file = \"/no/other\" }";
        let entries = [toml::from_str::<AccessKeySettings>(entry).unwrap()];
        assert_eq!(files(&entries).collect::<Vec<_>>(), [Path::new("/no/one"), Path::new("/no/other")]);
        assert_eq!(ring(&entries).unwrap_err().1, Some(PathBuf::from("/no/one")));
    }

    #[test]
    fn no_secret_is_shown() {
        let entry = "id = \"AK\"\nsecret = \"hush-1\"\nsecurity_token = \"hush-2\"\nprojects = [\"p\"]";
        let config = load(entry).unwrap();
        let shown = format!("{}{:?}{:?}", config.to_toml(), config.settings, config.keys);
        assert!(shown.contains("AK") && !shown.contains("hush"), "{shown}");
        let fed_back = Config::from_layers("f", &config.to_toml(), &[]).unwrap_err().to_string();
        assert!(fed_back.contains("access_key.AK.secret") && fed_back.contains("`check` shows"), "{fed_back}");
        // What is elsewhere can be fed back.
        let config = load("id = \"AK\"\nsecret = { env = \"PATH\" }").unwrap();
        assert_eq!(Config::from_layers("f", &config.to_toml(), &[]).unwrap().settings, config.settings);
    }

    #[test]
    fn errors_name_the_key_and_never_show_a_secret() {
        let key = |rest: &str| format!("id = \"AK\"\n{rest}");
        for (entry, expected) in [
            ("secret = \"hush\"".to_owned(), &["access_key", "missing field `id`"][..]),
            (key(""), &["access_key", "missing field `secret`"]),
            (key("secret = \"\""), &["access_key.AK.secret", "is empty"]),
            (key("secret = 4711"), &["access_key.AK.secret", "expected a text, { file = "]),
            (key("secret = { file = \"/no/hush\" }").replace("hush", "such"), &["AK.secret", "cannot read /no/such"]),
            (key("secret = { env = \"NO_SUCH_VARIABLE\" }"), &["AK.secret", "NO_SUCH_VARIABLE is not set"]),
            (key("secret = { vault = \"hush\" }"), &["access_key.AK.secret", "expected a text, { file = "]),
            (key("secret = { file = \"hush\", env = \"hush\" }"), &["access_key.AK.secret", "expected a text"]),
            (key("secret = \"s\"\nsecurity_token = \"hush\\nhush\""), &["AK.security_token", "value of a header"]),
            (key("secret = \"s\"\nprojects = [\"a/b\"]"), &["access_key.AK.projects[0]", "a/b", "A-Z a-z 0-9"]),
            (key("secret = \"s\"\nsecert = \"hush\""), &["access_key", "unknown field `secert`", "`secret`"]),
            (key("secret = \"s\"\n[[access_key]]\nid = \"AK\"\nsecret = \"t\""), &["access_key.AK", "twice"]),
            ("id = \"a b\"\nsecret = \"hush\"".to_owned(), &["access_key.a b.id", "a b", "A-Z a-z 0-9"]),
            (key("secret = \"hush"), &["not TOML", "line 4"]),
            (key("secret = hush"), &["not TOML", "line 4"]),
        ] {
            let error = load(&entry).unwrap_err();
            for part in expected {
                assert!(error.contains(part), "{entry}\n{error}\n{part}");
            }
            assert!(!error.contains("hush") && !error.contains("4711"), "{error}");
        }
    }
}
