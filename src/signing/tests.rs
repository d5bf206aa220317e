//! Verifies and makes the signatures of real clients (`tests/sign_vectors.json`, captured and computed).

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use ::ring::digest::{SHA256, digest};
use http::header::{AUTHORIZATION, HOST, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde::Deserialize;
use strum::VariantArray;

use super::ring::{KeyRing, SignatureRejection, VerifiedRequest, leaves_body_unsigned, payload};
use super::*;

#[derive(Clone, Deserialize)]
struct Vector {
    name: String,
    ak: String,
    sk: String,
    method: String,
    request_target: String,
    headers: std::collections::BTreeMap<String, String>,
    body: String,
    signed_headers: Vec<String>,
    canonical_request: String,
    string_to_sign: String,
    signature: String,
    authorization: String,
}

fn vectors() -> Vec<Vector> {
    let vectors: Vec<Vector> = serde_json::from_str(include_str!("../../tests/sign_vectors.json")).unwrap();
    assert_eq!(vectors.len(), 6);
    vectors
}

impl Vector {
    fn headers(&self) -> HeaderMap {
        let named = |(name, value): (&String, &String)| {
            (HeaderName::try_from(name.as_str()).unwrap(), HeaderValue::try_from(value.as_str()).unwrap())
        };
        let mut headers: HeaderMap = self.headers.iter().map(named).collect();
        headers.insert(AUTHORIZATION, HeaderValue::try_from(self.authorization.as_str()).unwrap());
        headers
    }

    fn uri(&self) -> Uri {
        self.request_target.parse().unwrap()
    }

    fn method(&self) -> Method {
        self.method.parse().unwrap()
    }

    fn date(&self) -> SystemTime {
        parse_date(&self.headers["X-Sdk-Date"]).unwrap()
    }

    fn key(&self) -> AccessKey {
        let token = self.headers.get("X-Security-Token").map(|token| HeaderValue::try_from(token.as_str()).unwrap());
        AccessKey::new(self.ak.clone(), self.sk.as_bytes(), token, Projects::Any)
    }

    fn verify(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<VerifiedRequest, SignatureRejection> {
        let claim = KeyRing::new([self.key()]).claim(headers).ok_or(SignatureRejection::Malformed)?;
        claim.examine(headers, self.date())?.verify(method, uri.into(), payload(headers, body)?)
    }
}

#[test]
fn every_vector_is_verified_and_made() {
    for vector in vectors() {
        let (method, uri, headers) = (vector.method(), vector.uri(), vector.headers());
        let covered = vector.signed_headers.join(";");
        let payload = Payload::of(vector.body.as_bytes());
        let canonical = canonical_request(&method, (&uri).into(), &headers, &covered, &payload).unwrap();
        assert_eq!(String::from_utf8_lossy(&canonical), vector.canonical_request, "{}", vector.name);
        assert_eq!(string_to_sign(&vector.headers["X-Sdk-Date"], &canonical), vector.string_to_sign, "{}", vector.name);
        let hash = digest(&SHA256, &canonical);
        assert!(vector.key().has_signed(&vector.signature, &vector.headers["X-Sdk-Date"], &hash));
        vector.verify(&method, &uri, &headers, vector.body.as_bytes()).unwrap();

        // Make the signature from a request without date and signature. (Terraform does not sign Host; the gateway
        // always does.)
        let mut unsigned = headers.clone();
        unsigned.remove(AUTHORIZATION);
        unsigned.remove(X_SDK_DATE);
        unsigned.remove(X_SECURITY_TOKEN);
        let names = vector.signed_headers.iter().map(String::as_str);
        vector.key().sign(&method, (&uri).into(), &mut unsigned, names, &payload, vector.date()).unwrap();
        if vector.signed_headers.iter().any(|name| name == "host") {
            assert_eq!(unsigned[AUTHORIZATION], vector.authorization, "{}", vector.name);
        }
        vector.verify(&method, &uri, &unsigned, vector.body.as_bytes()).unwrap();
    }
}

#[test]
fn a_flipped_bit_anywhere_in_what_is_signed_fails() {
    let mut flips = 0;
    for vector in vectors() {
        let (method, uri, headers) = (vector.method(), vector.uri(), vector.headers());
        let mut must_fail = |what: &str, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]| {
            flips += 1;
            assert!(vector.verify(method, uri, headers, body).is_err(), "{}: {what}", vector.name);
        };
        must_fail("method", &Method::POST, &uri, &headers, b"");
        must_fail("a body", &method, &uri, &headers, b"{}");
        for (place, bit) in bits(&vector.request_target) {
            let Ok(other) = flipped(&vector.request_target, place, bit).parse::<Uri>() else { continue };
            // Equivalent spellings of a target have the same signature.
            if same_target(&other, &uri) {
                continue;
            }
            must_fail(&format!("target {other}"), &method, &other, &headers, b"");
        }
        let covered = vector.signed_headers.iter().map(String::as_str);
        for name in covered.chain([AUTHORIZATION.as_str(), X_SDK_DATE.as_str()]) {
            let text = headers[name].to_str().unwrap();
            for (place, bit) in bits(text) {
                let Ok(value) = HeaderValue::try_from(flipped(text, place, bit)) else { continue };
                let mut other = headers.clone();
                other.insert(HeaderName::try_from(name).unwrap(), value);
                must_fail(&format!("{name}, bit {bit} of {place}"), &method, &uri, &other, b"");
            }
            let mut other = headers.clone();
            other.remove(name);
            must_fail(&format!("no {name}"), &method, &uri, &other, b"");
            let mut other = headers.clone();
            other.append(HeaderName::try_from(name).unwrap(), headers[name].clone());
            must_fail(&format!("{name} twice"), &method, &uri, &other, b"");
        }
    }
    assert!(flips > 5_000, "{flips}");
}

fn bits(text: &str) -> impl Iterator<Item = (usize, u8)> + use<> {
    (0..text.len()).flat_map(|place| (0..7).map(move |bit| (place, bit)))
}

fn flipped(text: &str, place: usize, bit: u8) -> String {
    let mut bytes = text.as_bytes().to_vec();
    bytes[place] ^= 1 << bit;
    String::from_utf8(bytes).unwrap()
}

/// Whether two targets are equivalent, by another decoder than the one under test.
fn same_target(one: &Uri, other: &Uri) -> bool {
    let pairs = |uri: &Uri| {
        let query = uri.query().unwrap_or_default().to_owned();
        let mut pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        pairs.sort();
        pairs
    };
    let path = |uri: &Uri| percent_encoding::percent_decode_str(uri.path()).collect::<Vec<u8>>();
    path(one) == path(other) && pairs(one) == pairs(other)
}

#[test]
fn fifteen_minutes_of_skew_are_allowed() {
    let vector = &vectors()[0];
    let (method, uri, headers) = (vector.method(), vector.uri(), vector.headers());
    let at = |now| {
        let claim = KeyRing::new([vector.key()]).claim(&headers).unwrap();
        claim.examine(&headers, now)?.verify(&method, (&uri).into(), Payload::of(b"")).map(drop)
    };
    let (minutes, second) = (Duration::from_secs(15 * 60), Duration::from_secs(1));
    for (now, expected) in [
        (vector.date() + minutes, Ok(())),
        (vector.date() - minutes, Ok(())),
        (vector.date() + minutes + second, Err(SignatureRejection::Skew)),
        (vector.date() - minutes - second, Err(SignatureRejection::Skew)),
    ] {
        assert_eq!(at(now), expected);
    }
}

#[test]
fn each_defect_has_its_own_reason() {
    let vector = &vectors()[1];
    let verify = |change: &dyn Fn(&mut HeaderMap)| {
        let mut headers = vector.headers();
        change(&mut headers);
        vector.verify(&vector.method(), &vector.uri(), &headers, b"").map(drop)
    };
    let set = |name: HeaderName, value: &'static str| {
        move |headers: &mut HeaderMap| drop(headers.insert(name.clone(), HeaderValue::from_static(value)))
    };
    assert_eq!(verify(&|_| ()), Ok(()));
    assert_eq!(verify(&set(X_SDK_DATE, "yesterday")), Err(SignatureRejection::Date));
    assert_eq!(verify(&set(X_SDK_DATE, "20261122T110000Z")), Err(SignatureRejection::Skew));
    assert_eq!(verify(&set(X_SECURITY_TOKEN, "OTHER")), Err(SignatureRejection::SecurityToken));
    assert_eq!(verify(&|headers| drop(headers.remove(X_SECURITY_TOKEN))), Err(SignatureRejection::SecurityToken));
    let twice = |headers: &mut HeaderMap| {
        let token = headers[X_SECURITY_TOKEN].clone();
        headers.append(X_SECURITY_TOKEN, token);
    };
    assert_eq!(verify(&twice), Err(SignatureRejection::SecurityToken));
    assert_eq!(verify(&set(HOST, "elsewhere")), Err(SignatureRejection::Signature));
    let lower = "sdk-hmac-sha256 Access=EXAMPLEAK0EXAMPLEAK0, SignedHeaders=host, Signature=00";
    assert_eq!(verify(&set(AUTHORIZATION, lower)), Err(SignatureRejection::Malformed));
    // A permanent key has no security token.
    let permanent = &vectors()[0];
    let mut headers = permanent.headers();
    headers.insert(X_SECURITY_TOKEN, HeaderValue::from_static("T"));
    let refused = permanent.verify(&permanent.method(), &permanent.uri(), &headers, b"").map(drop);
    assert_eq!(refused, Err(SignatureRejection::SecurityToken));
}

#[test]
fn each_reason_has_its_own_description() {
    let reasons = SignatureRejection::VARIANTS;
    let descriptions: HashSet<&str> = reasons.iter().map(|reason| reason.describe()).collect();
    assert_eq!(descriptions.len(), reasons.len());
}

#[test]
fn unknown_keys_and_other_schemes_claim_nothing() {
    let vector = &vectors()[0];
    let ring = KeyRing::new([vector.key()]);
    assert_eq!(ring.keys().map(|key| key.id()).collect::<Vec<_>>(), [&*vector.ak]);
    let claims = |authorization: String| {
        ring.claim(&HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(authorization).unwrap())])).is_some()
    };
    assert!(claims(vector.authorization.clone()));
    assert!(!claims(vector.authorization.replace(&vector.ak, "ANOTHER")));
    for scheme in ["SDK-HMAC-SM3", "SDK-ECDSA-P256-SHA256", "SDK-SM2-SM3", "V11-HMAC-SHA256"] {
        assert!(!claims(vector.authorization.replace(SCHEME, scheme)), "{scheme}");
    }
    assert!(KeyRing::default().claim(&vector.headers()).is_none());
    // Any of several headers may name the key. Then the request is refused.
    let mut headers = vector.headers();
    let other = vector.authorization.replace(&vector.ak, "ANOTHER");
    let known = headers.insert(AUTHORIZATION, HeaderValue::try_from(other).unwrap()).unwrap();
    headers.append(AUTHORIZATION, known);
    let claim = ring.claim(&headers).unwrap();
    assert_eq!(claim.examine(&headers, vector.date()).map(drop), Err(SignatureRejection::Malformed));
}

#[test]
fn a_body_is_covered_by_its_hash() {
    let vector = &vectors()[0];
    let (uri, date) = (vector.uri(), vector.date());
    let sign = |body: &Payload, stated: Option<&str>| {
        let mut headers = vector.headers();
        if let Some(hash) = stated {
            headers.insert(X_SDK_CONTENT_SHA256, HeaderValue::try_from(hash).unwrap());
        }
        vector.key().sign(&Method::POST, (&uri).into(), &mut headers, [], body, date).unwrap();
        headers
    };
    let body = Payload::of(b"{\"a\":1}");
    assert!(!leaves_body_unsigned(&sign(&body, None)) && !leaves_body_unsigned(&sign(&body, Some(body.as_str()))));
    for stated in [None, Some(body.as_str())] {
        let headers = sign(&body, stated);
        assert!(vector.verify(&Method::POST, &uri, &headers, b"{\"a\":1}").is_ok());
        let expected = if stated.is_some() { SignatureRejection::Content } else { SignatureRejection::Signature };
        assert_eq!(vector.verify(&Method::POST, &uri, &headers, b"{\"a\":2}").map(drop), Err(expected));
    }
    // With an empty body, the header is ignored. Some clients send it.
    let headers = sign(&Payload::of(b""), Some("of nothing"));
    assert!(vector.verify(&Method::POST, &uri, &headers, b"").is_ok());
    let headers = sign(&Payload::unsigned(), Some(Payload::UNSIGNED));
    assert!(leaves_body_unsigned(&headers));
    let claim = KeyRing::new([vector.key()]).claim(&headers).unwrap();
    let examined = claim.examine(&headers, date).unwrap();
    assert!(examined.verify(&Method::POST, (&uri).into(), Payload::unsigned()).is_ok());
}

#[test]
fn a_verified_request_is_signed_anew_for_another_host_and_date() {
    for vector in vectors() {
        let (method, uri, mut headers) = (vector.method(), vector.uri(), vector.headers());
        let signed = vector.verify(&method, &uri, &headers, b"").unwrap();
        assert_eq!(signed.covered().collect::<Vec<_>>(), vector.signed_headers);
        headers.insert(HOST, HeaderValue::from_static("workspace.example"));
        let later = vector.date() + Duration::from_secs(600);
        signed.renew(&method, (&uri).into(), &mut headers, later).unwrap();
        assert_eq!(headers[X_SDK_DATE], show_date(later));
        let authorization = Authorization::read(&headers[AUTHORIZATION]).unwrap();
        let mut covered: Vec<&str> = vector.signed_headers.iter().map(String::as_str).chain(["host"]).collect();
        covered.sort_unstable();
        covered.dedup();
        assert_eq!(authorization.names().collect::<Vec<_>>(), covered, "{}", vector.name);
        vector.verify(&method, &uri, &headers, b"").unwrap();
    }
}

#[test]
fn via_is_not_covered_when_signed_anew() {
    let vector = &vectors()[0];
    let (method, uri, mut headers) = (vector.method(), vector.uri(), vector.headers());
    headers.insert(VIA, HeaderValue::from_static("1.1 before"));
    vector.key().sign(&method, (&uri).into(), &mut headers, ["via"], &Payload::of(b""), vector.date()).unwrap();
    let signed = vector.verify(&method, &uri, &headers, b"").unwrap();
    signed.renew(&method, (&uri).into(), &mut headers, vector.date()).unwrap();
    assert_eq!(Authorization::read(&headers[AUTHORIZATION]).unwrap().signed_headers, "host;x-sdk-date");
}
