//! Settings that are addresses, URLs or names: the form of each, and what errors say is allowed.

use std::net::SocketAddr;

use http::uri::Scheme;
use http::{HeaderName, Uri};

use super::setting_error::SettingError;
use super::units::{Allowed, written_as_text};
use crate::catalogue::headers::is_configurable;
use crate::catalogue::{Origin, Template};

/// An address and port to listen on. With port 0 the system chooses the port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address(pub SocketAddr);

/// Scheme, host and port of an upstream.
#[derive(Clone, PartialEq, Eq)]
pub struct BaseUrl(pub Origin);

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OperationName(pub String);

#[derive(Clone, PartialEq, Eq)]
pub struct PathTemplate(pub Template);

/// A request header that only the client sets, and no credential.
#[derive(Clone, PartialEq, Eq)]
pub struct HeaderField(pub HeaderName);

#[derive(Clone, PartialEq, Eq)]
pub struct AccessKeyId(pub String);

#[derive(Clone, PartialEq, Eq)]
pub struct ProjectId(pub String);

#[derive(Clone, PartialEq, Eq)]
pub struct Region(String);

written_as_text!(
    Address,
    "an IP address and a port, such as \"127.0.0.1:8080\"",
    |text| { text.parse().ok().map(Address) },
    |address| address.0.to_string()
);

written_as_text!(
    BaseUrl,
    "an http or https URL of a host and maybe a port, with no path, query or user",
    |text| {
        // The URI parser drops a fragment and lets any digits be a port.
        let is_whole = !text.contains('#');
        let parts = text.parse::<Uri>().ok().filter(|_| is_whole)?.into_parts();
        let scheme = parts.scheme.filter(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS)?;
        let authority = parts.authority.filter(|authority| !authority.host().is_empty())?;
        let is_host_and_port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => true,
            Some(_) => authority.port_u16().is_some_and(|port| port > 0),
            None => false,
        };
        let has_path = parts.path_and_query.is_some_and(|path| path.as_str() != "/");
        (is_host_and_port && !has_path).then(|| BaseUrl(Origin::new(scheme, authority)))
    },
    |url| url.0.to_string()
);

written_as_text!(
    OperationName,
    "1 to 64 of A-Z a-z 0-9 _ -, and none of the words none, workspace, appstream and own",
    |text| {
        // Metrics have these words in the same label for requests of no operation.
        let is_taken = ["none", "workspace", "appstream", "own"].contains(&text);
        (is_plain_word(text, 64) && !is_taken).then(|| OperationName(text.to_owned()))
    },
    |name| name.0.clone()
);

written_as_text!(
    PathTemplate,
    "a path of up to 16 segments, each of A-Z a-z 0-9 - . _ ~ or a {name} that is there once, such as \
     \"/v2/{project_id}/availability-zones\"",
    |text| text.parse().ok().map(PathTemplate),
    |path| path.0.to_string()
);

written_as_text!(
    HeaderField,
    "the name of a header that is no credential and that the gateway does not set",
    |text| {
        // A credential would be stored in plaintext in the cache key. The gateway sets or removes the others itself.
        HeaderName::from_str(text).ok().filter(is_configurable).map(HeaderField)
    },
    |header| header.0.to_string()
);

written_as_text!(
    AccessKeyId,
    "1 to 128 of A-Z a-z 0-9 _ -, but not what looks like a secret (40 letters and digits, with small letters)",
    |text| {
        // Ids are shown in logs, and a user may swap id and secret.
        (is_plain_word(text, 128) && !is_like_secret(text)).then(|| AccessKeyId(text.to_owned()))
    },
    |id| id.0.clone()
);

written_as_text!(
    ProjectId,
    "1 to 255 of A-Z a-z 0-9 _ -",
    |text| is_plain_word(text, 255).then(|| ProjectId(text.to_owned())),
    |id| id.0.clone()
);

written_as_text!(
    Region,
    "1 to 64 of a-z 0-9 -, such as \"cn-north-4\"",
    |text| {
        let is_name = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        (is_name && (1..=64).contains(&text.len())).then(|| Region(text.to_owned()))
    },
    |region| region.0.clone()
);

/// Whether a text may be the secret of an access key in the wrong place. Huawei Cloud's access key ids have 20 capitals
/// and digits, its secrets 40 letters and digits, and its project ids 32 hexadecimal digits.
fn is_like_secret(text: &str) -> bool {
    text.len() == 40
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && text.bytes().any(|byte| byte.is_ascii_lowercase())
}

impl ProjectId {
    /// Checks a project in the list of an access key, which the effective configuration shows.
    ///
    /// # Errors
    /// If it may be a secret. The error does not show it.
    pub(super) fn check_is_no_secret(&self, setting: &str) -> Result<(), SettingError> {
        match is_like_secret(&self.0) {
            false => Ok(()),
            true => Err(SettingError::from(format!(
                "{setting}: (not shown, may be a secret) is not allowed: expected {}, but not what looks like a secret \
                 (40 letters and digits, with small letters)",
                Self::ALLOWED
            ))),
        }
    }
}

fn is_plain_word(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_url_says_what_is_allowed_and_shows_no_secret() {
        assert_eq!("https://h:8443/".parse::<BaseUrl>().unwrap().to_string(), "https://h:8443");
        for text in [
            "https://user:secret@h",
            "https://h/?token=secret",
            "https://h?secret",
            "https://h/p?a=b&token=secret@x",
            "https://h/#secret",
            "https://user:sec?secret@h",
            "//h",
            "h",
            "https://",
            "https://h/p",
            "https://h?q",
            "https://h/?q",
            "https://h#x",
            "https://h:",
            "https://h:0",
            "https://h:99999",
        ] {
            let message = text.parse::<BaseUrl>().unwrap_err();
            assert!(message.contains("expected an http or https URL"), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
