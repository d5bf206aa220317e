//! Removes what may be a secret from a wrong value before an error shows it.

use std::borrow::Cow;

/// The value without user and password of a URL, and without everything after host and port.
pub(super) fn redacted(text: &str) -> Cow<'_, str> {
    // In a path, the `?` or `#` is the error itself and is shown.
    if let Some(end) = text.find(['?', '#']).filter(|_| !text.starts_with('/') || text.starts_with("//")) {
        let (shown, rest) = text.split_at(end);
        // With an `@` after it, the text before the `?` may be part of a password.
        let shown = if rest.contains('@') { shown.split_once("://").map_or("", |(scheme, _)| scheme) } else { shown };
        let mark = if rest.contains('@') { "://" } else { rest.get(..1).unwrap_or_default() };
        return Cow::Owned(format!("{}{mark}…", redacted(shown)));
    }
    match text.rsplit_once('@') {
        Some((user, host)) => {
            let scheme = user.split_once("://").map_or("", |(scheme, _)| scheme);
            Cow::Owned(format!("{scheme}://…@{host}"))
        }
        None => Cow::Borrowed(text),
    }
}
