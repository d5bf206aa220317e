//! Wrong values as errors may show them.

use std::borrow::Cow;

/// A wrong value as it may be shown: a password in a URL is not, nor is what comes after a host and port.
pub(super) fn without_secrets(text: &str) -> Cow<'_, str> {
    // A setting that is a path has a `?` or `#` for a mistake that should be seen.
    if let Some(end) = text.find(['?', '#']).filter(|_| !text.starts_with('/') || text.starts_with("//")) {
        let (shown, rest) = text.split_at(end);
        // Or all of it is the end of a password.
        let shown = if rest.contains('@') { shown.split_once("://").map_or("", |(scheme, _)| scheme) } else { shown };
        let mark = if rest.contains('@') { "://" } else { rest.get(..1).unwrap_or_default() };
        return Cow::Owned(format!("{}{mark}…", without_secrets(shown)));
    }
    match text.rsplit_once('@') {
        Some((user, host)) => {
            let scheme = user.split_once("://").map_or("", |(scheme, _)| scheme);
            Cow::Owned(format!("{scheme}://…@{host}"))
        }
        None => Cow::Borrowed(text),
    }
}
