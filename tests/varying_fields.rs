//! The fast path knows a head again whose varying fields have other values: a trace, a validator, a signature and its date.
//! Each value is read anew, and both paths give the same response.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Builder;
use workspace_gateway::testing::signing::Payload;
use workspace_gateway::testing::simulator::IssuedKey;

use crate::support::process::{Process, folder};
use crate::support::raw_client::{RawClient, RawResponse, head_as};
use crate::support::signer::{Signed, date, entry, world_with_keys};
use crate::support::{PROJECT, World, with_fast_path};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const SIGNED_HEADERS: &[&str] = &["content-type", "x-project-id"];

/// A `traceparent` that differs by number.
pub(crate) fn trace(number: u32) -> String {
    format!("traceparent: 00-{number:032x}-00f067aa0ba902b7-01")
}

/// A gateway with the fast path, regardless of the environment variable.
pub(crate) async fn gateway(settings: &str) -> World {
    World::with(&with_fast_path(true, settings)).await
}

pub(crate) async fn exchange(world: &World, head: impl AsRef<[u8]>) -> RawResponse {
    RawClient::connect(world).await.exchange(head).await
}

/// The response to the same head with another field, so that it takes the full path.
async fn by_full_path(world: &World, head: &str) -> RawResponse {
    let before = world.fast_path_hits();
    let response = exchange(world, with_new_field(head)).await;
    assert_eq!(world.fast_path_hits(), before);
    response
}

fn with_new_field(head: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    head.replacen("HTTP/1.1\r\n", &format!("HTTP/1.1\r\nx-n: {number}\r\n"), 1)
}

/// The lines of a head in their order of names, without what differs by response.
fn comparable(response: &RawResponse) -> (Vec<String>, String) {
    let response = response.without_request_id();
    let mut lines: Vec<String> = response.head.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    (lines, response.body)
}

#[tokio::test]
async fn a_head_with_another_trace_takes_the_fast_path() {
    let world = gateway("").await;
    let head = |number| world.head(LIST, &[&trace(number), "tracestate: a=1", "x-request-id: a"]);
    world.warm_head_cache(&head(1)).await;
    for number in 2..5 {
        let head = head(number).replace("a=1", &format!("a={number}")).replace("id: a", &format!("id: {number}"));
        let before = world.fast_path_hits();
        let fast = exchange(&world, &head).await;
        assert_eq!(world.fast_path_hits(), before + 1);
        assert_eq!(comparable(&fast), comparable(&by_full_path(&world, &head).await));
    }
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn a_trace_is_logged_on_both_paths() {
    let simulator = workspace_gateway::testing::simulator::Simulator::start().await.unwrap();
    let file = folder("varying-lines").join("serve.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    let process = Process::start(&simulator, &file).await;
    let mut client = RawClient::connect_to(process.proxy.strip_prefix("http://").unwrap().parse().unwrap()).await;
    let token = simulator.token(PROJECT);
    for number in 1..6 {
        client.exchange(head_as(&token, LIST, &[&trace(number)])).await;
    }
    client.exchange(head_as(&token, LIST, &["traceparent: odd"])).await;
    let (_, log) = process.terminate().await;
    let events = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let lines: Vec<_> = events.filter(|event| event["target"] == "workspace_gateway::access").collect();
    let expected = (1..6).map(|number| Some(format!("{number:032x}"))).chain([None]);
    let traces = lines.iter().map(|line| line["trace_id"].as_str().map(str::to_owned));
    assert_eq!(traces.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn a_client_with_the_current_version_gets_a_304_on_both_paths() {
    let world = gateway("").await;
    let tag = exchange(&world, world.head(LIST, &[])).await.header("etag").to_owned();
    let head = |tag: &str| world.head(LIST, &[&format!("if-none-match: {tag}")]);
    world.warm_head_cache(&head("\"old\"")).await;
    for (sent, status) in [("\"other\"", 200), (&*tag, 304), (&format!("W/{tag}"), 304), ("*", 304), ("", 200)] {
        let before = world.fast_path_hits();
        let fast = exchange(&world, head(sent)).await;
        assert_eq!((fast.status(), world.fast_path_hits()), (status, before + 1), "{sent}");
        assert_eq!(comparable(&fast), comparable(&by_full_path(&world, &head(sent)).await), "{sent}");
    }
    let count = |status: u16| {
        world.metric(&format!(
            "workspace_gateway_requests_total{{operation=\"ListProducts\",result=\"hit\",status=\"{status}\"}}"
        ))
    };
    assert_eq!([count(200), count(304)], [7.0, 6.0]);
}

#[tokio::test]
async fn a_list_of_entity_tags_or_a_date_takes_the_full_path() {
    let world = gateway("").await;
    let tag = exchange(&world, world.head(LIST, &[])).await.header("etag").to_owned();
    for line in [format!("if-none-match: \"a\", {tag}"), "if-modified-since: Sun, 06 Nov 1994 08:49:37 GMT".to_owned()]
    {
        for _ in 0..3 {
            exchange(&world, world.head(LIST, &[&line])).await;
        }
        assert_eq!(world.fast_path_hits(), 0, "{line}");
    }
}

#[tokio::test]
async fn a_varying_field_in_the_key_takes_the_full_path() {
    for name in ["tracestate", "traceparent"] {
        let world = gateway(&format!("[cache]\nkeyed_headers = [\"{name}\"]\n")).await;
        for number in 0..6 {
            exchange(&world, world.head(LIST, &[&format!("{name}: {}", number % 2)])).await;
        }
        assert_eq!((world.fast_path_hits(), world.upstream_calls()), (0, 2), "{name}");
        // Without the field, it is not in the key.
        world.warm_head_cache(&world.head(LIST, &[])).await;
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_with_its_new_values_is_rejected() {
    let world = gateway("[limits]\nmax_head_size = \"8KiB\"\n").await;
    let padding = "p".repeat(7_900 - world.head(LIST, &[]).len());
    let head =
        |length| world.head(LIST, &[&format!("x-padding: {padding}"), &format!("tracestate:{}", "a".repeat(length))]);
    world.warm_head_cache(&head(10)).await;
    for (length, status, is_fast) in [(20, 200, true), (200, 200, false), (400, 431, false)] {
        let before = world.fast_path_hits();
        assert_eq!(exchange(&world, head(length)).await.status(), status, "{length}");
        assert_eq!(world.fast_path_hits(), before + usize::from(is_fast), "{length}");
    }
}

/// A GET that is signed at a time, as the bytes of its head.
fn signed_head(world: &World, key: &IssuedKey, at: SystemTime, more: &[(&'static str, &str)]) -> String {
    let mut unsigned = Signed { headers: http::HeaderMap::new(), ..Signed::get(world, key, LIST) };
    for (name, value) in [("content-type", "application/json"), ("x-project-id", PROJECT)].iter().chain(more) {
        unsigned = unsigned.with(name, value);
    }
    let covered: Vec<&str> = SIGNED_HEADERS.iter().copied().chain(more.iter().map(|(name, _)| *name)).collect();
    let signed = unsigned.sign(key, &covered, &Payload::of(b""), at);
    let lines = signed.headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()));
    format!("GET {} HTTP/1.1\r\n{}\r\n", LIST.replace("PROJECT", PROJECT), lines.collect::<String>())
}

/// A gateway with a permanent and a temporary access key.
pub(crate) async fn gateway_with_keys(settings: &str) -> (World, [IssuedKey; 2]) {
    world_with_keys(
        |simulator| [simulator.access_key(PROJECT), simulator.temporary_access_key(PROJECT)],
        |keys| with_fast_path(true, &format!("{settings}{}", keys.each_ref().map(|key| entry(key, "")).concat())),
    )
    .await
}

#[tokio::test]
async fn a_request_that_is_signed_anew_takes_the_fast_path() {
    let (world, keys) = gateway_with_keys("[grants]\ngrant_ttl = \"1h\"\n[cache]\nttl = \"1h\"\n").await;
    for key in &keys {
        let at = |seconds: u64| date(&world) + Duration::from_secs(seconds);
        world.warm_head_cache(&signed_head(&world, key, at(0), &[])).await;
        for seconds in 1..4 {
            let head = signed_head(&world, key, at(seconds), &[]);
            let (before, verified) = (world.fast_path_hits(), world.metric(VERIFIED));
            let fast = exchange(&world, &head).await;
            assert_eq!((world.fast_path_hits(), world.metric(VERIFIED)), (before + 1, verified + 1.0));
            assert_eq!(comparable(&fast), comparable(&by_full_path(&world, &head).await));
        }
    }
}

const VERIFIED: &str = "workspace_gateway_signatures_total{result=\"verified\"}";

#[tokio::test]
async fn a_signature_is_counted_once_if_the_fast_path_has_no_fresh_entry() {
    let (world, [key, _]) = gateway_with_keys("[grants]\ngrant_ttl = \"1h\"\n").await;
    world.warm_head_cache(&signed_head(&world, &key, date(&world), &[])).await;
    // The entry is stale then.
    world.seconds_pass(301);
    let (before, verified) = (world.fast_path_hits(), world.metric(VERIFIED));
    exchange(&world, signed_head(&world, &key, date(&world), &[])).await;
    assert_eq!((world.fast_path_hits(), world.metric(VERIFIED)), (before, verified + 1.0));
}

#[tokio::test]
async fn a_wrong_signature_is_refused_although_its_head_is_known() {
    let (world, keys) = gateway_with_keys("[grants]\ngrant_ttl = \"1h\"\n[cache]\nttl = \"1h\"\n").await;
    let other = world.simulator.access_key(PROJECT);
    for key in &keys {
        let head = |seconds| signed_head(&world, key, date(&world) + Duration::from_secs(seconds), &[]);
        let known = head(0);
        world.warm_head_cache(&known).await;
        let before = world.fast_path_hits();
        let (same_date, same_signature) = (line(&head(7), "x-sdk-date"), line(&head(7), "authorization"));
        let by_other = IssuedKey { id: key.id.clone(), security_token: key.security_token.clone(), ..other.clone() };
        let forged = signed_head(&world, &by_other, date(&world), &[]);
        for wrong in [
            known.replace(&line(&known, "x-sdk-date"), &same_date),
            known.replace(&line(&known, "authorization"), &same_signature),
            known.replace("Signature=", "Signature= "),
            known.replace("Signature=", "Signature=0"),
            known.replace(&format!("Access={}", key.id), &format!("Access={}", other.id)),
            forged,
            head(15 * 60 + 1),
        ] {
            let refused = exchange(&world, &wrong).await;
            assert_ne!(refused.status(), 200, "{wrong}");
            assert_eq!(world.fast_path_hits(), before, "{wrong}");
            assert_eq!(refused.status(), by_full_path(&world, &wrong).await.status(), "{wrong}");
        }
        // The date of the first head is too old, and that of a later one is not.
        world.seconds_pass(15 * 60 + 1);
        assert_eq!((exchange(&world, &known).await.status(), world.fast_path_hits()), (401, before));
        assert_eq!((exchange(&world, head(0)).await.status(), world.fast_path_hits()), (200, before + 1));
    }
}

/// The line of a field.
fn line(head: &str, name: &str) -> String {
    head.lines().find(|line| line.starts_with(name)).unwrap().to_owned()
}

#[tokio::test]
async fn a_signature_that_covers_another_varying_field_takes_the_full_path() {
    let (world, [key, _]) = gateway_with_keys("").await;
    for (name, value) in [("traceparent", "00-1"), ("if-none-match", "\"a\""), ("x-request-id", "1")] {
        for seconds in 0..4 {
            let head = signed_head(&world, &key, date(&world) + Duration::from_secs(seconds), &[(name, value)]);
            assert_eq!(exchange(&world, &head).await.status(), 200, "{name}");
        }
        assert_eq!(world.fast_path_hits(), 0, "{name}");
    }
}

#[tokio::test]
async fn a_signature_beside_a_token_does_not_matter() {
    let (world, [key, _]) = gateway_with_keys("").await;
    let head = |seconds| {
        let head = signed_head(&world, &key, date(&world) + Duration::from_secs(seconds), &[]);
        head.replacen("\r\n\r\n", &format!("\r\nx-auth-token: {}\r\n\r\n", world.token), 1)
    };
    world.warm_head_cache(&head(0)).await;
    let before = world.fast_path_hits();
    for seconds in [1, 15 * 60 + 1] {
        assert_eq!(exchange(&world, head(seconds)).await.status(), 200);
    }
    assert_eq!(world.fast_path_hits(), before + 2);
}

#[tokio::test]
async fn two_access_keys_with_the_same_request_both_take_the_fast_path() {
    let (world, keys) = world_with_keys(
        |simulator| [simulator.access_key(PROJECT), simulator.access_key(PROJECT)],
        |keys| with_fast_path(true, &keys.each_ref().map(|key| entry(key, "")).concat()),
    )
    .await;
    for key in &keys {
        world.warm_head_cache(&signed_head(&world, key, date(&world), &[])).await;
    }
    let before = world.fast_path_hits();
    for seconds in 1..4 {
        for key in &keys {
            let head = signed_head(&world, key, date(&world) + Duration::from_secs(seconds), &[]);
            assert_eq!(exchange(&world, head).await.status(), 200);
        }
    }
    assert_eq!(world.fast_path_hits(), before + 6);
}

/// A line of a generated head: a name, what separates it from its value, the value and the end of the line.
type Line = (&'static str, &'static str, &'static str, &'static str);

fn lines() -> impl Strategy<Value = Vec<Line>> {
    let names = select(vec![
        "traceparent",
        "TraceParent",
        "tracestate",
        "x-request-id",
        "if-none-match",
        "If-None-Match",
        "x-sdk-date",
        "authorization",
        "x-auth-token",
        "connection",
        "x_sdk_date",
        "if_none_match",
        "traceparent ",
        " traceparent",
        "if-modified-since",
        "cache-control",
    ]);
    let separators = select(vec![": ", ":", ":  ", ":\t", " : "]);
    let values = select(vec![
        "TAG",
        "W/TAG",
        "*",
        "\"a\"",
        "\"a\", TAG",
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "a b",
        "a\tb",
        "\u{e9}",
        "\0",
        "keep-alive",
        "close",
        "traceparent",
        "20261122T120000Z",
        "no-cache",
        "max-age=60",
        " v ",
        "SDK-HMAC-SHA256 Access=A, SignedHeaders=host, Signature=00",
        "SDK-HMAC-SHA256 Access=A, SignedHeaders=host, Signature=0,1",
        "Basic a",
        "a, b; c",
    ]);
    let ends = select(vec!["\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r\r\n", "\r\n "]);
    vec((names, separators, values, ends), 0..4)
}

/// Whatever a client puts into varying fields and near them, both paths give the same response.
#[test]
fn both_paths_agree_on_every_head() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (world, tag) = runtime.block_on(async {
        let world = gateway("[cache]\nttl = \"1h\"\n[grants]\ngrant_ttl = \"1h\"\n").await;
        let tag = exchange(&world, world.head(LIST, &[])).await.header("etag").to_owned();
        (world, tag)
    });
    let config = Config { cases: 1_500, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&(lines(), lines()), |(known, sent)| {
        runtime.block_on(async {
            let text = |lines: &[Line]| -> String {
                let line = |(name, separator, value, end): &Line| {
                    format!("{name}{separator}{}{end}", value.replace("TAG", &tag))
                };
                let lines: String = lines.iter().map(line).collect();
                let path = LIST.replace("PROJECT", PROJECT);
                format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {}\r\n{lines}\r\n", world.token)
            };
            // The same fields with other values, and other fields.
            let values = |(line, other): (&Line, &Line)| (line.0, line.1, other.2, line.3);
            let same_fields: Vec<Line> = known.iter().zip(&sent).map(values).collect();
            for _ in 0..2 {
                responses(&world, &text(&known)).await;
            }
            for lines in [&known, &same_fields, &sent] {
                let head = text(lines);
                let fast = responses(&world, &head).await;
                let full = responses(&world, &with_new_field(&head)).await;
                prop_assert_eq!(fast, full, "{:?}", head);
            }
            Ok(())
        })
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(world.fast_path_hits() > 1_000, "{}", world.fast_path_hits());
}

/// Everything that the gateway sends for these bytes until it closes the connection, as sorted lines without ids.
async fn responses(world: &World, bytes: &str) -> Vec<String> {
    let mut client = RawClient::connect(world).await;
    client.send(bytes).await;
    client.finish_sending().await;
    let received = String::from_utf8(client.read_to_end().await).unwrap();
    // hyper dates its own responses.
    let is_compared = |line: &&str| !line.contains("request") && !line.starts_with("date: ");
    let mut lines: Vec<String> = received.lines().filter(is_compared).map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}
