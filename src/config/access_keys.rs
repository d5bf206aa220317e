//! `[[access_key]]`: the access keys whose signatures the gateway verifies and replaces by its own. Secrets come from
//! files, the environment or the configuration itself, and go to the key ring. They must not appear in an error.

use std::collections::HashSet;

use http::HeaderValue;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::files::Files;
use super::names::{AccessKeyId, ProjectId};
use super::secret::Secret;
use super::setting_error::SettingError;
use super::units::Allowed;
use crate::signing::ring::KeyRing;
use crate::signing::{AccessKey, Projects};

/// `[[access_key]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct AccessKeySettings {
    pub id: AccessKeyId,
    pub secret: Secret,
    /// Only temporary access keys have one.
    pub security_token: Option<Secret>,
    /// The projects that the key may be used for. `None`: any project.
    pub projects: Option<Vec<ProjectId>>,
}

/// An access key from environment variables.
#[derive(Clone, Debug)]
pub(crate) struct EnvironmentKey {
    pub id: String,
    pub secret: Secret,
    /// The variable with the id.
    pub origin: &'static str,
    /// The variable with the secret or with the path of its file.
    pub secret_origin: &'static str,
}

impl EnvironmentKey {
    /// The variable that caused an error, if this key did.
    pub(super) fn origin_of(&self, error: &SettingError) -> Option<&'static str> {
        let is_secret = error.is_about(&["access_key", &self.id, "secret"]);
        is_secret.then_some(self.secret_origin)
    }

    /// Adds the key to a table of settings. If an entry has the same id, its secret is replaced, because the
    /// environment takes precedence over the file.
    pub(super) fn put_into(&self, table: &mut Table) {
        let secret = self.secret.to_value();
        // `check_entries` refuses a value that is no list.
        let Value::Array(entries) = table.entry("access_key").or_insert_with(|| Value::Array(Vec::new())) else {
            return;
        };
        let is_it = |entry: &&mut Table| entry.get("id").and_then(Value::as_str) == Some(&self.id);
        match entries.iter_mut().filter_map(Value::as_table_mut).find(is_it) {
            Some(entry) => {
                entry.insert("secret".to_owned(), secret);
            }
            None => {
                let id = Value::String(self.id.clone());
                entries.push(Value::Table(Table::from_iter([("id".to_owned(), id), ("secret".to_owned(), secret)])));
            }
        }
    }
}

/// Checks the form of the entries and of their ids first, because later errors show both. A value in the wrong place
/// may be a secret.
pub(super) fn check_entries(table: &Table) -> Result<(), SettingError> {
    let Some(value) = table.get("access_key") else { return Ok(()) };
    let entries = value.as_array().filter(|entries| entries.iter().all(Value::is_table));
    let expected = "access_key: expected entries of the form [[access_key]], each with an id and a secret";
    for (index, entry) in entries.ok_or_else(|| SettingError::from(expected.to_owned()))?.iter().enumerate() {
        let is_id = |id: &Value| id.as_str().is_some_and(|id| id.parse::<AccessKeyId>().is_ok());
        if entry.get("id").is_some_and(|id| !is_id(id)) {
            let id = format!("access_key[{index}].id: (not shown, may be the secret) is not allowed: expected ");
            return Err(SettingError::from(id + AccessKeyId::ALLOWED));
        }
    }
    Ok(())
}

/// # Errors
/// The first project that may be a secret.
pub(super) fn check_projects(entries: &[AccessKeySettings]) -> Result<(), SettingError> {
    for (index, entry) in entries.iter().enumerate() {
        for (number, project) in entry.projects.iter().flatten().enumerate() {
            project.check_is_no_secret(&format!("access_key[{index}].projects[{number}]"))?;
        }
    }
    Ok(())
}

/// One line about an entry, for `check`.
pub(super) fn describe(entry: &AccessKeySettings) -> String {
    let projects = match &entry.projects {
        None => "any project".to_owned(),
        Some(projects) => projects.iter().map(|project| project.0.as_str()).collect::<Vec<_>>().join(", "),
    };
    let kind = if entry.security_token.is_some() { "temporary access key" } else { "access key" };
    format!("{kind} {}: the gateway verifies its signatures, for {projects}", entry.id)
}

/// # Errors
/// All errors of the entries.
pub(super) fn ring(entries: &[AccessKeySettings], files: &mut Files) -> Result<KeyRing, Vec<String>> {
    let mut seen = HashSet::new();
    let (mut keys, mut errors) = (Vec::new(), Vec::new());
    for entry in entries {
        let id = &entry.id.0;
        if !seen.insert(id) {
            errors.push(format!("access_key.{id}: appears twice: expected each id once"));
            // Other errors of this entry would be reported at the line of the first entry with the id.
            continue;
        }
        match key(entry, files) {
            Ok(key) => keys.push(key),
            Err(message) => errors.push(message),
        }
    }
    if errors.is_empty() { Ok(KeyRing::new(keys)) } else { Err(errors) }
}

fn key(entry: &AccessKeySettings, files: &mut Files) -> Result<AccessKey, String> {
    let id = &entry.id.0;
    let mut look_up =
        |name: &str, secret: &Secret| secret.look_up(files).map_err(|error| format!("access_key.{id}.{name}: {error}"));
    let secret = look_up("secret", &entry.secret)?;
    let token = entry.security_token.as_ref().map(|token| look_up("security_token", token)).transpose()?;
    let token = token.map(HeaderValue::try_from).transpose();
    let not_a_value = |_| format!("access_key.{id}.security_token: is not a valid header value");
    let projects = match &entry.projects {
        None => Projects::Any,
        Some(projects) => Projects::These(projects.iter().map(|project| project.0.clone()).collect()),
    };
    Ok(AccessKey::new(id.clone(), secret.as_bytes(), token.map_err(not_a_value)?, projects))
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    fn load(entry: &str) -> Result<Config, String> {
        let text = format!("region = \"r\"\n[[access_key]]\n{entry}");
        Config::from_layers("test.toml", &text, &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_comes_from_the_configuration_a_file_or_a_variable() {
        let file = std::env::temp_dir().join(format!("workspace-gateway-secret-{}", std::process::id()));
        std::fs::write(&file, "s\n").unwrap();
        for secret in ["\"s\"", &format!("{{ file = {file:?} }}"), "{ env = \"CARGO_PKG_NAME\" }"] {
            let config = load(&format!("id = \"AK\"\nsecret = {secret}")).unwrap();
            assert_eq!(config.keys.keys().map(|key| key.id()).collect::<Vec<_>>(), ["AK"], "{secret}");
        }
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn line_breaks_at_the_end_of_a_secret_are_ignored() {
        let key = |secret: &str| {
            let config = load(&format!("id = \"AK\"\nsecret = {secret:?}")).unwrap();
            config.keys.keys().map(|key| *key.fingerprint()).next()
        };
        for same in ["s\n", "s\r\n", "s\n\n"] {
            assert_eq!(key(same), key("s"), "{same:?}");
        }
    }

    #[test]
    fn no_secret_is_shown() {
        let entry = "id = \"AK\"\nsecret = \"hush-1\"\nsecurity_token = \"hush-2\"\nprojects = [\"p\"]";
        let config = load(entry).unwrap();
        let shown = format!("{}{:?}{:?}", config.to_toml(), config.settings, config.keys);
        assert!(shown.contains("AK") && !shown.contains("hush"), "{shown}");
        let read_back = Config::from_layers("f", &config.to_toml(), &[]).unwrap_err().to_string();
        assert!(read_back.contains("access_key.AK.secret") && read_back.contains("`check` shows"), "{read_back}");
        // The printed configuration can be read back if the secret is elsewhere.
        let config = load("id = \"AK\"\nsecret = { env = \"CARGO_PKG_NAME\" }").unwrap();
        assert_eq!(Config::from_layers("f", &config.to_toml(), &[]).unwrap().settings, config.settings);
    }

    #[test]
    fn errors_name_the_key_and_never_show_a_secret() {
        let key = |settings: &str| format!("id = \"AK\"\n{settings}");
        for (entry, expected) in [
            (
                "secret = \"hush\"".to_owned(),
                &["access_key[0]: missing field `id`, expected `id` and `secret` in each"][..],
            ),
            (key(""), &["access_key.AK: missing field `secret`, expected `id` and `secret` in each"]),
            (key("secret = \"\""), &["access_key.AK.secret", "is empty"]),
            (key("secret = 4711"), &["access_key.AK.secret", "expected a text, { file = "]),
            (key("secret = { file = \"/hush\" }"), &["AK.secret", "cannot read the file", "No such file"]),
            (key("secret = { file = \"/\" }"), &["AK.secret", "cannot read /: expected a regular file", "a directory"]),
            (
                key("secret = { env = \"hush\" }"),
                &["AK.secret", "the environment variable (name not shown, may be the secret) is not set"],
            ),
            (key("secret = { vault = \"hush\" }"), &["access_key.AK.secret", "expected a text, { file = "]),
            (key("secret = { file = \"hush\", env = \"hush\" }"), &["access_key.AK.secret", "expected a text"]),
            (key("secret = \"s\"\nsecurity_token = \"hush\\nhush\""), &["AK.security_token", "line breaks"]),
            (key("secret = \"s\"\nsecurity_token = \"hush\\u007f\""), &["AK.security_token", "line breaks"]),
            (key("secret = \" hush\""), &["access_key.AK.secret", "has blanks", "nothing else"]),
            (key("secret = \"s\"\nprojects = [\"a/b\"]"), &["access_key.AK.projects[0]", "not shown", "A-Z a-z 0-9"]),
            (
                key(&format!("secret = \"s\"\nprojects = [\"p\", {:?}]", "hush".repeat(10))),
                &["access_key.AK.projects[1]: (not shown, may be a secret)", "looks like a secret", "(line 5, column"],
            ),
            (
                key("secret = \"s\"\nprojects = \"hush\""),
                &["access_key.AK.projects: (not shown", "a list such as [\"012"],
            ),
            (key("secret = \"s\"\nsecert = \"hush\""), &["access_key.AK.secert: unknown field `secert`", "`secret`"]),
            (key("hush = \"s\""), &["access_key.AK: unknown field (not shown", "`secret`", "(line 4, column 1)"]),
            (key("\"hush. x[0]\" = \"s\""), &["access_key.AK: unknown field (not shown", "(line 4, column 1)"]),
            (key("hush.secret = \"s\""), &["access_key.AK: unknown field (not shown", "(line 4, column 1)"]),
            (key("secret = \"s\"\nsecret = \"hush\""), &["not TOML: line 5, column 1: duplicate key"]),
            (key("secret = \"s\"\nhush"), &["not TOML: line 5"]),
            (key("secret = \"s\"\n[[access_key]]\nid = \"AK\"\nsecret = \"t\""), &["access_key.AK", "twice"]),
            ("id = \"hush/+=\"\nsecret = \"AK\"".to_owned(), &["access_key[0].id: (not shown", "A-Z a-z 0-9"]),
            (
                format!("id = \"{}\"\nsecret = \"AK\"", "hush".repeat(10)),
                &["access_key[0].id: (not shown", "(line 3, column 1)"],
            ),
            ("id = 4711\nsecret = \"AK\"".to_owned(), &["access_key[0].id: (not shown", "A-Z a-z 0-9"]),
            (key("secret = \"s\"\n[[access_key]]\nid = \"hu sh\""), &["access_key[1].id: (not shown"]),
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

    #[test]
    fn a_value_in_place_of_entries_is_not_shown() {
        for wrong in [
            "access_key = \"hush\"",
            "access_key = [\"hush\"]",
            "access_key = [{ id = \"AK\", secret = \"hush\" }, \"hush\"]",
            "access_key = 4711",
            "access_key = 4711.0",
            "access_key = { id = \"AK\", secret = \"hush\" }",
            "[access_key]\nAK = \"hush\"",
        ] {
            let text = format!("region = \"r\"\n{wrong}");
            let error = Config::from_layers("test.toml", &text, &[]).unwrap_err().to_string();
            assert!(error.starts_with("test.toml: access_key: expected entries of the form [[access_key]]"), "{error}");
            assert!(!error.contains("hush") && !error.contains("4711"), "{error}");
        }
    }
}
