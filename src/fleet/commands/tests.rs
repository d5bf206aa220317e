//! What the replies of an engine mean, and which of them are no answers.

use redis::Value;

use super::*;
use crate::clock::Clock;

const PLACE: Place = Place { record: [7; 16], sets: [[1; 16], [2; 16], [3; 16]] };
const HERE: Incarnation = [9; 16];
const NONCE: u64 = 42;
const LOOK_UP: LookUp<'static> =
    LookUp { place: &PLACE, wants_record: true, incarnation: HERE, nonce: NONCE, max_record: 100 };

fn bulk(text: &[u8]) -> Value {
    Value::BulkString(text.to_vec())
}

fn record(incarnation: Incarnation, number: u64) -> Value {
    bulk(&[&incarnation[..], format!("{number:016}").as_bytes(), b"sealed"].concat())
}

/// All records, and the three sets of the place, are voided by these tickets.
fn control(voided: [Option<u64>; 4]) -> Value {
    let voided = voided.map(|number| number.map_or(Value::Nil, |number| bulk(number.to_string().as_bytes())));
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
    LOOK_UP.read(replies, Clock::System.now(), 3)
}

/// The number of the record that a look-up finds with this reply in place of another one.
fn found(at: usize, reply: Value) -> Option<u64> {
    let mut replies = replies();
    replies[at] = reply;
    read(replies).unwrap().record.map(|(order, _)| order.number)
}

#[test]
fn a_record_and_a_ticket_are_read() {
    let looked_up = read(replies()).unwrap();
    let ticket = looked_up.ticket.unwrap();
    assert_eq!(looked_up.record, Some((Order { incarnation: HERE, number: 5 }, Bytes::from_static(b"sealed"))));
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
    assert!(looked_up.record.is_some() && looked_up.ticket.is_none());
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
