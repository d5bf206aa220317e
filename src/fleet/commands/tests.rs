//! What the replies of an engine mean, and which of them are no answers.

use std::time::Duration;

use bytes::Bytes;
use redis::Value;

use super::*;
use crate::cache::second_tier::{LeaseState, LookedUp, Place};
use crate::clock::Clock;

const HERE: Incarnation = [9; 16];
const NONCE: u64 = 42;
const FRESH: Fresh = Fresh { incarnation: HERE, nonce: NONCE };
const LEASE_OF_ALL: Lease = Lease { name: [4; 16], holder: [5; 16] };

fn place() -> Place {
    Place { record: [7; 16], sets: Box::new([[0; 16], [1; 16], [2; 16], [3; 16]]) }
}

fn bulk(text: &[u8]) -> Value {
    Value::BulkString(text.to_vec())
}

fn record(incarnation: Incarnation, number: u64) -> Value {
    bulk(&[&incarnation[..], format!("{number:016}").as_bytes(), b"sealed"].concat())
}

/// The sets of the place are voided by these tickets.
fn control(voided: [Option<u64>; 4]) -> Value {
    let voided = voided
        .map(|number| number.map_or(Value::Nil, |number| bulk(format!("{number:016}0123456789abcdef").as_bytes())));
    Value::Array([bulk(&HERE)].into_iter().chain(voided).collect())
}

/// The replies of an engine: a record with ticket 5, and ticket 8 for the look-up.
fn replies() -> Vec<Value> {
    let time = Value::Array(vec![bulk(b"1800000000"), bulk(b"250000")]);
    vec![record(HERE, 5), Value::Int(0), control([None; 4]), Value::Int(8), time, bulk(NONCE.to_string().as_bytes())]
}

fn error(text: &str) -> Value {
    let parsed = redis::parse_redis_value(format!("-{text}\r\n").as_bytes());
    parsed.unwrap_or_else(|error| panic!("{error}"))
}

fn read(replies: Vec<Value>) -> Result<LookedUp, Fault> {
    let places = [place()];
    let look_up = LookUp { places: &places, wants_records: true, lease: None };
    Wanted { look_up, lease: None, fresh: FRESH, max_record: 100 }.read(replies, Clock::System.now(), 3)
}

/// The number of the record that a look-up finds with this reply in place of another one.
fn found(at: usize, reply: Value) -> Option<u64> {
    let mut replies = replies();
    replies[at] = reply;
    read(replies).unwrap().records[0].as_ref().map(|(order, _)| order.number)
}

#[test]
fn a_record_and_a_ticket_are_read() {
    let looked_up = read(replies()).unwrap();
    let ticket = looked_up.ticket.unwrap();
    assert_eq!(looked_up.records, [Some((Order { incarnation: HERE, number: 5 }, Bytes::from_static(b"sealed")))]);
    assert_eq!((ticket.order, ticket.connection), (Order { incarnation: HERE, number: 8 }, 3));
    assert_eq!((looked_up.time, ticket.time), (Duration::from_millis(1_800_000_000_250), looked_up.time));
}

#[test]
fn void_and_foreign_records_are_not_found() {
    for set in 0..4 {
        for (voided, expected) in [(4, Some(5)), (5, None), (6, None)] {
            let mut sets = [None; 4];
            sets[set] = Some(voided);
            assert_eq!(found(2, control(sets)), expected, "set {set} voided at {voided}");
        }
    }
    assert_eq!(found(0, record([8; 16], 5)), None);
    for other in [Value::Nil, bulk(b""), bulk(&[9; 32]), bulk(&HERE), Value::Int(3)] {
        assert_eq!(found(0, other), None);
    }
    // Who can write something else in place of a number can only void.
    let garbled = Value::Array(vec![bulk(&HERE), bulk(b"x"), Value::Nil, Value::Nil, Value::Nil]);
    assert_eq!(found(2, garbled), None);
    let without_incarnation = Value::Array(vec![Value::Nil; 5]);
    assert_eq!(found(2, without_incarnation), None);
}

#[test]
fn an_engine_without_memory_gives_what_it_has() {
    let mut replies = replies();
    let full = "OOM command not allowed when used memory > 'maxmemory'.";
    (replies[1], replies[3]) = (error(full), error(full));
    let looked_up = read(replies).unwrap();
    assert!(looked_up.records[0].is_some() && looked_up.ticket.is_none());
    assert_eq!(found(0, error("WRONGTYPE Operation against a key")), None);
}

#[test]
fn replies_that_are_no_answers_are_faults() {
    for at in 0..6 {
        // One reply too many before it: all others are shifted.
        let mut shifted = replies();
        shifted.insert(at, Value::Int(1));
        shifted.pop();
        assert_eq!(read(shifted).unwrap_err(), Fault::Reply, "shifted at {at}");
    }
    let mut short = replies();
    short.pop();
    assert_eq!(read(short).unwrap_err(), Fault::Reply);
    let mut of_another = replies();
    of_another[5] = bulk(b"41");
    assert_eq!(read(of_another).unwrap_err(), Fault::Reply);
}

#[test]
fn errors_say_whether_the_link_is_of_use() {
    for (text, expected) in [
        ("READONLY You can't write against a read only replica.", Fault::NotMaster),
        ("ERR Error running script: READONLY You can't write", Fault::NotMaster),
        ("MOVED 1 127.0.0.1:7001", Fault::NotMaster),
        ("LOADING Redis is loading the dataset in memory", Fault::Loading),
        ("NOAUTH Authentication required.", Fault::Denied),
        ("NOPERM this user has no permissions to run the 'time' command", Fault::Denied),
        (
            "ERR The user executing the script can't run this command or subcommand script: 62, on @user_script:1.",
            Fault::Denied,
        ),
        ("ERR ACL failure in script: User gateway has no permissions to run the 'get' command", Fault::Denied),
    ] {
        let mut replies = replies();
        replies[3] = error(text);
        assert_eq!(read(replies).unwrap_err(), expected, "{text}");
        assert!(expected.ends_link());
    }
    for (text, expected) in [("OOM command not allowed", Fault::Full), ("ERR other", Fault::Error)] {
        assert_eq!(read_done(&error(text)), Err(expected));
        assert!(!expected.ends_link());
    }
}

#[test]
fn a_ticket_that_does_not_fit_into_a_record_is_none() {
    for number in [0, -1, i64::MAX] {
        let mut replies = replies();
        replies[3] = Value::Int(number);
        assert!(read(replies).unwrap().ticket.is_none(), "{number}");
    }
}

#[test]
fn a_lease_is_held_here_or_elsewhere_or_the_last_call_had_no_response_for_others() {
    let places = [place()];
    let look_up = LookUp { places: &places, wants_records: false, lease: Some(LEASE_OF_ALL.name) };
    let wanted = Wanted { look_up, lease: Some(LEASE_OF_ALL), fresh: FRESH, max_record: 100 };
    let full = || error("OOM command not allowed when used memory > 'maxmemory'.");
    for (set, held, left, expected) in [
        (Value::Okay, bulk(&[5; 16]), 1000, LeaseState::Held(LEASE_OF_ALL)),
        (Value::Nil, bulk(&[6; 16]), 1000, LeaseState::Elsewhere),
        (Value::Nil, bulk(&[6; 16]), 0, LeaseState::Elsewhere),
        (Value::Nil, bulk(&[6; 16]), -2, LeaseState::Elsewhere),
        (Value::Nil, bulk(&[6; 16]), -1, LeaseState::None),
        (Value::Nil, bulk(&[6; 16]), 1001, LeaseState::None),
        (Value::Nil, bulk(&[[5; 8], [6; 8]].concat()), 1000, LeaseState::Here),
        (Value::Nil, bulk(&[[5; 8], [6; 8]].concat()), -1, LeaseState::None),
        (Value::Nil, Value::Nil, -2, LeaseState::Elsewhere),
        (Value::Nil, bulk(b"-"), 60_000, LeaseState::Unshared),
        (Value::Nil, error("WRONGTYPE Operation against a key"), -1, LeaseState::None),
        (full(), Value::Nil, -2, LeaseState::None),
    ] {
        let mut all = vec![set, held, Value::Int(left)];
        all.extend(replies().split_off(1));
        let looked_up = wanted.read(all, Clock::System.now(), 3).unwrap();
        assert_eq!((looked_up.lease, looked_up.records), (expected, vec![None]));
    }
}

#[test]
fn each_record_of_a_look_up_has_its_own_sets() {
    let places = [place(), Place { record: [8; 16], sets: Box::new([[6; 16]]) }];
    let look_up = LookUp { places: &places, wants_records: true, lease: None };
    let wanted = Wanted { look_up, lease: None, fresh: FRESH, max_record: 100 };
    let voided = |number: u64| bulk(format!("{number:016}").as_bytes());
    for (sets, expected) in [
        ([Value::Nil, Value::Nil, Value::Nil, Value::Nil, voided(6)], [true, false]),
        ([Value::Nil, Value::Nil, Value::Nil, voided(6), Value::Nil], [false, true]),
    ] {
        let mut all = replies();
        all.insert(1, record(HERE, 6));
        all[3] = Value::Array([bulk(&HERE)].into_iter().chain(sets).collect());
        let looked_up = wanted.read(all, Clock::System.now(), 3).unwrap();
        assert_eq!(looked_up.records.iter().map(Option::is_some).collect::<Vec<_>>(), expected);
    }
}

/// The replies of an engine to a poll: one notice of this incarnation, and one of an earlier one.
fn polled() -> Vec<Value> {
    let entry = |id: &[u8], incarnation: Incarnation, number: &[u8]| {
        let fields = [b"i", &incarnation[..], b"n", number, b"t", b"12", b"s", &[b'a'; 32], b"m", b"sealed"];
        Value::Array(vec![bulk(id), Value::Array(fields.map(bulk).to_vec())])
    };
    let log = Value::Array(vec![entry(b"1000-0", [1; 16], b"7"), entry(b"1000-1", HERE, b"3")]);
    let role = Value::Array(vec![bulk(b"master"), Value::Int(0), Value::Array(Vec::new())]);
    let control = Value::Array(vec![bulk(&HERE), bulk(b"3")]);
    let time = Value::Array(vec![bulk(b"1800000000"), bulk(b"250000")]);
    vec![role, Value::Int(0), control, log, Value::Int(9), time, bulk(NONCE.to_string().as_bytes())]
}

#[test]
fn a_poll_reads_the_notices_of_the_incarnation() {
    let poll = PollReplies { fresh: FRESH };
    let read = poll.read(&polled()).unwrap();
    let voids = Some([0xaa; 16]);
    let entry = LogEntry {
        incarnation: HERE,
        number: 3,
        ticket: 12,
        voids,
        sealed: Bytes::from_static(b"sealed"),
        told_at: Duration::from_secs(1),
    };
    let next = Some("1000-2".to_owned());
    assert_eq!(
        read,
        Polled {
            incarnation: HERE,
            last: 3,
            entries: vec![entry],
            time: Duration::from_millis(1_800_000_000_250),
            next,
            is_full: false,
            ticket: Some(9)
        }
    );
}

#[test]
fn a_poll_whose_replies_are_none_or_that_could_not_write_is_a_fault() {
    let poll = PollReplies { fresh: FRESH };
    for (at, reply, expected) in [
        (0, Value::Array(vec![bulk(b"slave")]), Fault::NotMaster),
        (2, Value::Array(vec![Value::Nil, Value::Nil]), Fault::Reply),
        (3, error("WRONGTYPE Operation against a key"), Fault::Error),
        (4, error("READONLY You can't write"), Fault::NotMaster),
        (5, Value::Nil, Fault::Reply),
        (6, bulk(b"41"), Fault::Reply),
    ] {
        let mut replies = polled();
        replies[at] = reply;
        assert_eq!(poll.read(&replies), Err(expected), "{at}");
    }
}

#[test]
fn a_told_notice_has_a_ticket() {
    let told = |done, number| Value::Array(vec![Value::Int(done), Value::Int(number), bulk(&HERE)]);
    assert_eq!(read_told(&told(1, 5)), Ok((true, Order { incarnation: HERE, number: 5 })));
    assert_eq!(read_told(&told(0, 5)), Ok((false, Order { incarnation: HERE, number: 5 })));
    assert_eq!(read_told(&told(2, 5)), Err(Fault::Reply));
    assert_eq!(read_told(&error("OOM command not allowed")), Err(Fault::Full));
}

#[test]
fn a_caller_is_known_by_a_record_or_by_the_lease_of_another_process() {
    let own = [[1; OF_PROCESS], [0; OF_PROCESS]].concat().try_into().unwrap();
    let read =
        |records: i64, holder: &[u8]| read_known(&[Value::Int(records), bulk(holder)], own).and_then(|known| known[0]);
    assert_eq!(read(0, b""), Ok(false));
    assert_eq!(read(1, b""), Ok(true));
    assert_eq!(read(0, &[1; OF_PROCESS]), Ok(false), "its own lease");
    assert_eq!(read(1, &[1; OF_PROCESS]), Ok(true));
    assert_eq!(read(0, &[2; OF_PROCESS]), Ok(true));
    assert_eq!(read(0, b"-"), Ok(true), "a call of another one has ended without a response for others");
    let no_lease = error("WRONGTYPE Operation against a key");
    let of_two = [Value::Int(0), no_lease, Value::Int(0), bulk(b"")];
    assert_eq!(read_known(&of_two, own), Ok(vec![Err(Fault::Error), Ok(false)]));
    assert_eq!(read_known(&[Value::Int(0), error("NOPERM no")], own), Err(Fault::Denied));
    assert_eq!(read_known(&[Value::Int(0)], own), Err(Fault::Reply));
    assert_eq!(read_known(&[bulk(b""), Value::Int(0)], own), Err(Fault::Reply));
}

#[test]
fn the_log_of_an_engine_without_memory_is_read() {
    let mut replies = polled();
    replies[4] = error("OOM command not allowed");
    let read = (PollReplies { fresh: FRESH }).read(&replies).unwrap();
    assert_eq!((read.entries.len(), read.ticket), (1, None));
}
