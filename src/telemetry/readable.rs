//! Makes text that clients have chosen fit for operators: short, and without control characters.

/// How many bytes of a `User-Agent` are kept: enough for the name and version of a client.
pub(super) const MAX_AGENT: usize = 128;

/// The beginning of a client's text, in at most `max` bytes. Bytes that are not printable ASCII are escaped.
pub(super) fn readable(text: &[u8], max: usize) -> Box<str> {
    let mut readable = String::with_capacity(text.len().min(max));
    for &byte in text {
        let shown: String = match byte {
            b' '..=b'~' => char::from(byte).into(),
            _ => byte.escape_ascii().map(char::from).collect(),
        };
        if readable.len() + shown.len() > max {
            break;
        }
        readable += &shown;
    }
    readable.into_boxed_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_text_is_cut_and_shows_no_control_character() {
        assert_eq!(&*readable(b"curl/8.5.0 (a \"b\")", 128), "curl/8.5.0 (a \"b\")");
        assert_eq!(&*readable(b"a\tb\x1b[31m\xc3\xa9", 128), "a\\tb\\x1b[31m\\xc3\\xa9");
        assert_eq!(readable(&[b'x'; 500], MAX_AGENT).len(), MAX_AGENT);
        assert_eq!(readable(&[0xe9; 500], MAX_AGENT).len(), MAX_AGENT, "as it is shown");
    }
}
