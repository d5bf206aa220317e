//! The functions that read a part of a request's head, each with its worst input. How the costs are compared is in
//! `tests/linear.rs`.

use std::collections::HashSet;
use std::hint::black_box;
use std::net::SocketAddr;

use http::header::{ETAG, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use workspace_gateway::testing::catalogue::{Catalogue, Forwarded, Operation};
use workspace_gateway::testing::config::{Config, Override};
use workspace_gateway::testing::fast_path::{HeadScanner, is_repeatable};
use workspace_gateway::testing::request::caller::{self, Callers};
use workspace_gateway::testing::request::directives::Directives;
use workspace_gateway::testing::request::fingerprint::Fingerprints;
use workspace_gateway::testing::request::forwarded;
use workspace_gateway::testing::request::hop::{self, Via};
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::request::precondition;
use workspace_gateway::testing::request::query;
use workspace_gateway::testing::request::request_directives::RequestDirectives;
use workspace_gateway::testing::request::route::{self, Route};
use workspace_gateway::testing::request::target;
use workspace_gateway::testing::request::trace::TraceContext;
use workspace_gateway::testing::request::validate::{self, MAX_FIELDS, MAX_PARAMETERS};
use workspace_gateway::testing::signing::ring::KeyRing;
use workspace_gateway::testing::signing::{
    AccessKey, Authorization, Binding, Payload, Projects, RelayChanges, SignedTarget, canonical_request, has_signature,
    parse_date,
};

/// Parts of the smaller input. The larger one has four times as many, which is as much as a head of 256 KiB has room
/// for.
pub(crate) const SMALL: usize = 16_000;

/// The same for fields, of which a `HeaderMap` holds 32,768.
pub(crate) const FEW: usize = 5_000;

/// A value of some size.
type Text = fn(usize) -> String;

/// A function that reads a part of a head, and its worst input.
pub(crate) struct Case {
    pub(crate) name: String,
    /// The size of the smaller input.
    pub(crate) small: usize,
    /// Whether it removes fields that are there more than once. With debug assertions `http` looks at all fields for
    /// each that is removed (`remove_extra_value` in http 1.5), so that the number of instructions says nothing then.
    pub(crate) removes_repeated_fields: bool,
    /// Makes the input of a size. What it returns reads that input once.
    pub(crate) prepare: Box<dyn Fn(usize) -> Box<dyn FnOnce()>>,
}

#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn add<I: 'static, O>(
        &mut self,
        name: &str,
        small: usize,
        input: impl Fn(usize) -> I + 'static,
        read: impl Fn(&mut I) -> O + Clone + 'static,
    ) {
        let prepare = move |size| -> Box<dyn FnOnce()> {
            let (mut input, read) = (input(size), read.clone());
            Box::new(move || drop(black_box(read(black_box(&mut input)))))
        };
        let prepare = Box::new(prepare);
        self.0.push(Case { name: name.to_owned(), small, removes_repeated_fields: false, prepare });
    }

    /// The same for a function that removes fields that are there more than once.
    fn add_removing<O>(
        &mut self,
        name: &str,
        small: usize,
        input: impl Fn(usize) -> Parts + 'static,
        read: impl Fn(&mut Parts) -> O + Clone + 'static,
    ) {
        self.add(name, small, input, read);
        self.0.iter_mut().last().unwrap().removes_repeated_fields = true;
    }
}

/// The same for all cases, and for as long as the process lives.
pub(crate) fn catalogue() -> &'static Catalogue {
    let given = |path| Override { path, value: "http://u.test".into(), origin: "test".to_owned() };
    let overrides = [given(&["upstream", "workspace_url"]), given(&["upstream", "appstream_url"])];
    Box::leak(Box::new(Config::from_layers("test", "", &overrides).unwrap().catalogue))
}

pub(crate) fn head<N: TryInto<HeaderName>>(target: &str, fields: impl IntoIterator<Item = (N, String)>) -> Parts {
    let (mut head, ()) = Request::new(()).into_parts();
    head.uri = target.parse().unwrap();
    for (name, value) in fields {
        let Ok(name) = name.try_into() else { panic!("not a field name") };
        head.headers.append(name, HeaderValue::try_from(value).unwrap());
    }
    head
}

fn headers<N: TryInto<HeaderName>>(fields: impl IntoIterator<Item = (N, String)>) -> HeaderMap {
    head("/", fields).headers
}

/// Distinct names, each with this letter first.
fn distinct(letter: char, number: usize) -> impl Iterator<Item = String> {
    (0..number).map(move |index| format!("{letter}{index:05x}"))
}

pub(crate) fn list(letter: char, number: usize, separator: &str) -> String {
    distinct(letter, number).collect::<Vec<_>>().join(separator)
}

/// Distinct names in an order that takes long to sort.
fn unsorted(number: usize, separator: &str) -> String {
    let names = (0..u32::try_from(number).unwrap()).map(|index| format!("{:08x}", index.wrapping_mul(0x9e37_79b1)));
    names.collect::<Vec<_>>().join(separator)
}

/// A head with one field.
fn one(name: &'static str, text: Text) -> impl Fn(usize) -> Parts {
    move |size| head("/", [(name, text(size))])
}

/// A head with a field many times.
fn repeated(name: &'static str, value: &'static str) -> impl Fn(usize) -> Parts {
    move |size| head("/", vec![(name, value.to_owned()); size])
}

fn in_http2(input: impl Fn(usize) -> Parts) -> impl Fn(usize) -> Parts {
    move |size| {
        let mut head = input(size);
        head.version = Version::HTTP_2;
        head
    }
}

/// The check that comes before all others. It refuses most of these inputs, at a cost that grows linearly, too. Below
/// its bounds it accepts them.
fn validation(cases: &mut Cases) {
    let catalogue = catalogue();
    let check = move |head: &mut Parts| validate::normalize(head).and_then(|()| validate::check(head, catalogue));
    let accept = move |head: &mut Parts| check(head).unwrap();
    let lists: [(&'static str, Text); 7] = [
        ("connection", |size| list('c', size, ",")),
        ("via", |size| "1.1 a,".repeat(size / 2)),
        ("cache-control", |size| list('c', size, ",")),
        ("if-none-match", |size| "\"a\",".repeat(size)),
        ("authorization", |size| format!("X SignedHeaders={}", list('s', size, ";"))),
        ("x-auth-token", |size| format!(" {} ", "t".repeat(4 * size))),
        ("x_language", |size| "a ".repeat(size)),
    ];
    for (name, text) in lists {
        cases.add(&format!("validate {name}"), SMALL, one(name, text), check);
        cases.add(&format!("accept {name}"), 60, one(if name == "x_language" { "x_any" } else { name }, text), accept);
    }
    let query = |size| head::<HeaderName>(&format!("/v2/p/products?{}", vec!["a="; size].join("&")), []);
    cases.add("validate the query", SMALL / 4, query, check);
    cases.add("accept the query", MAX_PARAMETERS / 4, query, accept);
    for name in ["x_any", "x-auth-token", "content-length", "x-any"] {
        cases.add(&format!("validate fields {name}"), FEW, repeated(name, " a "), check);
    }
    for name in ["x_any", "x-any"] {
        cases.add(&format!("accept fields {name}"), MAX_FIELDS / 4, repeated(name, " 1 "), accept);
    }
    cases.add_removing("accept fields content-length", MAX_FIELDS / 4, repeated("content-length", " 1 "), accept);
    for name in ["cookie", "content-length", "x-any"] {
        cases.add(&format!("normalize {name}"), FEW, in_http2(repeated(name, "a")), validate::normalize);
        cases.add_removing(&format!("accept http2 {name}"), MAX_FIELDS / 4, in_http2(repeated(name, "1")), accept);
    }
    cases.add("a long name", SMALL / 2, |size| head("/", [("x_".repeat(size), String::new())]), accept);
    cases.add_removing("target::translate", FEW / 5, in_http2(repeated("cookie", "a=1")), target::translate);
}

fn fields(cases: &mut Cases) {
    let many = |size| {
        let named = distinct('c', size / 2).map(|name| (name, String::new()));
        headers(named.chain([("connection".to_owned(), list('c', size / 2, ","))]))
    };
    cases.add("hop::strip names", SMALL, one("connection", |size| list('c', size, ",")), |head| {
        hop::strip(&mut head.headers).len()
    });
    cases.add("hop::strip fields", FEW, many, |headers| hop::strip(headers).len());
    cases.add_removing("hop::strip repeated fields", FEW / 5, repeated("te", "a"), |head| {
        hop::strip(&mut head.headers).len()
    });
    let via = Via::new(7);
    let others = one("via", |size| "1.1 workspace-gateway-0000000a,".repeat(size / 8));
    let trail = via.clone();
    cases.add("Via of gateways", SMALL, others, move |head| (trail.is_in(&head.headers), trail.trail(&head.headers)));
    let proxies = one("via", |size| "1.1 a,".repeat(size / 2));
    cases.add("Via of proxies", SMALL, proxies, move |head| (via.is_in(&head.headers), via.trail(&head.headers)));
    cases.add("is_repeatable", FEW, repeated("connection", "keep-alive"), |head| is_repeatable(head));
    cases.add("caller::token", FEW, repeated("authorization", "  "), |head| caller::token(&head.headers).is_ok());
    cases.add("has_signature", SMALL, one("authorization", |size| "\t".repeat(size)), |head| {
        has_signature(&head.headers)
    });
    let callers = std::rc::Rc::new(Callers::new([7; 32]));
    cases.add(
        "Callers",
        SMALL,
        |size| HeaderValue::try_from("t".repeat(size)).unwrap(),
        move |token| callers.of_token(token),
    );
    cases.add("Trace fields", FEW, repeated("traceparent", "00"), |head| TraceContext::read(&head.headers));
    cases.add("Trace", SMALL, one("traceparent", |size| "0-".repeat(size)), |head| TraceContext::read(&head.headers));
    // `Directives` reads no more than 4 KiB.
    let directives: [(&str, usize, Text); 3] = [
        ("names", 140, |size| list('c', size, ",")),
        ("numbers", 100, |size| vec!["max-age=1"; size].join(",")),
        ("a quoted string", 450, |size| format!("c=\"{}\"", "\\,".repeat(size))),
    ];
    for (name, small, text) in directives {
        cases.add(&format!("Directives of {name}"), small, one("cache-control", text), |head| {
            let directives = Directives::read(&head.headers).unwrap();
            (directives.has("no-store"), directives.seconds("max-age").unwrap(), directives.arguments("c").count())
        });
        cases.add(&format!("RequestDirectives of {name}"), small, one("cache-control", text), |head| {
            RequestDirectives::read(&head.headers).unwrap()
        });
    }
    let response = || HeaderMap::from_iter([(ETAG, HeaderValue::from_static("\"none\""))]);
    for (name, text) in [("tags", "\"a\","), ("open tags", "\",\"a"), ("weak tags", " W/\"none, \" ,")] {
        let tags = move |size| head("/", [("if-none-match", text.repeat(size / 3))]);
        let tagged = response();
        cases.add(&format!("is_current of {name}"), SMALL, tags, move |head| {
            assert!(!precondition::is_current(&head.headers, &tagged));
        });
    }
    let tagged = response();
    cases.add("is_current of fields", FEW, repeated("if-none-match", "\"a\""), move |head| {
        assert!(!precondition::is_current(&head.headers, &tagged));
    });

    let open = Operation { forwarded: Forwarded::All, ..catalogue().operations()[0].as_ref().clone() };
    let (all, named) =
        (open.clone(), Operation { forwarded: Forwarded::Named(vec!["x-any".parse().unwrap()].into()), ..open });
    let different = |size| headers(distinct('c', size).map(|name| (name, String::new())));
    cases.add("forwarded", FEW, different, move |headers| forwarded::select(&all, headers).len());
    cases.add("forwarded repeated", FEW, repeated("x-any", "a"), move |head| {
        forwarded::select(&named, &head.headers).len()
    });
    let catalogue = catalogue();
    let (operation, place) = catalogue.operation("/v2/p/products").unwrap();
    let read = move |query: Option<&str>, headers: &HeaderMap| {
        RequestKey::read(catalogue, operation, place, query, headers, false)
    };
    cases.add("Key of projects", FEW, repeated("x-project-id", "p"), move |head| read(None, &head.headers).unwrap());
    let query = |size| unsorted(size, "=&") + "=";
    cases.add("Key of a query", 400, query, move |query| read(Some(query), &HeaderMap::new()).unwrap());
    cases.add("Key of keyed fields", FEW, repeated("x-language", "a"), move |head| read(None, &head.headers).is_ok());
}

fn targets(cases: &mut Cases) {
    let catalogue = catalogue();
    let lines = |size| "a\r\n".repeat(size);
    cases.add("HeadScanner", SMALL, lines, |text| HeadScanner::default().end(text.as_bytes()));
    cases.add("HeadScanner of single bytes", SMALL / 4, lines, |text| {
        let mut scan = HeadScanner::default();
        text.as_bytes().chunks(1).all(|byte| scan.end(byte).is_none())
    });
    let fingerprints = std::rc::Rc::new(Fingerprints::new([7; 32]));
    cases.add("Fingerprints", SMALL, lines, move |text| fingerprints.of(text.as_bytes()));
    // A canonical query has at most 16 KiB.
    let canonical = |query: &mut String| query::canonical(Some(query), &[]).unwrap();
    cases.add("query::canonical", 400, |size| unsorted(size, "=&") + "=", canonical);
    cases.add("query::canonical of escapes", 1_000, |size| format!("c={}", "%61".repeat(size)), canonical);
    for path in ["/", "/a", "/%2e", "/..;"] {
        let target = move |size| format!("/v2/p{}", path.repeat(size)).parse::<Uri>().unwrap();
        cases.add(&format!("route {path}"), SMALL / 8, target, move |uri| {
            let route = route::find(catalogue, &Method::GET, uri.path());
            (matches!(route, Route::Unknown), route::project(catalogue, uri.path()).is_some())
        });
        let rebased = move |uri: &mut Uri| target::rebased(uri, &["/", "/a", "/a/a", "/v2", "/workspace"], catalogue);
        cases.add(&format!("rebase {path}"), SMALL / 8, target, rebased);
        let first = move |size| format!("{}/v2/p/x", path.repeat(size)).parse::<Uri>().unwrap();
        cases.add(&format!("rebase {path} first"), SMALL / 8, first, rebased);
    }
    let local = SocketAddr::from(([127, 0, 0, 1], 8080));
    let hosts: [(&str, Text); 3] = [
        ("a name", |size| "a.".repeat(size)),
        ("colons", |size| ":".repeat(size)),
        ("escapes", |size| "%".repeat(size)),
    ];
    for (name, text) in hosts {
        cases.add(&format!("target::check of {name}"), SMALL, one("host", text), move |head| {
            target::check(head, local, catalogue)
        });
    }
    cases.add("target::check of fields", FEW, repeated("host", "a"), move |head| target::check(head, local, catalogue));
}

fn signatures(cases: &mut Cases) {
    let key = || AccessKey::new("id".to_owned(), b"secret", None, Projects::These(["p".to_owned()].into()));
    let ring = || KeyRing::new([key()]);
    let now = || parse_date("20261122T120000Z").unwrap();
    // No name is in both lists, so that no comparison ends early.
    let both = |size| {
        let removed: HashSet<_> = distinct('c', size / 2).map(|name| name.parse().unwrap()).collect();
        let signed = format!("X SignedHeaders={}, Signature=0", list('s', size / 2, ";"));
        (headers([("authorization", signed)]), RelayChanges { path: false, removed })
    };
    cases.add("Binding", SMALL, both, |(headers, changes)| {
        assert_eq!(Binding::of(headers, "u.test", changes), Binding::Free);
    });
    let several = |size| {
        let fields = distinct('s', size).map(|name| ("authorization", format!("X SignedHeaders={name}, Signature=0")));
        (headers(fields), RelayChanges::default())
    };
    cases.add("Binding of fields", FEW, several, |(headers, changes)| Binding::of(headers, "u.test", changes));
    let words = |size| headers([("authorization", format!("SDK-HMAC-SHA256 {}", list('w', size, " ")))]);
    let keys = std::rc::Rc::new(ring());
    cases.add("claim", SMALL, words, move |headers| assert!(keys.claim(headers).is_none()));
    let keys = std::rc::Rc::new(ring());
    cases.add("claim of fields", FEW, repeated("authorization", "SDK-HMAC-SHA256 a"), move |head| {
        assert!(keys.claim(&head.headers).is_none());
    });
    let owned = std::rc::Rc::new(key());
    cases.add("allows_project", FEW, repeated("x-project-id", "p"), move |head| {
        assert!(owned.allows_project(Some("p"), &head.headers))
    });
    let claimed = |size| {
        let authorization = format!("SDK-HMAC-SHA256 Access=id, SignedHeaders={}, Signature=0", list('s', size, ";"));
        headers([("authorization", authorization), ("x-sdk-date", "20261122T120000Z".to_owned())])
    };
    cases.add("Authorization", SMALL / 2, claimed, |headers| {
        Authorization::read(&headers["authorization"]).unwrap().names().count()
    });
    let keys = std::rc::Rc::new(ring());
    cases.add("examine", SMALL / 2, claimed, move |headers| {
        keys.claim(headers).unwrap().examine(headers, now()).unwrap();
    });
    // All signed headers are present.
    let plain = SignedTarget { path: "/", query: None };
    let signed = move |size| {
        let mut headers = headers(distinct('s', size).map(|name| (name, "1".to_owned())));
        headers.insert(HOST, HeaderValue::from_static("u.test"));
        let covered: Vec<_> = distinct('s', size).collect();
        let covered = covered.iter().map(String::as_str);
        key().sign(&Method::GET, plain, &mut headers, covered, &Payload::unsigned(), now()).unwrap();
        headers
    };
    let keys = std::rc::Rc::new(ring());
    cases.add("verify and renew", FEW, signed, move |headers| {
        let examined = keys.claim(headers).unwrap().examine(headers, now()).unwrap();
        let verified = examined.verify(&Method::GET, plain, Payload::unsigned()).unwrap();
        verified.renew(&Method::GET, plain, headers, now()).unwrap();
    });
    let same = |size| (headers([("a", "1".to_owned())]), vec!["a"; size].join(";"));
    cases.add("canonical headers", SMALL, same, move |(headers, covered)| {
        canonical_request(&Method::GET, plain, headers, covered, &Payload::unsigned()).unwrap()
    });
    let canonical = |target: SignedTarget<'_>| {
        let headers = headers([("a", String::new())]);
        canonical_request(&Method::GET, target, &headers, "a", &Payload::unsigned()).unwrap()
    };
    cases.add(
        "canonical query",
        SMALL,
        |size| unsorted(size, "&"),
        move |query| canonical(SignedTarget { path: "/", query: Some(query) }),
    );
    cases.add(
        "canonical path",
        SMALL,
        |size| "/%2e".repeat(size),
        move |path| canonical(SignedTarget { path, query: None }),
    );
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Cases::default();
    validation(&mut cases);
    fields(&mut cases);
    targets(&mut cases);
    signatures(&mut cases);
    cases.0
}
