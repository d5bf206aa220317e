//! A signed request, and what is made of it by edits. A signature is valid only for a request that is the same for
//! upstream, and the fast path verifies it as the full path does.
//!
//! The input has three parts: the target, header fields, and edits of both.

#![no_main]

use std::time::{Duration, SystemTime};

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderValue, Method, Uri};
use libfuzzer_sys::fuzz_target;
use percent_encoding::percent_decode_str;
use workspace_gateway::testing::signing::ring::{KeyRing, SignatureRejection, VerifiedRequest};
use workspace_gateway::testing::signing::{AccessKey, Authorization, Payload, Projects, RepeatedRequest, SignedTarget};
use workspace_gateway_fuzz::{edit, read_response, split};

const ID: &str = "HWAK0000000000000001";
const DATE: &str = "x-sdk-date";

/// A time in 2026.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_348_800)
}

struct SignedRequest {
    uri: Uri,
    headers: HeaderMap,
}

impl SignedRequest {
    fn target(&self) -> SignedTarget<'_> {
        SignedTarget::from(&self.uri)
    }

    fn sign(&mut self, key: &AccessKey, date: SystemTime) -> Option<()> {
        let names: Vec<String> = self.headers.keys().map(ToString::to_string).collect();
        let names = names.iter().map(String::as_str).filter(|name| *name != AUTHORIZATION.as_str());
        let target = SignedTarget::from(&self.uri);
        key.sign(&Method::GET, target, &mut self.headers, names, &Payload::of(b""), date).ok()
    }

    /// `None` if it names no key.
    fn verify(&self, ring: &KeyRing) -> Option<Result<VerifiedRequest, SignatureRejection>> {
        let examined = ring.claim(&self.headers)?.examine(&self.headers, now());
        Some(examined.and_then(|claim| claim.verify(&Method::GET, self.target(), Payload::of(b""))))
    }

    /// The path and the parameters as a lenient server reads them.
    fn read(&self) -> (Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>) {
        let decode = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
        let mut path = decode(self.uri.path());
        // The canonical request has a slash at the end in any case.
        path.truncate(path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1));
        let pairs = self.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let mut pairs: Vec<_> = pairs.map(|(name, value)| (decode(name), decode(value))).collect();
        pairs.sort();
        (path, pairs)
    }
}

/// A valid signature of another request is a signature of the same target and fields.
fn compare(signed: &SignedRequest, edited: &SignedRequest, verified: &VerifiedRequest) {
    assert_eq!(signed.read(), edited.read());
    for name in verified.covered() {
        let value = |request: &SignedRequest| request.headers[name].as_bytes().trim_ascii().to_vec();
        assert_eq!(value(signed), value(edited), "{name}");
    }
}

/// The fast path keeps what verifies the same request with another date.
fn repeat(signed: &mut SignedRequest, verified: &VerifiedRequest, ring: &KeyRing, key: &AccessKey, seconds: u64) {
    let repeated = RepeatedRequest::of(verified, &Method::GET, signed.target(), &signed.headers);
    let first = signed.headers[AUTHORIZATION].clone();
    let Some(()) = signed.sign(key, now() + Duration::from_secs(seconds)) else { return };
    let second = signed.headers[AUTHORIZATION].clone();
    for value in [first, second] {
        signed.headers.insert(AUTHORIZATION, value);
        let is_valid = signed.verify(ring).is_some_and(|result| result.is_ok());
        let authorization = Authorization::read(&signed.headers[AUTHORIZATION]).unwrap();
        let date = signed.headers[DATE].to_str().unwrap();
        let is_again = repeated.as_ref().map(|repeated| repeated.verify(authorization.signature, date, now()));
        assert!(is_again.is_none_or(|is_again| is_again == is_valid), "{authorization}, {date}");
    }
}

fuzz_target!(|input: &[u8]| {
    let [target, fields, edits] = split(input)[..] else { return };
    let Ok(uri) = Uri::try_from(target) else { return };
    let (mut headers, _) = read_response(fields);
    headers.insert(HOST, HeaderValue::from_static("gateway"));
    let key = || AccessKey::new(ID.to_owned(), b"secret", None, Projects::Any);
    let ring = KeyRing::new([key()]);
    let mut signed = SignedRequest { uri, headers };
    let Some(()) = signed.sign(&key(), now()) else { return };
    let verified = signed.verify(&ring).unwrap().unwrap();

    let mut text = signed.uri.to_string().into_bytes();
    for (name, value) in &signed.headers {
        text.extend([b"\n", name.as_str().as_bytes(), b":", value.as_bytes()].concat());
    }
    edit(&mut text, edits);
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    if let Ok(uri) = Uri::try_from(&text[..end]) {
        let (headers, _) = read_response(text.get(end + 1..).unwrap_or_default());
        let edited = SignedRequest { uri, headers };
        if let Some(Ok(verified)) = edited.verify(&ring) {
            compare(&signed, &edited, &verified);
        }
        // However its parts are spelled, a signature of the key is found.
        let values = edited.headers.get_all(AUTHORIZATION).iter();
        let has_read = values.filter_map(Authorization::read).any(|it| it.access == ID);
        assert!(!has_read || ring.claim(&edited.headers).is_some());
    }
    repeat(&mut signed, &verified, &ring, &key(), edits.len() as u64 * 100);
});
