//! Parses the `Authorization` header of a signed request:
//! `SDK-HMAC-SHA256 Access=…, SignedHeaders=…, Signature=…`.

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

use super::SCHEME;

/// The parts of the header.
#[derive(Clone, Copy)]
pub struct Authorization<'a> {
    /// The id of the access key. It is public and proves nothing.
    pub access: &'a str,
    /// The names of the signed headers: lower case, sorted, joined with `;`.
    pub signed_headers: &'a str,
    /// Lower-case hex digits.
    pub signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Accepts only the spelling that the known clients use, and guesses nothing.
    pub fn read(value: &'a HeaderValue) -> Option<Self> {
        let parts = value.to_str().ok()?.strip_prefix(SCHEME)?.strip_prefix(' ')?;
        let mut parts = parts.split(", ");
        let mut part = |name| parts.next()?.strip_prefix(name)?.strip_prefix('=');
        let (access, signed_headers, signature) = (part("Access")?, part("SignedHeaders")?, part("Signature")?);
        let is_complete = parts.next().is_none() && !access.is_empty();
        let names = || signed_headers.split(';');
        let is_sorted = names().is_sorted_by(|one, next| one < next);
        let is_named = names().all(|name| !name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_uppercase()));
        (is_complete && is_sorted && is_named).then_some(Self { access, signed_headers, signature })
    }

    pub fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.signed_headers.split(';')
    }
}

/// Whether there is an `Authorization` that is not blank, of any scheme.
pub fn has_signature(headers: &HeaderMap) -> bool {
    headers.get_all(AUTHORIZATION).iter().any(|value| !value.as_bytes().iter().all(u8::is_ascii_whitespace))
}

/// The words of a header with scheme [`SCHEME`], in any spelling. Any of them may be the id of an access key: another
/// server may parse the header less strictly and find the id at another place.
pub(super) fn words(value: &HeaderValue) -> impl Iterator<Item = &str> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-".contains(byte);
    let mut words = value.as_bytes().split(move |byte| !is_part(byte)).filter(|word| !word.is_empty());
    let is_scheme = words.next().is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME.as_bytes()));
    words.filter(move |_| is_scheme).filter_map(|word| std::str::from_utf8(word).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL_FORMED: &str = "SDK-HMAC-SHA256 Access=A, SignedHeaders=host;x-sdk-date, Signature=00";

    #[test]
    fn one_spelling_is_read() {
        let value = HeaderValue::from_static(WELL_FORMED);
        let read = Authorization::read(&value).unwrap();
        assert_eq!((read.access, read.signed_headers, read.signature), ("A", "host;x-sdk-date", "00"));
        assert_eq!(read.names().collect::<Vec<_>>(), ["host", "x-sdk-date"]);
    }

    #[test]
    fn other_spellings_are_not_read_but_the_key_id_is_among_their_words() {
        for other in [
            "sdk-hmac-sha256 Access=A, SignedHeaders=host;x-sdk-date, Signature=00",
            "SDK-HMAC-SHA256  Access=A, SignedHeaders=host;x-sdk-date, Signature=00",
            "SDK-HMAC-SHA256 Access=A,SignedHeaders=host;x-sdk-date,Signature=00",
            "SDK-HMAC-SHA256 access=A, SignedHeaders=host;x-sdk-date, Signature=00",
            "SDK-HMAC-SHA256 SignedHeaders=host;x-sdk-date, Access=A, Signature=00",
            "SDK-HMAC-SHA256 Access=A, SignedHeaders=host;x-sdk-date, Signature=00, Signature=01",
            "SDK-HMAC-SHA256 Access=A, SignedHeaders=Host;x-sdk-date, Signature=00",
            "SDK-HMAC-SHA256 Access=A, SignedHeaders=x-sdk-date;host, Signature=00",
            "SDK-HMAC-SHA256 Access=A, SignedHeaders=host;host, Signature=00",
            "SDK-HMAC-SHA256 Access=A, SignedHeaders=, Signature=00",
            "SDK-HMAC-SHA256 Access=A, Signature=00",
            "SDK-HMAC-SHA256 Access=A",
            "SDK-HMAC-SHA256 Access = A, SignedHeaders=host, Signature=00",
            "SDK-HMAC-SHA256 Access=B, Access=A, SignedHeaders=host, Signature=00",
            "SDK-HMAC-SHA256,Access=A;SignedHeaders=host;Signature=00",
            "SDK-HMAC-SHA256\tAccess=A, SignedHeaders=host;x-sdk-date, Signature=00",
            "SDK-HMAC-SHA256 SignedHeaders=host;x-sdk-date\tAccess=A",
        ] {
            let value = HeaderValue::from_static(other);
            assert!(Authorization::read(&value).is_none(), "{other}");
            assert!(words(&value).any(|word| word == "A"), "{other}");
        }
    }

    #[test]
    fn the_key_id_is_found_in_quotes_and_beside_bytes_outside_ascii() {
        let quoted = HeaderValue::from_static("SDK-HMAC-SHA256 Access=\"A\", SignedHeaders=host, Signature=00");
        assert!(words(&quoted).any(|word| word == "A"));
        let value = HeaderValue::from_bytes(b"SDK-HMAC-SHA256 Access=A, SignedHeaders=host, Signature=00\xe9").unwrap();
        assert!(Authorization::read(&value).is_none() && words(&value).any(|word| word == "A"));
    }

    #[test]
    fn an_empty_key_id_is_not_read() {
        let empty = HeaderValue::from_static("SDK-HMAC-SHA256 Access=, SignedHeaders=host, Signature=00");
        assert!(Authorization::read(&empty).is_none());
    }

    #[test]
    fn a_header_that_is_not_blank_counts_as_a_signature() {
        let has = |values: &[&'static str]| {
            let values = values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_static(value)));
            has_signature(&values.collect())
        };
        assert!(!has(&[]) && !has(&["", " \t"]));
        assert!(has(&[WELL_FORMED]) && has(&["", WELL_FORMED]));
    }

    #[test]
    fn other_schemes_name_no_key() {
        for other in [
            "SDK-HMAC-SM3 Access=A, SignedHeaders=host, Signature=00",
            "SDK-ECDSA-P256-SHA256 Access=A, SignedHeaders=host, Signature=00",
            "SDK-SM2-SM3 Access=A, SignedHeaders=host, Signature=00",
            "V11-HMAC-SHA256 Credential=A/20261122/region/service, SignedHeaders=host, Signature=00",
            "Bearer Access=A",
            "SDK-HMAC-SHA256",
            "SDK-HMAC-SHA256-2 Access=A",
            "",
        ] {
            let value = HeaderValue::from_static(other);
            assert!(Authorization::read(&value).is_none() && words(&value).next().is_none(), "{other}");
        }
    }
}
