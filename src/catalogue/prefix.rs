//! A path prefix that clients' base URLs may have. It is removed from the paths of their requests.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One or more segments, such as `/workspace`, of characters that need no escape.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPrefix(String);

impl TryFrom<String> for PathPrefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_unreserved);
        let mut segments = text.strip_prefix('/').unwrap_or_default().split('/');
        // Upstream's own paths begin with a version.
        let is_version = segments.clone().next().is_some_and(|first| ["v1", "v2", "v3"].contains(&first));
        if text.len() <= 255 && segments.all(is_segment) && !is_version {
            return Ok(Self(text));
        }
        Err(format!(
            "{text:?} is not allowed: expected a path such as \"/workspace\", up to 255 characters, of \
             segments with only A-Z a-z 0-9 - . _ ~, the first of them not v1, v2 or v3, and without a slash at the end"
        ))
    }
}

impl From<PathPrefix> for String {
    fn from(prefix: PathPrefix) -> Self {
        prefix.0
    }
}

impl AsRef<str> for PathPrefix {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_is_not_allowed_is_an_error_that_says_what_is_allowed() {
        for text in ["/workspace", "/a/b.c/~-_", "/v4", "/v22", "/V2", "/a/v2"] {
            assert_eq!(String::from(PathPrefix::try_from(text.to_owned()).unwrap()), text);
        }
        let long = format!("/{}", "a".repeat(255));
        for text in [
            "", "/", "a", "a/b", "/a/", "//a", "/a//b", "/.", "/a/..", "/v1", "/v2/a", "/v3", "/a b", "/%61", "/a?b",
            &long,
        ] {
            let message = PathPrefix::try_from(text.to_owned()).unwrap_err();
            assert!(message.starts_with(&format!("{text:?} is not allowed: expected a path such as")), "{message}");
        }
    }
}
