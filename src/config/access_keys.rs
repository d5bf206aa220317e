//! `[[access_key]]`: the access keys whose signatures the gateway verifies, and makes anew. Secrets come from
//! files, the environment or the configuration itself, and go to the key ring; nothing shows them.

use std::collections::HashSet;

use http::HeaderValue;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::files::Files;
use super::mistake::Mistake;
use super::names::{AccessKeyId, ProjectId};
use super::secret::Secret;
use super::units::Allowed;
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

/// An access key that the environment tells of, and by which variables.
#[derive(Clone, Debug)]
pub(crate) struct GivenKey {
    /// Its public half.
    pub id: String,
    /// Where its secret half is.
    pub secret: Secret,
    /// The variable that has the public half.
    pub origin: &'static str,
    /// The variable that has the secret half, or says where it is.
    pub secret_origin: &'static str,
}

impl GivenKey {
    /// The variable to blame for a mistake, if one of them is.
    pub(super) fn origin_of(&self, mistake: &Mistake) -> Option<&'static str> {
        let is_secret = mistake.is_about(&["access_key", &self.id, "secret"]);
        is_secret.then_some(self.secret_origin)
    }

    /// Adds it to a table of settings. If there is an entry with its id, the secret of that is replaced: the environment
    /// beats the file.
    pub(super) fn put_into(&self, table: &mut Table) {
        let (place, value) = match &self.secret {
            Secret::Inline(_) => return,
            Secret::File(path) => ("file", path.to_string_lossy().into_owned()),
            Secret::Environment(name) => ("env", name.clone()),
        };
        let secret = Value::Table(Table::from_iter([(place.to_owned(), Value::String(value))]));
        // What stands there instead of a list is refused for itself.
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

/// Checks what is shown of entries, or in place of them, before anything is: it may be a secret in the wrong place.
pub(super) fn are_entries(table: &Table) -> Result<(), Mistake> {
    let Some(value) = table.get("access_key") else { return Ok(()) };
    let entries = value.as_array().filter(|entries| entries.iter().all(Value::is_table));
    let expected = "access_key: expected entries of the form [[access_key]], each with an id and a secret";
    for (index, entry) in entries.ok_or_else(|| Mistake::from(expected.to_owned()))?.iter().enumerate() {
        let is_id = |id: &Value| id.as_str().is_some_and(|id| id.parse::<AccessKeyId>().is_ok());
        if entry.get("id").is_some_and(|id| !is_id(id)) {
            let id = format!("access_key[{index}].id: (not shown, for it may be the secret) is not allowed: expected ");
            return Err(Mistake::from(id + AccessKeyId::ALLOWED));
        }
    }
    Ok(())
}

/// What an entry amounts to, for a person.
pub(super) fn describe(entry: &AccessKeySettings) -> String {
    let projects = match &entry.projects {
        None => "any project".to_owned(),
        Some(projects) => projects.iter().map(|project| project.0.as_str()).collect::<Vec<_>>().join(", "),
    };
    let kind = if entry.security_token.is_some() { "temporary access key" } else { "access key" };
    format!("{kind} {}: its signatures are verified, for {projects}", entry.id)
}

/// The key ring that the entries amount to, or what is wrong with them.
pub(super) fn ring(entries: &[AccessKeySettings], files: &mut Files) -> Result<KeyRing, Vec<String>> {
    let mut seen = HashSet::new();
    let (mut keys, mut wrong) = (Vec::new(), Vec::new());
    for entry in entries {
        let id = &entry.id.0;
        if !seen.insert(id) {
            wrong.push(format!("access_key.{id}: is there twice: expected each id once"));
            // What else is wrong with it would be told at the place of the first.
            continue;
        }
        match key(entry, files) {
            Ok(key) => keys.push(key),
            Err(message) => wrong.push(message),
        }
    }
    if wrong.is_empty() { Ok(KeyRing::new(keys)) } else { Err(wrong) }
}

/// The key of an entry.
fn key(entry: &AccessKeySettings, files: &mut Files) -> Result<AccessKey, String> {
    let id = &entry.id.0;
    let mut look_up =
        |name: &str, secret: &Secret| secret.look_up(files).map_err(|wrong| format!("access_key.{id}.{name}: {wrong}"));
    let secret = look_up("secret", &entry.secret)?;
    let token = entry.security_token.as_ref().map(|token| look_up("security_token", token)).transpose()?;
    let token = token.map(HeaderValue::try_from).transpose();
    let not_a_value = |_| format!("access_key.{id}.security_token: is not the value of a header");
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
    fn a_secret_may_be_in_three_places() {
        let file = std::env::temp_dir().join(format!("workspace-gateway-secret-{}", std::process::id()));
        std::fs::write(&file, "s\n").unwrap();
        for secret in ["\"s\"", &format!("{{ file = {file:?} }}"), "{ env = \"CARGO_PKG_NAME\" }"] {
            let config = load(&format!("id = \"AK\"\nsecret = {secret}")).unwrap();
            assert_eq!(config.keys.keys().map(|key| key.id()).collect::<Vec<_>>(), ["AK"], "{secret}");
        }
        std::fs::remove_file(file).unwrap();
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
        let config = load("id = \"AK\"\nsecret = { env = \"CARGO_PKG_NAME\" }").unwrap();
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
            (key("secret = { file = \"/hush\" }"), &["AK.secret", "cannot read the file", "No such file"]),
            (key("secret = { file = \"/\" }"), &["AK.secret", "cannot read /: expected a regular file", "a directory"]),
            (key("secret = { env = \"hush\" }"), &["AK.secret", "is not set in the environment"]),
            (key("secret = { vault = \"hush\" }"), &["access_key.AK.secret", "expected a text, { file = "]),
            (key("secret = { file = \"hush\", env = \"hush\" }"), &["access_key.AK.secret", "expected a text"]),
            (key("secret = \"s\"\nsecurity_token = \"hush\\nhush\""), &["AK.security_token", "line breaks"]),
            (key("secret = \"s\"\nsecurity_token = \"hush\\u007f\""), &["AK.security_token", "line breaks"]),
            (key("secret = \" hush\""), &["access_key.AK.secret", "has blanks", "nothing besides"]),
            (key("secret = \"s\"\nprojects = [\"a/b\"]"), &["access_key.AK.projects[0]", "not shown", "A-Z a-z 0-9"]),
            (key("secret = \"s\"\nprojects = \"hush\""), &["access_key.AK.projects: (not shown", "a sequence"]),
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
    fn what_stands_where_entries_should_is_not_shown() {
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
