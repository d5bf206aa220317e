//! What upstream does: the bytes on the wire, and their meaning by the rules. Data.

use std::time::{Duration, SystemTime};

use crate::support::raw_upstream::{Reaction, resets, sends, silent};

/// The product list that is stored at the beginning.
pub(super) const OLD: &str = r#"{"total_count":1,"products":[{"product_id":"old"}]}"#;
/// The product list of upstream's first response in a cell.
pub(super) const NEW: &str = r#"{"total_count":1,"products":[{"product_id":"new"}]}"#;
/// The product list after upstream has recovered.
pub(super) const NEXT: &str = r#"{"total_count":1,"products":[{"product_id":"next"}]}"#;
/// The error that upstream sent a second before.
pub(super) const BEFORE: &str = r#"{"error_code":"WKS.00000000","error_msg":"a second ago"}"#;

/// `max_body_size`, in bytes.
pub(super) const MAX_BODY: usize = 32 * 1024;

/// The `ETag` of some responses that are not the product list.
pub(super) const OTHER_TAG: &str = "\"other\"";

#[derive(Clone)]
pub(super) struct Behaviour {
    pub(super) name: &'static str,
    pub(super) endpoint: Endpoint,
    /// The status on the wire; 0 if there is none.
    pub(super) status: u16,
    /// The bytes of the body that arrive.
    pub(super) body: Vec<u8>,
    pub(super) meaning: Meaning,
    /// What a client sees if the response is relayed.
    pub(super) relayed: Relayed,
    /// Requests for each call: two if the connection breaks before the head.
    pub(super) attempts: usize,
}

/// How upstream is reached.
#[derive(Clone)]
pub(super) enum Endpoint {
    Wire(Reaction),
    /// The bytes depend on the date.
    Dated(fn(SystemTime) -> Reaction),
    /// The connection is refused.
    Refused,
    /// The name is not resolved.
    Unresolved,
    /// An https URL of a server without TLS.
    NoTls,
}

/// The meaning for a call for a product list.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A product list with the ttl that upstream sends, or the configured one.
    List {
        ttl: Option<u64>,
    },
    /// A product list with `no-store`.
    NoStore,
    /// A head above the gateway's limit.
    TooLargeHead,
    /// 304 for the stored entry, or with the tag of another list.
    NotModified {
        names_another: bool,
    },
    /// A 200 that is not a product list, and the reason.
    NotAList(&'static str),
    Denial,
    /// A 401 whose body is incomplete.
    IncompleteDenial,
    /// 400, 404 or 405.
    Negative,
    /// A response that concerns only its request.
    CallerOnly,
    /// An error of upstream with `Retry-After` in seconds.
    Failure {
        retry_after: Option<u64>,
    },
    /// No complete response, and the reason.
    NoResponse(&'static str),
    /// A product list that arrives late.
    Late,
    /// A body above the limit.
    TooLarge,
}

/// What a client sees of the relayed response.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Relayed {
    Complete,
    /// The beginning of it.
    Cut,
    /// An error of the gateway, and the reason.
    Failed(&'static str),
}

/// Header fields that belong to one response only.
pub(super) fn caller_headers(origin: &str) -> String {
    format!("X-Request-Id: id-{origin}\r\nSet-Cookie: session={origin}\r\nX-RateLimit-Remaining: {origin}\r\n")
}

fn message(status: u16, headers: &str, body: &str) -> String {
    let own = caller_headers("new");
    let length = body.len();
    format!(
        "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n{own}{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

fn complete_response(name: &'static str, status: u16, headers: &str, body: &str, meaning: Meaning) -> Behaviour {
    let (endpoint, body) = (Endpoint::Wire(sends(message(status, headers, body))), body.as_bytes().to_vec());
    Behaviour { name, endpoint, status, body, meaning, relayed: Relayed::Complete, attempts: 1 }
}

/// An error in upstream's format.
fn error_response(name: &'static str, status: u16, headers: &str, meaning: Meaning) -> Behaviour {
    let body = format!(r#"{{"error_code":"WKS.{status}","error_msg":"{name}"}}"#);
    complete_response(name, status, headers, &body, meaning)
}

fn bodyless_response(name: &'static str, status: u16, headers: &str, meaning: Meaning) -> Behaviour {
    let own = caller_headers("new");
    let endpoint = Endpoint::Wire(sends(format!("HTTP/1.1 {status} Said\r\n{own}{headers}\r\n")));
    Behaviour { name, endpoint, status, body: Vec::new(), meaning, relayed: Relayed::Complete, attempts: 1 }
}

/// No response.
fn failed_response(name: &'static str, endpoint: Endpoint, reason: &'static str) -> Behaviour {
    let (meaning, relayed) = (Meaning::NoResponse(reason), Relayed::Failed(reason));
    Behaviour { name, endpoint, status: 0, body: Vec::new(), meaning, relayed, attempts: 1 }
}

/// The head of a 200 and the beginning of its body.
fn cut_response(
    name: &'static str,
    framing: &str,
    body: &str,
    then: fn(Reaction) -> Reaction,
    reason: &'static str,
) -> Behaviour {
    let own = caller_headers("new");
    let text = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{own}{framing}\r\n\r\n{body}");
    let observe = body.split_once("\r\n").map_or(body, |(_, chunk)| chunk.trim_end());
    Behaviour {
        status: 200,
        body: observe.as_bytes().to_vec(),
        relayed: Relayed::Cut,
        ..failed_response(name, Endpoint::Wire(then(sends(text))), reason)
    }
}

/// Product lists, and other responses below 400.
pub(super) fn success_responses() -> Vec<Behaviour> {
    let list = |name, headers, meaning| complete_response(name, 200, headers, NEW, meaning);
    let good = Meaning::List { ttl: None };
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
    let other = format!("ETag: {OTHER_TAG}\r\n");
    let error = r#"{"error_code":"WKS.00211401","error_msg":"200 all the same"}"#;
    // Without its last bracket.
    let cut = &NEW[..NEW.len() - 1];
    let short = message(200, "", cut) + "}";
    let too_short = Behaviour {
        endpoint: Endpoint::Wire(sends(short)),
        ..complete_response("Content-Length too short", 200, "", cut, Meaning::NotAList("not-json"))
    };
    vec![
        list("200", "", good),
        Behaviour {
            endpoint: Endpoint::Wire(sends(interim).then_sends(message(200, "", NEW))),
            ..list("1xx, then 200", "", good)
        },
        list("200 no-store", "Cache-Control: no-store\r\n", Meaning::NoStore),
        list("200 max-age=0", "Cache-Control: max-age=0\r\n", Meaning::List { ttl: Some(0) }),
        complete_response("200 with HTML", 200, &other, "<html>maintenance</html>", Meaning::NotAList("not-json")),
        complete_response("200 with error_code", 200, &other, error, Meaning::NotAList("not-products")),
        too_short,
        bodyless_response("204", 204, "", Meaning::CallerOnly),
        error_response("301", 301, "Location: https://elsewhere.example/\r\n", Meaning::CallerOnly),
        bodyless_response("304", 304, "", Meaning::NotModified { names_another: false }),
        bodyless_response("304 of another ETag", 304, &other, Meaning::NotModified { names_another: true }),
    ]
}

/// The caller or the request is refused.
pub(super) fn refusals() -> Vec<Behaviour> {
    vec![
        error_response("400", 400, "", Meaning::Negative),
        error_response("404", 404, "", Meaning::Negative),
        error_response("405", 405, "Allow: POST\r\n", Meaning::Negative),
        error_response("401", 401, "", Meaning::Denial),
        error_response("403", 403, "", Meaning::Denial),
        Behaviour {
            endpoint: Endpoint::Wire(sends(message(401, "", "{").replace("Length: 1", "Length: 2")).then_closes()),
            relayed: Relayed::Cut,
            ..complete_response("401 cut off", 401, "", "{", Meaning::IncompleteDenial)
        },
        error_response("494", 494, "", Meaning::CallerOnly),
    ]
}

/// Upstream fails or limits the rate.
pub(super) fn error_responses() -> Vec<Behaviour> {
    let without_retry_after = Meaning::Failure { retry_after: None };
    let with_retry_after = |seconds| Meaning::Failure { retry_after: Some(seconds) };
    let dated = |date| {
        let when = httpdate::fmt_http_date(date + Duration::from_secs(30));
        sends(message(429, &format!("Retry-After: {when}\r\n"), r#"{"error_code":"WKS.429","error_msg":"dated"}"#))
    };
    let body = br#"{"error_code":"WKS.429","error_msg":"dated"}"#.to_vec();
    vec![
        error_response("429", 429, "", without_retry_after),
        error_response("429 Retry-After: seconds", 429, "Retry-After: 30\r\n", with_retry_after(30)),
        Behaviour {
            endpoint: Endpoint::Dated(dated),
            body,
            ..error_response("429 Retry-After: date", 429, "", with_retry_after(30))
        },
        error_response("429 Retry-After: garbage", 429, "Retry-After: soon\r\n", without_retry_after),
        error_response("500", 500, "", without_retry_after),
        error_response("502", 502, "", without_retry_after),
        error_response("503", 503, "", without_retry_after),
        error_response("503 Retry-After: an hour", 503, "Retry-After: 3600\r\n", with_retry_after(60)),
        error_response("504", 504, "", without_retry_after),
    ]
}

pub(super) fn missing_or_cut_responses() -> Vec<Behaviour> {
    let half = &NEW[..20];
    let chunk = format!("{:x}\r\n{NEW}\r\n", NEW.len());
    let too_long = format!("Content-Length: {}", NEW.len() + 1);
    let length = format!("Content-Length: {}", NEW.len());
    let giant = format!("HTTP/1.1 200 OK\r\n{}", format!("X-Filler: {}\r\n", "x".repeat(2500)).repeat(90));
    let wire = |text: &str| Endpoint::Wire(sends(text));
    vec![
        failed_response("connection refused", Endpoint::Refused, "connect"),
        failed_response("name not resolved", Endpoint::Unresolved, "connect"),
        failed_response("TLS fails", Endpoint::NoTls, "tls"),
        Behaviour { attempts: 2, ..failed_response("reset before the head", Endpoint::Wire(resets()), "broken") },
        cut_response("reset mid-body", &length, half, Reaction::then_resets, "broken"),
        cut_response("chunks cut off", "Transfer-Encoding: chunked", &chunk, Reaction::then_closes, "broken"),
        cut_response("Content-Length too long", &too_long, NEW, Reaction::then_closes, "broken"),
        Behaviour {
            meaning: Meaning::TooLargeHead,
            ..failed_response("giant head", wire(&(giant + "Content-Length: 0\r\n\r\n")), "broken")
        },
        failed_response("garbage", wire("\0\0\0\0 no HTTP\r\n\r\n"), "broken"),
    ]
}

pub(super) fn slow_or_large_responses() -> Vec<Behaviour> {
    let length = format!("Content-Length: {}", NEW.len());
    let filler = "x".repeat(2 * MAX_BODY);
    let giant = format!(r#"{{"total_count":0,"products":[],"filler":"{filler}"}}"#);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{giant}\r\n0\r\n\r\n",
        caller_headers("new"),
        giant.len()
    );
    vec![
        Behaviour {
            relayed: Relayed::Failed("idle"),
            ..failed_response("slow head", Endpoint::Wire(silent()), "first-byte")
        },
        cut_response("slow body", &length, &NEW[..20], |turn| turn, "timeout"),
        Behaviour {
            endpoint: Endpoint::Wire(silent().then_waits().then_sends(message(200, "", NEW))),
            ..complete_response("late 200", 200, "", NEW, Meaning::Late)
        },
        complete_response("giant body", 200, "", &giant, Meaning::TooLarge),
        Behaviour {
            endpoint: Endpoint::Wire(sends(chunked)),
            ..complete_response("giant body in chunks", 200, "", &giant, Meaning::TooLarge)
        },
    ]
}

pub(super) fn all() -> Vec<Behaviour> {
    [success_responses(), refusals(), error_responses(), missing_or_cut_responses(), slow_or_large_responses()].concat()
}
