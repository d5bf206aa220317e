//! Errors of the configuration, for the operator. No message contains a secret.

use std::path::PathBuf;

use thiserror::Error;

use crate::proxy_config::InvalidProxy;

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error(
        "region is not set, and neither are both upstream URLs: expected --region cn-north-4, or --workspace-url and \
         --appstream-url, or the same in the environment or the file"
    )]
    NoUpstream,
    /// The file is not TOML, or a setting is unknown or has a value that is not allowed.
    #[error("{origin}: {message}")]
    Invalid {
        /// The file, flag or environment variable that the value comes from.
        origin: String,
        /// The setting, its value and what is allowed.
        message: String,
    },
    #[error("{}", one_line(.0))]
    Several(Vec<ConfigError>),
    /// `HTTPS_PROXY` is invalid.
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
}

impl ConfigError {
    /// Combines errors into one. `None` if there are none.
    pub(super) fn together(mut all: Vec<Self>) -> Option<Self> {
        match all.len() {
            0 | 1 => all.pop(),
            _ => Some(Self::Several(all)),
        }
    }

    /// Each single error.
    pub fn each(&self) -> &[Self] {
        match self {
            Self::Several(all) => all,
            one => std::slice::from_ref(one),
        }
    }
}

/// The most characters of a message without values.
const LONGEST: usize = 1_000;

impl ConfigError {
    /// The message without the values that were given: whoever may see the status page may see it, and a secret may have
    /// been put into the wrong place. What is expected stays.
    pub fn without_values(&self) -> String {
        let one = |error: &Self| match error {
            Self::Invalid { origin, message } => format!("{origin}: {}", without_values(message)),
            other => other.to_string(),
        };
        let all = self.each().iter().map(one).collect::<Vec<_>>().join("; ");
        match all.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}…", &all[..end]),
            None => all,
        }
    }
}

/// Replaces what is in quotes before what is expected.
fn without_values(message: &str) -> String {
    let is_value = message.contains("invalid type: ") || message.contains("invalid value: ");
    let (mut shown, mut open) = (String::new(), None);
    let mut characters = message.chars();
    loop {
        let rest = characters.as_str();
        let Some(character) = characters.next() else { return shown };
        match open {
            None if rest.starts_with("expected ") => return shown + rest,
            Some(_) if character == '\\' => drop(characters.next()),
            Some(quote) if character == quote => open = None,
            Some(_) => {}
            None if character == '"' || (character == '`' && is_value) => {
                open = Some(character);
                shown += "(not shown)";
            }
            None => shown.push(character),
        }
    }
}

fn one_line(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_without_values_says_where_the_mistake_is_and_what_is_expected() {
        for (message, expected) in [
            (
                r#"cache.ttl: invalid value: string "hu\"sh", expected a duration such as "5m""#,
                r#"cache.ttl: invalid value: string (not shown), expected a duration such as "5m""#,
            ),
            (
                r#"cache.ttl: invalid value: string "is expected secret", expected a duration"#,
                "cache.ttl: invalid value: string (not shown), expected a duration",
            ),
            (
                "listen.admin_token: invalid type: integer `12345`, expected a string",
                "listen.admin_token: invalid type: integer (not shown), expected a string",
            ),
            (
                r#"operation.A.path: "hush" is not allowed: expected a path"#,
                "operation.A.path: (not shown) is not allowed: expected a path",
            ),
            (
                "cache.tll: unknown field `tll` (did you mean `ttl`?), expected one of `ttl`",
                "cache.tll: unknown field `tll` (did you mean `ttl`?), expected one of `ttl`",
            ),
            ("not TOML: line 3, column 5: \"hush", "not TOML: line 3, column 5: (not shown)"),
        ] {
            assert_eq!(without_values(message), expected);
        }
        let invalid = |message: &str| ConfigError::Invalid { origin: "f".to_owned(), message: message.to_owned() };
        let several = ConfigError::Several(vec![invalid("a: \"x\" is wrong"), ConfigError::NoUpstream]);
        assert!(several.without_values().starts_with("f: a: (not shown) is wrong; region is not set"), "{several}");
        assert_eq!(invalid(&"é".repeat(2_000)).without_values().chars().count(), LONGEST + 1);
    }
}
