//! What upstream does: how it is said on the wire, and what it means by the rules. Data.

use std::time::{Duration, SystemTime};

use crate::support::raw::{Turn, resets, says, silent};

/// The product list that is kept before anything else happens.
pub(super) const OLD: &str = r#"{"total_count":1,"products":[{"product_id":"old"}]}"#;
/// The product list that upstream gives when it is asked for the first time in a cell.
pub(super) const NEW: &str = r#"{"total_count":1,"products":[{"product_id":"new"}]}"#;
/// The one that it gives once all is well again.
pub(super) const NEXT: &str = r#"{"total_count":1,"products":[{"product_id":"next"}]}"#;
/// What upstream said a second ago, where it didn't say well.
pub(super) const BEFORE: &str = r#"{"error_code":"WKS.00000000","error_msg":"a second ago"}"#;

/// The largest answer that is held here.
pub(super) const MAX_BODY: usize = 32 * 1024;

/// The entity tag that upstream gives some of what isn't a product list.
pub(super) const OTHER_TAG: &str = "\"other\"";

/// What an upstream does when it is asked.
#[derive(Clone)]
pub(super) struct Behaviour {
    pub(super) name: &'static str,
    pub(super) line: Line,
    /// The status on its status line; 0 where none can be read.
    pub(super) status: u16,
    /// The bytes of its body, as far as they come.
    pub(super) body: Vec<u8>,
    pub(super) meaning: Meaning,
    /// What a client sees to whom it is relayed.
    pub(super) relayed: Relayed,
    /// How often it is asked for one call: once more where the connection breaks before the head.
    pub(super) attempts: usize,
}

/// How it is spoken to.
#[derive(Clone)]
pub(super) enum Line {
    /// Over a socket.
    Wire(Turn),
    /// The same, where what is said depends on the date.
    Dated(fn(SystemTime) -> Turn),
    /// Over a socket on which nobody listens.
    Refused,
    /// By a name that there isn't.
    Unresolved,
    /// By https, where nothing but http is spoken.
    NoTls,
}

/// What it means for a call for a product list.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A product list, fresh for as long as upstream says, or else is configured.
    List { ttl: Option<u64> },
    /// A product list that must not be kept.
    Unkept,
    /// A head that is larger than is read: a limit of the gateway's.
    TooLargeHead,
    /// What was asked about still holds, unless another answer is named.
    NotModified { names_another: bool },
    /// A 200 that is no product list, and why.
    NoList(&'static str),
    /// The credential is refused.
    Denial,
    /// The credential is refused, and the body that says why does not end.
    EndlessDenial,
    /// There is no such thing.
    Negative,
    /// It is this request's own.
    Personal,
    /// An answer that says that upstream fails, and when to ask again.
    Failure { retry_after: Option<u64> },
    /// No whole answer, and why.
    Nothing(&'static str),
    /// A good answer that is long in coming.
    Late,
    /// Too large to hold.
    TooLarge,
}

/// What comes of relaying it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Relayed {
    /// All of it.
    Whole,
    /// A beginning.
    Cut,
    /// A failure, and why.
    Failed(&'static str),
}

/// The headers that are one answer's own: they tell of the one who asked.
pub(super) fn personal(of: &str) -> String {
    format!("X-Request-Id: id-{of}\r\nSet-Cookie: session={of}\r\nX-RateLimit-Remaining: {of}\r\n")
}

/// An answer with a length.
fn message(status: u16, headers: &str, body: &str) -> String {
    let own = personal("new");
    let length = body.len();
    format!(
        "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n{own}{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

/// An answer that is whole.
fn says_so(name: &'static str, status: u16, headers: &str, body: &str, meaning: Meaning) -> Behaviour {
    let (line, body) = (Line::Wire(says(message(status, headers, body))), body.as_bytes().to_vec());
    Behaviour { name, line, status, body, meaning, relayed: Relayed::Whole, attempts: 1 }
}

/// An error in upstream's shape.
fn refuses(name: &'static str, status: u16, headers: &str, meaning: Meaning) -> Behaviour {
    let body = format!(r#"{{"error_code":"WKS.{status}","error_msg":"{name}"}}"#);
    says_so(name, status, headers, &body, meaning)
}

/// An answer without a body.
fn says_no_body(name: &'static str, status: u16, headers: &str, meaning: Meaning) -> Behaviour {
    let own = personal("new");
    let line = Line::Wire(says(format!("HTTP/1.1 {status} Said\r\n{own}{headers}\r\n")));
    Behaviour { name, line, status, body: Vec::new(), meaning, relayed: Relayed::Whole, attempts: 1 }
}

/// No whole answer.
fn fails(name: &'static str, line: Line, word: &'static str) -> Behaviour {
    let (meaning, relayed) = (Meaning::Nothing(word), Relayed::Failed(word));
    Behaviour { name, line, status: 0, body: Vec::new(), meaning, relayed, attempts: 1 }
}

/// A head of a 200 and some of its body.
fn breaks_off(name: &'static str, framing: &str, body: &str, then: fn(Turn) -> Turn, word: &'static str) -> Behaviour {
    let own = personal("new");
    let text = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{own}{framing}\r\n\r\n{body}");
    let seen = body.split_once("\r\n").map_or(body, |(_, chunk)| chunk.trim_end());
    Behaviour {
        status: 200,
        body: seen.as_bytes().to_vec(),
        relayed: Relayed::Cut,
        ..fails(name, Line::Wire(then(says(text))), word)
    }
}

/// Answers to the question, and what only looks like one.
pub(super) fn answers() -> Vec<Behaviour> {
    let list = |name, headers, meaning| says_so(name, 200, headers, NEW, meaning);
    let good = Meaning::List { ttl: None };
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
    let other = format!("ETag: {OTHER_TAG}\r\n");
    let error = r#"{"error_code":"WKS.00211401","error_msg":"200 all the same"}"#;
    // Without its last bracket.
    let cut = &NEW[..NEW.len() - 1];
    let short = message(200, "", cut) + "}";
    let too_short = Behaviour {
        line: Line::Wire(says(short)),
        ..says_so("Content-Length too short", 200, "", cut, Meaning::NoList("not-json"))
    };
    vec![
        list("200", "", good),
        Behaviour {
            line: Line::Wire(says(interim).then_says(message(200, "", NEW))),
            ..list("1xx, then 200", "", good)
        },
        list("200 no-store", "Cache-Control: no-store\r\n", Meaning::Unkept),
        list("200 max-age=0", "Cache-Control: max-age=0\r\n", Meaning::List { ttl: Some(0) }),
        says_so("200 with HTML", 200, &other, "<html>maintenance</html>", Meaning::NoList("not-json")),
        says_so("200 with error_code", 200, &other, error, Meaning::NoList("not-products")),
        too_short,
        says_no_body("204", 204, "", Meaning::Personal),
        refuses("301", 301, "Location: https://elsewhere.example/\r\n", Meaning::Personal),
        says_no_body("304", 304, "", Meaning::NotModified { names_another: false }),
        says_no_body("304 of another ETag", 304, &other, Meaning::NotModified { names_another: true }),
    ]
}

/// Whoever asked, or what was asked for, is refused.
pub(super) fn refusals() -> Vec<Behaviour> {
    vec![
        refuses("400", 400, "", Meaning::Negative),
        refuses("404", 404, "", Meaning::Negative),
        refuses("405", 405, "Allow: POST\r\n", Meaning::Negative),
        refuses("401", 401, "", Meaning::Denial),
        refuses("403", 403, "", Meaning::Denial),
        Behaviour {
            line: Line::Wire(says(message(401, "", "{").replace("Length: 1", "Length: 2")).then_closes()),
            relayed: Relayed::Cut,
            ..says_so("401 cut off", 401, "", "{", Meaning::EndlessDenial)
        },
        refuses("494", 494, "", Meaning::Personal),
    ]
}

/// Answers that say that upstream fails.
pub(super) fn failures() -> Vec<Behaviour> {
    let at_once = Meaning::Failure { retry_after: None };
    let later = |seconds| Meaning::Failure { retry_after: Some(seconds) };
    let dated = |date| {
        let when = httpdate::fmt_http_date(date + Duration::from_secs(30));
        says(message(429, &format!("Retry-After: {when}\r\n"), r#"{"error_code":"WKS.429","error_msg":"dated"}"#))
    };
    let body = br#"{"error_code":"WKS.429","error_msg":"dated"}"#.to_vec();
    vec![
        refuses("429", 429, "", at_once),
        refuses("429 Retry-After: seconds", 429, "Retry-After: 30\r\n", later(30)),
        Behaviour { line: Line::Dated(dated), body, ..refuses("429 Retry-After: date", 429, "", later(30)) },
        refuses("429 Retry-After: garbage", 429, "Retry-After: soon\r\n", at_once),
        refuses("500", 500, "", at_once),
        refuses("502", 502, "", at_once),
        refuses("503", 503, "", at_once),
        refuses("503 Retry-After: an hour", 503, "Retry-After: 3600\r\n", later(60)),
        refuses("504", 504, "", at_once),
    ]
}

/// No answer, and no whole one.
pub(super) fn breaks() -> Vec<Behaviour> {
    let half = &NEW[..20];
    let chunk = format!("{:x}\r\n{NEW}\r\n", NEW.len());
    let too_long = format!("Content-Length: {}", NEW.len() + 1);
    let length = format!("Content-Length: {}", NEW.len());
    let giant = format!("HTTP/1.1 200 OK\r\n{}", format!("X-Filler: {}\r\n", "x".repeat(2500)).repeat(90));
    let wire = |text: &str| Line::Wire(says(text));
    vec![
        fails("connection refused", Line::Refused, "connect"),
        fails("name not resolved", Line::Unresolved, "connect"),
        fails("TLS fails", Line::NoTls, "tls"),
        Behaviour { attempts: 2, ..fails("reset before the head", Line::Wire(resets()), "broken") },
        breaks_off("reset mid-body", &length, half, Turn::then_resets, "broken"),
        breaks_off("chunks cut off", "Transfer-Encoding: chunked", &chunk, Turn::then_closes, "broken"),
        breaks_off("Content-Length too long", &too_long, NEW, Turn::then_closes, "broken"),
        Behaviour {
            meaning: Meaning::TooLargeHead,
            ..fails("giant head", wire(&(giant + "Content-Length: 0\r\n\r\n")), "broken")
        },
        fails("garbage", wire("\0\0\0\0 no HTTP\r\n\r\n"), "broken"),
    ]
}

/// Too slow, and too much.
pub(super) fn excesses() -> Vec<Behaviour> {
    let length = format!("Content-Length: {}", NEW.len());
    let filler = "x".repeat(2 * MAX_BODY);
    let giant = format!(r#"{{"total_count":0,"products":[],"filler":"{filler}"}}"#);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{giant}\r\n0\r\n\r\n",
        personal("new"),
        giant.len()
    );
    vec![
        Behaviour { relayed: Relayed::Failed("idle"), ..fails("slow head", Line::Wire(silent()), "first-byte") },
        breaks_off("slow body", &length, &NEW[..20], |turn| turn, "timeout"),
        Behaviour {
            line: Line::Wire(silent().then_waits().then_says(message(200, "", NEW))),
            ..says_so("late 200", 200, "", NEW, Meaning::Late)
        },
        says_so("giant body", 200, "", &giant, Meaning::TooLarge),
        Behaviour {
            line: Line::Wire(says(chunked)),
            ..says_so("giant body in chunks", 200, "", &giant, Meaning::TooLarge)
        },
    ]
}

/// All of them.
pub(super) fn all() -> Vec<Behaviour> {
    [answers(), refusals(), failures(), breaks(), excesses()].concat()
}
