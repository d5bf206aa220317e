//! The canonical query: one spelling for all equivalent queries.
//!
//! The parameters are decoded, sorted, removed if they equal a documented default, and encoded in one way. A query that
//! upstream could read in more than one way must not be canonicalised: the request is bypassed.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::BypassReason;
use crate::catalogue::Parameter;

/// All characters but the unreserved ones (RFC 3986 §2.3) are escaped.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The longest canonical query, in bytes. Escaping can triple the length of a query, and the http crate limits a URI to
/// 65,534 bytes. Real queries are far shorter.
const LONGEST: usize = 16 * 1024;

/// # Errors
/// Why to bypass: the query can be read in more than one way.
pub fn canonical(raw: Option<&str>, documented: &[Parameter]) -> Result<Box<str>, BypassReason> {
    let Some(raw) = raw.filter(|raw| !raw.is_empty()) else {
        return Ok(Box::default());
    };
    let mut pairs = raw.split('&').map(pair).collect::<Result<Vec<_>, _>>()?;
    pairs.sort();
    // This must come before the removal of defaults: `limit=100&limit=5` is not `limit=5`.
    if pairs.windows(2).any(|two| two[0].0 == two[1].0) {
        return Err(BypassReason::RepeatedParameter);
    }
    pairs.retain(|(name, value)| !is_default(name, value, documented));

    let mut canonical = String::with_capacity(raw.len());
    for (name, value) in &pairs {
        if !canonical.is_empty() {
            canonical.push('&');
        }
        canonical.extend(utf8_percent_encode(name, ESCAPED));
        canonical.push('=');
        canonical.extend(utf8_percent_encode(value, ESCAPED));
    }
    if canonical.len() > LONGEST {
        return Err(BypassReason::LongQuery);
    }
    Ok(canonical.into_boxed_str())
}

/// Splits and decodes `name=value`.
fn pair(raw: &str) -> Result<(Cow<'_, str>, Cow<'_, str>), BypassReason> {
    let (name, value) = raw.split_once('=').ok_or(BypassReason::MalformedParameter)?;
    if name.is_empty() {
        return Err(BypassReason::MalformedParameter);
    }
    Ok((decode(name)?, decode(value)?))
}

/// Decodes percent-escapes. Malformed ones are an error, although some decoders accept them.
fn decode(raw: &str) -> Result<Cow<'_, str>, BypassReason> {
    // Most have nothing to decode.
    if raw.bytes().all(|byte| byte.is_ascii_graphic() && !b"%+;".contains(&byte)) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => return Err(BypassReason::Plus),
            b';' => return Err(BypassReason::Semicolon),
            b'%' => {
                let (high, low) = (rest.next().and_then(hex_digit), rest.next().and_then(hex_digit));
                let (Some(high), Some(low)) = (high, low) else {
                    return Err(BypassReason::Encoding);
                };
                high << 4 | low
            }
            // Must be escaped (RFC 3986 §2.1), and servers disagree about the charset.
            0x80.. => return Err(BypassReason::Encoding),
            plain => plain,
        });
    }
    let decoded = String::from_utf8(bytes).map_err(|_| BypassReason::Encoding)?;
    if decoded.chars().any(char::is_control) {
        return Err(BypassReason::ControlCharacter);
    }
    Ok(Cow::Owned(decoded))
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Whether the documentation says that this parameter equals its absence.
fn is_default(name: &str, value: &str, documented: &[Parameter]) -> bool {
    documented.iter().find(|parameter| parameter.name == name).is_some_and(|parameter| {
        parameter.default.as_deref() == Some(value) || (parameter.empty_is_absent && value.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENTED: &[Parameter] = &[
        Parameter { name: Cow::Borrowed("limit"), default: Some(Cow::Borrowed("100")), empty_is_absent: false },
        Parameter { name: Cow::Borrowed("zone"), default: None, empty_is_absent: true },
    ];

    fn of(raw: &str) -> Result<String, BypassReason> {
        canonical(Some(raw), DOCUMENTED).map(String::from)
    }

    #[test]
    fn equivalent_queries_have_one_spelling() {
        assert_eq!(canonical(None, DOCUMENTED).as_deref(), Ok(""));
        for (raw, expected) in [
            ("", ""),
            ("b=2&a=1", "a=1&b=2"),
            ("%61=%31", "a=1"),
            ("a=x%2fy", "a=x%2Fy"),
            ("a=x/y", "a=x%2Fy"),
            ("a=%e4%b8%ad", "a=%E4%B8%AD"),
            ("a=~-_.", "a=~-_."),
            ("a=%2B%3B%26%3D", "a=%2B%3B%26%3D"),
            ("a=b=c", "a=b%3Dc"),
            ("limit=100", ""),
            ("limit=0100", "limit=0100"),
            ("limit=", "limit="),
            ("Limit=100", "Limit=100"),
            ("zone=", ""),
            ("other=", "other="),
            ("a=A%20", "a=A%20"),
        ] {
            assert_eq!(of(raw).as_deref(), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn an_ambiguous_query_is_bypassed() {
        for (raw, reason) in [
            ("a=1&a=1", BypassReason::RepeatedParameter),
            ("a=1&%61=2", BypassReason::RepeatedParameter),
            ("limit=100&limit=5", BypassReason::RepeatedParameter),
            ("zone=&zone=z", BypassReason::RepeatedParameter),
            ("a=1+2", BypassReason::Plus),
            ("a+b=1", BypassReason::Plus),
            ("a=1;b=2", BypassReason::Semicolon),
            ("a=%", BypassReason::Encoding),
            ("a=%4", BypassReason::Encoding),
            ("a=%zz", BypassReason::Encoding),
            ("a=%+1", BypassReason::Encoding),
            ("a=%ff", BypassReason::Encoding),
            ("a=\u{e9}", BypassReason::Encoding),
            ("a=%00", BypassReason::ControlCharacter),
            ("a=%0d%0ax", BypassReason::ControlCharacter),
            ("a=%c2%85", BypassReason::ControlCharacter),
            ("a", BypassReason::MalformedParameter),
            ("=1", BypassReason::MalformedParameter),
            ("a=1&", BypassReason::MalformedParameter),
            ("&a=1", BypassReason::MalformedParameter),
            ("a=1&&b=2", BypassReason::MalformedParameter),
            (&format!("a={}", "/".repeat(16_000)), BypassReason::LongQuery),
        ] {
            assert_eq!(of(raw), Err(reason), "{raw}");
        }
    }
}
