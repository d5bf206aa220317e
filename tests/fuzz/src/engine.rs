//! What an engine sends: the bounds before it is parsed, and what the replies to each command mean. The first byte of an input
//! chooses: the rest is pieces of a stream, or the edits of valid replies.

#![no_main]

use std::str;
use std::sync::LazyLock;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use redis::{Parser, Value};
use workspace_gateway::testing::cache::second_tier::{Lease, LeaseState, LookUp, LookedUp, Place};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::fleet::{LogFollower, counted, done, is_master, known, look_up, moved, told};
use workspace_gateway_fuzz::{edit, join, split, within_memory, write_seeds};

const BOUNDS: u8 = 0;
const LOOK_UP: u8 = 1;
const POLLS: u8 = 2;
const OTHERS: u8 = 3;

/// The longest bulk string.
const LARGEST: u64 = 300;
/// So many elements may come before a command is sent.
const ELEMENTS: usize = 64;
const MAX_ARRAY: usize = 64;
/// The memory of an element, besides its bytes: an array grows to twice its size, and moves.
const MEMORY_PER_ELEMENT: usize = 512;
const MEMORY_PER_BYTE: usize = 8;
const NONCE: u64 = 7;
const MAX_RECORD: usize = 64;
/// What comes before a sealed record: the incarnation, and the ticket.
const PREFIX: usize = 32;
const INCARNATION: [u8; 16] = *b"incarnation-1234";
const HOLDER: [u8; 16] = *b"process1lease--1";
/// One that no look-up draws.
const AFTER_LAST_TICKET: i64 = 10_000_000_000_000_000;

static NOW: LazyLock<Instant> = LazyLock::new(|| Clock::System.now());

/// All replies of a stream, up to the first that is none.
fn parse(mut bytes: &[u8]) -> Vec<Value> {
    let mut parser = Parser::new();
    let mut values = Vec::new();
    // It reads ahead, so that bytes may be left when the reader has none.
    while let Ok(value) = parser.parse_value(&mut bytes) {
        values.push(value);
    }
    values
}

fn count(value: &Value) -> u64 {
    match value {
        Value::Array(parts) => {
            assert!(parts.len() <= MAX_ARRAY);
            1 + parts.iter().map(count).sum::<u64>()
        }
        Value::BulkString(text) => {
            assert!(text.len() as u64 <= LARGEST);
            1
        }
        Value::Nil | Value::Int(_) | Value::Okay | Value::SimpleString(_) | Value::ServerError(_) => 1,
        other => panic!("no value of RESP2: {other:?}"),
    }
}

/// The client reads no more of what is accepted than was counted.
fn check_bounds(pieces: &[&[u8]]) {
    let whole = pieces.concat();
    let elements = counted(LARGEST, pieces.iter().copied());
    assert_eq!(elements, counted(LARGEST, [&whole[..]]), "in any pieces");
    let Some(elements) = elements else { return };
    assert!(elements <= ELEMENTS as u64);
    let values = within_memory(MEMORY_PER_ELEMENT * ELEMENTS + MEMORY_PER_BYTE * whole.len(), || parse(&whole));
    assert!(values.iter().map(count).sum::<u64>() <= elements, "the client reads more elements: {values:?}");
}

fn places() -> [Place; 2] {
    [1, 2].map(|n| Place { record: [n; 16], sets: Box::new([[n; 16], [3; 16]]) })
}

fn lease() -> Lease {
    Lease { name: [4; 16], holder: HOLDER }
}

fn text(value: &Value) -> &[u8] {
    match value {
        Value::BulkString(text) => text,
        Value::SimpleString(text) => text.as_bytes(),
        _ => b"",
    }
}

fn array(value: &Value) -> &[Value] {
    if let Value::Array(parts) = value { parts } else { &[] }
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(text).ok()?;
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// A record counts only if it is of the incarnation, and was drawn after whatever voids its sets.
fn check_looked_up(values: &[Value], found: &LookedUp) {
    // SET, GET and PTTL of the lease; two records; HSETNX, HMGET, HINCRBY, TIME and ECHO.
    assert_eq!((values.len(), text(&values[9])), (10, &b"7"[..]), "replies to other commands");
    let control = array(&values[6]);
    for (place, record) in found.records.iter().enumerate() {
        let Some((order, sealed)) = record else { continue };
        let stored = text(&values[3 + place]);
        assert_eq!((stored.len() - PREFIX, &stored[PREFIX..]), (sealed.len(), &sealed[..]));
        assert!((1..=MAX_RECORD).contains(&sealed.len()));
        assert!(order.incarnation == stored[..16] && order.incarnation == *text(&control[0]));
        assert_eq!(number(&stored[16..PREFIX]), Some(order.number));
        for voided in &control[1 + 2 * place..3 + 2 * place] {
            let is_before = || number(&text(voided)[..16]).is_some_and(|voided| voided < order.number);
            assert!(*voided == Value::Nil || is_before(), "a void record");
        }
    }
    if let Some(ticket) = &found.ticket {
        let drawn = i64::try_from(ticket.order.number).unwrap();
        assert!((1..AFTER_LAST_TICKET).contains(&drawn) && values[7] == Value::Int(drawn));
        assert_eq!(ticket.order.incarnation, text(&control[0]));
    }
    let is_taken = values[0] == Value::Okay || text(&values[0]) == b"OK";
    assert_eq!(is_taken, matches!(found.lease, LeaseState::Held(held) if held == lease()));
}

fn check_look_up(bytes: &[u8]) {
    let (values, places) = (parse(bytes), places());
    let wanted = LookUp { places: &places, wants_records: true, lease: Some([4; 16]) };
    let found = look_up((wanted, Some(lease())), NONCE, MAX_RECORD, values.clone(), *NOW);
    if let Some(found) = found {
        check_looked_up(&values, &found);
    }
}

/// Polls of one link, read by a gateway that has read no log before. If it says that nothing is missing, it has seen every number.
fn check_polls(polls: &[&[u8]]) {
    let mut follower = LogFollower::default();
    let (mut numbers, mut has_gap) = (Vec::new(), false);
    for poll in polls {
        let values = parse(poll);
        let Some(read) = follower.poll(NONCE, &values) else { continue };
        assert!(is_master(&values[0]) && text(&values[6]) == b"7");
        assert!(read.notices.len() <= array(&values[3]).len());
        let Some((is_whole, is_gap)) = read.progress else { return };
        for notice in &read.notices {
            let holds = |part: &[u8]| poll.windows(part.len()).any(|window| window == part);
            assert!(holds(&notice.sealed) && holds(&read.incarnation), "{notice:?}");
        }
        numbers.extend(read.notices.iter().map(|notice| notice.number));
        has_gap |= is_gap;
        // Far from any number that would take long to count to.
        if is_whole && !has_gap && read.last < 1_000 {
            assert!((1..=read.last).all(|number| numbers.contains(&number)), "{read:?}: {numbers:?}");
        }
        if let Some((millis, sequence)) = read.from.split_once('-').filter(|(millis, _)| !millis.is_empty()) {
            assert!((millis.parse::<u64>().unwrap(), sequence.parse::<u64>().unwrap()) > (0, 0));
        }
    }
    // Another link begins anew.
    follower.restart();
    let first = polls.first().and_then(|poll| follower.poll(NONCE, &parse(poll)));
    assert!(first.is_none_or(|read| read.progress.is_some()));
}

fn check_others(bytes: &[u8]) {
    let values = parse(bytes);
    if let Some(all) = known(&values, INCARNATION) {
        assert_eq!(all.len() * 2, values.len());
        for (is_known, pair) in all.into_iter().zip(values.as_chunks::<2>().0) {
            let holder = text(&pair[1]);
            let is_own = holder.is_empty() || *holder == INCARNATION[..8];
            let is_record = matches!(pair[0], Value::Int(records) if records > 0);
            assert_eq!(is_known, is_record || !is_own);
        }
    }
    let details = String::from_utf8_lossy(bytes);
    if let Some((host, port)) = moved(&details) {
        assert!(host == "here" || details.contains(&host));
        assert!(details.contains(&port.to_string()) || details.contains(":0") || details.contains(":+"));
    }
    for value in &values {
        if let Some((is_added, order)) = told(value) {
            let parts = array(value);
            assert!(
                parts.len() == 3 && parts[0] == Value::Int(is_added.into()) && order.incarnation == *text(&parts[2])
            );
            assert_eq!(parts[1], Value::Int(i64::try_from(order.number).unwrap()));
        }
        assert!(done(value).is_none_or(|done| *value == Value::Int(done.into())));
        let role = array(value).first().map_or(&b""[..], text);
        assert_eq!(is_master(value), role == b"master");
    }
}

fn bulk(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn bulks(parts: &[&[u8]]) -> Vec<u8> {
    [format!("*{}\r\n", parts.len()).into_bytes(), parts.iter().flat_map(bulk).collect()].concat()
}

/// The valid replies to a look-up: of the two records, the second one is void.
fn valid_look_up() -> Vec<u8> {
    let record = |ticket: &[u8]| bulk([&INCARNATION, ticket, b"sealed"].concat());
    let control = [&INCARNATION[..], b"0000000000000003id", b"0000000000000004id", b"0000000000000009", b""];
    [
        b"$-1\r\n".to_vec(),
        bulk(HOLDER),
        b":900\r\n".to_vec(),
        record(b"0000000000000005"),
        record(b"0000000000000008"),
        b":0\r\n".to_vec(),
        bulks(&control),
        b":10\r\n".to_vec(),
        bulks(&[b"1790000000", b"123456"]),
        bulk(b"7"),
    ]
    .concat()
}

/// The valid replies to a poll. The log has these notices.
fn valid_poll(notices: &[&str], last: &str) -> Vec<u8> {
    let entry = |number: &&str| {
        let fields: [&[u8]; 10] = [b"i", &INCARNATION, b"n", number.as_bytes(), b"t", b"5", b"s", b"", b"m", b"sealed"];
        [b"*2\r\n".to_vec(), bulk(format!("179000000{number}-0")), bulks(&fields)].concat()
    };
    [
        b"*3\r\n$6\r\nmaster\r\n:100\r\n*0\r\n".to_vec(),
        b":0\r\n".to_vec(),
        bulks(&[&INCARNATION, last.as_bytes()]),
        format!("*{}\r\n", notices.len()).into_bytes(),
        notices.iter().flat_map(entry).collect(),
        b":11\r\n".to_vec(),
        bulks(&[b"1790000000", b"123456"]),
        bulk(b"7"),
    ]
    .concat()
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let (places, values) = (places(), parse(&valid_look_up()));
    let wanted = LookUp { places: &places, wants_records: true, lease: Some([4; 16]) };
    let found = look_up((wanted, Some(lease())), NONCE, MAX_RECORD, values, *NOW).unwrap();
    assert!(found.records[0].is_some() && found.records[1].is_none() && found.ticket.is_some());
    let read = LogFollower::default().poll(NONCE, &parse(&valid_poll(&["1", "2"], "2"))).unwrap();
    assert_eq!((read.notices.len(), read.progress), (2, Some((true, false))));
    let seed = |what: u8, rest: &[u8]| [&[what], rest].concat();
    let others =
        [b":1\r\n$-1\r\n:0\r\n".to_vec(), bulk(HOLDER), b"*3\r\n:1\r\n:9\r\n".to_vec(), bulk(INCARNATION)].concat();
    vec![
        ("bounds", seed(BOUNDS, &join(&[valid_look_up(), b"-ERR no\r\n*-1\r\n".to_vec(), valid_poll(&["1"], "1")]))),
        // The client ends the line elsewhere.
        ("line-feed", seed(BOUNDS, &join(&[b"+a\n$10\r\n:1\r\n:2\r\n:3\r\n".to_vec()]))),
        ("look-up", seed(LOOK_UP, &[])),
        ("polls", seed(POLLS, &[])),
        ("others", seed(OTHERS, &others)),
    ]
}

fn edited(mut valid: Vec<u8>, script: &[u8]) -> Vec<u8> {
    edit(&mut valid, script);
    valid
}

fuzz_target!(init: write_seeds(seeds), |input: &[u8]| {
    let Some((what, rest)) = input.split_first() else { return };
    match what % 6 {
        BOUNDS => check_bounds(&split(rest)),
        LOOK_UP => check_look_up(&edited(valid_look_up(), rest)),
        POLLS => {
            let scripts = split(rest);
            let script = |place: usize| scripts.get(place).copied().unwrap_or_default();
            let polls = [
                edited(valid_poll(&["1", "2"], "3"), script(0)),
                edited(valid_poll(&["3", "4"], "4"), script(1)),
                edited(valid_poll(&[], "4"), script(2)),
            ];
            check_polls(&polls.each_ref().map(Vec::as_slice));
        }
        OTHERS => check_others(rest),
        4 => check_look_up(rest),
        _ => check_polls(&split(rest)),
    }
});
