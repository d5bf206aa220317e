//! A client's text, as logs and spans show it: shortened, and without control characters.

use http::Method;

/// How many bytes of a path are shown. The path of a product list is shorter, even with a project id of 255 characters.
const MAX_PATH: usize = 300;

/// How many bytes of a `User-Agent` are shown: enough for the name and version of a client.
pub(super) const MAX_AGENT: usize = 128;

/// A method that is not in the standard may be any text of the client's, and is not shown.
pub(super) fn method_name(method: &Method) -> &'static str {
    let standard = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"];
    standard.into_iter().find(|name| method == name).unwrap_or("other")
}

pub(super) fn shown_path(path: &str) -> Box<str> {
    readable(path.as_bytes(), MAX_PATH)
}

pub(super) fn shown_agent(agent: &[u8]) -> Box<str> {
    readable(agent, MAX_AGENT)
}

/// The beginning of a text, in at most `max` bytes. Bytes that are not printable ASCII are escaped.
fn readable(text: &[u8], max: usize) -> Box<str> {
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
