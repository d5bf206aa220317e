//! OPTIONS requests that the gateway answers itself (RFC 9110 §7.6.2 and §9.3.7): with the target `*`, or with
//! `Max-Forwards: 0`.

use http::header::MAX_FORWARDS;
use http::request::Parts;
use http::{HeaderValue, Method};

/// Whether the gateway must answer the request itself. If not, it decrements `Max-Forwards` for the next hop. With
/// other methods, or if it is not a number, the field is relayed unchanged.
pub(crate) fn ends_here(head: &mut Parts) -> bool {
    if head.method != Method::OPTIONS {
        return false;
    }
    if head.uri.path() == "*" {
        return true;
    }
    let mut fields = head.headers.get_all(MAX_FORWARDS).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return false };
    let is_number = !field.is_empty() && field.as_bytes().iter().all(u8::is_ascii_digit);
    let hops = field.to_str().ok().filter(|_| is_number).map(|digits| digits.parse::<u32>().unwrap_or(u32::MAX));
    match hops {
        Some(0) => return true,
        Some(hops) => head.headers.insert(MAX_FORWARDS, HeaderValue::from(hops - 1)),
        None => None,
    };
    false
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn options_are_answered_here_or_max_forwards_is_decremented() {
        for (method, target, given, ends, sent) in [
            ("OPTIONS", "*", None, true, None),
            ("OPTIONS", "/v2/p/x", None, false, None),
            ("OPTIONS", "/v2/p/x", Some("0"), true, Some("0")),
            ("OPTIONS", "/v2/p/x", Some("000"), true, Some("000")),
            ("OPTIONS", "/v2/p/x", Some("1"), false, Some("0")),
            ("OPTIONS", "/v2/p/x", Some("10"), false, Some("9")),
            ("OPTIONS", "/v2/p/x", Some("99999999999"), false, Some("4294967294")),
            ("OPTIONS", "/v2/p/x", Some("-1"), false, Some("-1")),
            ("OPTIONS", "/v2/p/x", Some("+1"), false, Some("+1")),
            ("OPTIONS", "/v2/p/x", Some(""), false, Some("")),
            ("GET", "/v2/p/x", Some("0"), false, Some("0")),
        ] {
            let request = Request::builder().method(method).uri(target);
            let request = given.into_iter().fold(request, |request, value| request.header("max-forwards", value));
            let (mut head, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(ends_here(&mut head), ends, "{method} {target} {given:?}");
            let seen = head.headers.get("max-forwards").map(|value| value.to_str().unwrap());
            assert_eq!(seen, sent, "{method} {target} {given:?}");
        }
    }
}
