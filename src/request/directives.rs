//! Parses `Cache-Control` (RFC 9111 §5.2) of requests and responses.
//!
//! A malformed part is an error and must never be skipped, because it may hide a `no-store`.

use std::time::Duration;

use http::HeaderMap;
use http::header::{CACHE_CONTROL, PRAGMA};

/// The longest `Cache-Control`, all fields together, in bytes. Each directive takes memory.
const LONGEST: usize = 4 * 1024;

/// The directives of a message, with names in lower case.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Directives(Vec<(String, Option<String>)>);

/// `Cache-Control` is not a list of directives, or the argument of a directive is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Directives {
    /// Without `Cache-Control`, `Pragma: no-cache` means `no-cache`. RFC 9111 §5.4 says so for requests; here it is
    /// also applied to responses.
    pub fn read(headers: &HeaderMap) -> Result<Self, Malformed> {
        let name = if headers.contains_key(CACHE_CONTROL) { CACHE_CONTROL } else { PRAGMA };
        let is_pragma = name == PRAGMA;
        if headers.get_all(&name).iter().map(|value| value.len()).sum::<usize>() > LONGEST {
            return Err(Malformed);
        }
        let mut directives = Vec::new();
        for value in headers.get_all(name) {
            let text = value.to_str().map_err(|_| Malformed)?;
            read_list(text, &mut directives)?;
        }
        if is_pragma {
            directives.retain(|(name, _)| name == "no-cache");
        }
        Ok(Self(directives))
    }

    /// Whether a directive is present, with or without an argument.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(given, _)| given == name)
    }

    /// The arguments of a directive, one for each occurrence: `None` if the occurrence has no argument.
    pub fn arguments(&self, name: &str) -> impl Iterator<Item = Option<&str>> {
        self.0.iter().filter(move |(given, _)| given == name).map(|(_, argument)| argument.as_deref())
    }

    /// The number of seconds of a directive; `None` if it is not present.
    ///
    /// # Errors
    /// If it is present without a number, or with two different ones.
    pub fn seconds(&self, name: &str) -> Result<Option<Duration>, Malformed> {
        let mut given = self.arguments(name);
        let Some(first) = given.next() else { return Ok(None) };
        if given.any(|other| other != first) {
            return Err(Malformed);
        }
        first.and_then(seconds).ok_or(Malformed).map(Some)
    }
}

/// Parses delta-seconds: only digits. A number that overflows becomes the largest one (RFC 9111 §1.2.2).
pub(crate) fn seconds(text: &str) -> Option<Duration> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Duration::from_secs(text.parse::<u32>().unwrap_or(u32::MAX).into()))
}

fn read_list(mut text: &str, directives: &mut Vec<(String, Option<String>)>) -> Result<(), Malformed> {
    loop {
        text = text.trim_start_matches([' ', '\t', ',']);
        if text.is_empty() {
            return Ok(());
        }
        let (name, rest) = token(text)?;
        let (argument, rest) = match rest.strip_prefix('=') {
            Some(rest) if rest.starts_with('"') => quoted(&rest[1..]).map(|(text, rest)| (Some(text), rest))?,
            Some(rest) => token(rest).map(|(text, rest)| (Some(text.to_owned()), rest))?,
            None => (None, rest),
        };
        directives.push((name.to_ascii_lowercase(), argument));
        text = rest.trim_start_matches([' ', '\t']);
        if !text.is_empty() && !text.starts_with(',') {
            return Err(Malformed);
        }
    }
}

/// Splits a token off the beginning of a text. Returns it with the remaining text.
fn token(text: &str) -> Result<(&str, &str), Malformed> {
    let is_token = |char: char| char.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(char);
    let end = text.find(|char| !is_token(char)).unwrap_or(text.len());
    if end == 0 { Err(Malformed) } else { Ok(text.split_at(end)) }
}

/// Reads a quoted string after its opening quote. Returns its content with the remaining text.
fn quoted(text: &str) -> Result<(String, &str), Malformed> {
    let mut content = String::new();
    let mut chars = text.char_indices();
    while let Some((place, char)) = chars.next() {
        match char {
            '"' => return Ok((content, &text[place + 1..])),
            '\\' => content.push(chars.next().ok_or(Malformed)?.1),
            _ => content.push(char),
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&'static str, &'static str)]) -> Result<Directives, Malformed> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        Directives::read(&headers)
    }

    fn control(value: &'static str) -> Result<Directives, Malformed> {
        read(&[("cache-control", value)])
    }

    #[test]
    fn directives_are_read_from_all_fields_in_any_case() {
        let directives =
            read(&[("cache-control", " Max-Age=60 ,, private=\"a, b\\\"c\""), ("cache-control", "no-Store")]);
        let directives = directives.unwrap();
        assert!(directives.has("private") && directives.has("no-store") && !directives.has("a"));
        assert_eq!(directives.seconds("max-age"), Ok(Some(Duration::from_secs(60))));
        assert_eq!(directives.seconds("s-maxage"), Ok(None));
        assert_eq!(directives.seconds("private"), Err(Malformed));
        assert_eq!(directives.seconds("no-store"), Err(Malformed));
    }

    #[test]
    fn malformed_directives_are_an_error() {
        for wrong in ["a=\"b, no-store", "=1", "a b", "a=", "a=\"b\"c", "a;b", "a=\"b\\"] {
            assert_eq!(control(wrong), Err(Malformed), "{wrong}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, http::HeaderValue::from_bytes(b"max-age=\xff").unwrap());
        assert_eq!(Directives::read(&headers), Err(Malformed));
    }

    #[test]
    fn all_fields_together_have_at_most_4_kib() {
        let mut headers = HeaderMap::new();
        for length in [4000, 96] {
            headers.append(CACHE_CONTROL, "a".repeat(length).parse().unwrap());
        }
        assert!(Directives::read(&headers).is_ok());
        headers.append(CACHE_CONTROL, "a".parse().unwrap());
        assert_eq!(Directives::read(&headers), Err(Malformed));
    }

    #[test]
    fn a_number_is_only_digits_and_must_not_differ_between_occurrences() {
        let max_age = |value| control(value).unwrap().seconds("max-age");
        assert_eq!(max_age("max-age=\"5\", max-age=5"), Ok(Some(Duration::from_secs(5))));
        assert_eq!(max_age("max-age=99999999999999999999"), Ok(Some(Duration::from_secs(u32::MAX.into()))));
        for wrong in
            ["max-age", "max-age=-1", "max-age=+1", "max-age=1.5", "max-age=x", "max-age=\"\"", "max-age=1, max-age=2"]
        {
            assert_eq!(max_age(wrong), Err(Malformed), "{wrong}");
        }
    }

    #[test]
    fn pragma_counts_only_without_cache_control_and_only_as_no_cache() {
        assert!(read(&[("pragma", "No-Cache, other")]).unwrap().has("no-cache"));
        assert_eq!(read(&[("pragma", "no-store")]), Ok(Directives::default()));
        assert!(!read(&[("pragma", "no-cache"), ("cache-control", "max-age=1")]).unwrap().has("no-cache"));
    }
}
