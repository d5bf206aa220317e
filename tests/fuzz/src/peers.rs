//! What other peers send: a proxy's answer to CONNECT, the answer of a receiver of OTLP, HTTP/2 frames, notices of other
//! gateways, and a query of the operator. The first byte of an input chooses.

#![no_main]

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use workspace_gateway::testing::admin::read_query;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::gateway::snapshot::{encoded_again, trial_encoded_again};
use workspace_gateway::testing::gateway::{Gateway, Hint};
use workspace_gateway::testing::otlp::{find_bytes, find_number};
use workspace_gateway::testing::server::{FrameEvent, Frames};
use workspace_gateway::testing::upstream::connect_status;
use workspace_gateway_fuzz::{REGION, join, split, within_memory, write_seeds};

const CONNECT: u8 = 0;
const OTLP: u8 = 1;
const FRAMES: u8 = 2;
const NOTICE: u8 = 3;
const QUERY: u8 = 4;

/// A head of 16 KiB and what was read with it, and twice as much while the buffer grows.
const CONNECT_MEMORY: usize = 64 << 10;
/// The most of a head that is read, with the last piece.
const MAX_HEAD: usize = 17 * 1024;
/// What is decoded of a notice, and what it begins here, for each byte.
const NOTICE_MEMORY_PER_BYTE: usize = 128;
const NOTICE_MEMORY: usize = 64 << 10;

/// A stream that arrives in pieces.
struct Pieces<'p>(VecDeque<&'p [u8]>);

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while let Some(piece) = self.0.pop_front() {
            let (here, rest) = piece.split_at(piece.len().min(buffer.remaining()));
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
            if !here.is_empty() {
                buffer.put_slice(here);
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The status of a proxy's final response, and whether bytes follow its head, by the first line of each head alone. `None` if there
/// is no such head.
fn final_status(mut bytes: &[u8]) -> Option<(u16, bool)> {
    loop {
        // Lines may end in a bare line feed, and there may be blank ones before a head.
        while let Some(rest) = bytes.strip_prefix(b"\r\n").or(bytes.strip_prefix(b"\n")) {
            bytes = rest;
        }
        let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        let end = lines.iter().position(|line| [&b"\n"[..], b"\r\n"].contains(line))?;
        let status: u16 =
            std::str::from_utf8(lines[0].split(|byte| *byte == b' ').nth(1)?.get(..3)?).ok()?.parse().ok()?;
        bytes = &bytes[lines[..=end].iter().map(|line| line.len()).sum()..];
        if !(100..200).contains(&status) || status == 101 {
            return Some((status, !bytes.is_empty()));
        }
    }
}

fn check_connect(pieces: &[&[u8]]) {
    let read = |pieces: &[&[u8]]| {
        let mut io = Pieces(pieces.iter().copied().collect());
        let status = within_memory(CONNECT_MEMORY, || {
            pin!(connect_status(&mut io)).poll(&mut Context::from_waker(Waker::noop()))
        });
        let Poll::Ready(status) = status else { panic!("it waits for what is there") };
        status.ok().map(|(status, is_followed)| (status.as_u16(), is_followed))
    };
    let whole = pieces.concat();
    let (in_pieces, at_once) = (read(pieces), read(&[&whole]));
    if let Some((status, is_followed)) = at_once {
        let expected = final_status(&whole);
        assert_eq!(expected.map(|(status, _)| status), Some(status));
        // Only what comes with the head is noticed.
        assert!(!is_followed || expected.is_some_and(|(_, is_followed)| is_followed));
    }
    if whole.len() < MAX_HEAD - 1024 {
        assert_eq!(in_pieces.map(|(status, _)| status), at_once.map(|(status, _)| status), "in any pieces");
    }
}

/// A field of a protobuf message: its number, and an integer or bytes.
type Field<'m> = (u64, Result<u64, &'m [u8]>);

/// An integer of at most ten bytes. What exceeds 64 bits is lost.
fn varint<'m>(message: &mut &'m [u8]) -> Option<u64> {
    let length = 1 + message.iter().position(|byte| *byte < 0x80)?;
    let (digits, rest): (&'m [u8], _) = message.split_at(length);
    *message = rest;
    let value = digits.iter().rev().fold(0_u128, |value, digit| value.wrapping_shl(7) | u128::from(digit & 0x7f));
    (length <= 10).then_some(value as u64)
}

/// The fields of a message up to what is malformed.
fn fields(mut message: &[u8]) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    let mut next = || {
        let key = varint(&mut message)?;
        let length = match key & 7 {
            0 => return Some((key >> 3, Ok(varint(&mut message)?))),
            1 => 8,
            2 => varint(&mut message)?,
            5 => 4,
            _ => return None,
        };
        let (bytes, rest) = message.split_at_checked(usize::try_from(length).ok()?)?;
        message = rest;
        Some((key >> 3, Err(bytes)))
    };
    while let Some(field) = next() {
        fields.push(field);
    }
    fields
}

fn check_otlp(message: &[u8]) {
    let all = fields(message);
    for wanted in 0..4 {
        let first = all.iter().find(|(number, _)| *number == wanted).map(|(_, value)| *value);
        assert_eq!(find_number(message, wanted), first.and_then(Result::ok), "{all:?}");
        assert_eq!(find_bytes(message, wanted), first.and_then(Result::err), "{all:?}");
    }
}

/// The fields of a header block (RFC 7541 §6). `None` if it is malformed.
fn fields_of_block(mut block: &[u8]) -> Option<usize> {
    fn integer(block: &mut &[u8], bits: u32) -> Option<usize> {
        let mask = (1 << bits) - 1;
        let first = usize::from(block.split_off_first()? & mask);
        if first < mask.into() {
            return Some(first);
        }
        let length = 1 + block.iter().position(|byte| *byte < 0x80).filter(|place| *place < 5)?;
        let digits = block.split_off(..length)?.iter().rev();
        Some(first + digits.fold(0, |value, digit| value << 7 | usize::from(digit & 0x7f)))
    }
    fn string(block: &mut &[u8]) -> Option<()> {
        let length = integer(block, 7)?;
        block.split_off(..length).map(|_| ())
    }
    let mut fields = 0;
    while let Some(first) = block.first() {
        let is_literal = match first.leading_zeros() {
            0 => integer(&mut block, 7).map(|_| None)?,
            1 => Some(integer(&mut block, 6)?),
            2 => {
                integer(&mut block, 5)?;
                continue;
            }
            _ => Some(integer(&mut block, 4)?),
        };
        fields += 1;
        if let Some(name) = is_literal {
            if name == 0 {
                string(&mut block)?;
            }
            string(&mut block)?;
        }
    }
    Some(fields)
}

/// The events of a client's or a server's frames, frame by frame, up to the first error of the protocol (RFC 9113).
fn events(mut bytes: &[u8], is_client: bool) -> Vec<FrameEvent> {
    let mut events = Vec::new();
    let (mut highest, mut open): (u32, Option<(u32, bool, Option<Vec<u8>>)>) = (0, None);
    while let Some(([high, middle, low, kind, flags, stream @ ..], rest)) = bytes.split_first_chunk::<9>() {
        let (kind, flags, stream) = (*kind, *flags, u32::from_be_bytes(*stream) & 0x7fff_ffff);
        bytes = rest;
        let Some(payload) = bytes.split_off(..u32::from_be_bytes([0, *high, *middle, *low]) as usize) else { break };
        let is_end = flags & 1 != 0;
        // Only CONTINUATION of the same stream may follow an incomplete head.
        if open.as_ref().is_some_and(|(of, ..)| kind != 9 || *of != stream) || (kind == 9 && open.is_none()) {
            break;
        }
        match kind {
            3 => events.push(FrameEvent::Closed { stream }),
            4 if is_end && !payload.is_empty() || !payload.len().is_multiple_of(6) => break,
            4 if is_end => events.push(FrameEvent::Acknowledged),
            4 => {
                let size = payload.as_chunks::<6>().0.iter().rev().find(|setting| setting[..2] == [0, 1]);
                let table_size = size.map(|[.., a, b, c, d]| u32::from_be_bytes([*a, *b, *c, *d]));
                events.push(FrameEvent::Settings { table_size });
            }
            0 if is_end && !is_client => events.push(FrameEvent::Closed { stream }),
            1 | 9 => {
                let mut block = payload;
                if kind == 1 && flags & 8 != 0 {
                    let Some(padding) = block.split_off_first() else { break };
                    let Some(length) = block.len().checked_sub(usize::from(*padding)) else { break };
                    block = &block[..length];
                }
                if kind == 1 && flags & 0x20 != 0 && block.split_off(..5).is_none() {
                    break;
                }
                let (_, ends, mut trailers) =
                    open.take().unwrap_or_else(|| (stream, is_end, (stream <= highest).then(Vec::new)));
                highest = highest.max(stream);
                trailers.iter_mut().for_each(|trailers| trailers.extend_from_slice(block));
                if flags & 4 == 0 {
                    open = Some((stream, ends, trailers));
                    continue;
                }
                match trailers.filter(|_| is_client) {
                    _ if !is_client && ends => events.push(FrameEvent::Closed { stream }),
                    _ if !is_client => {}
                    None => events.push(FrameEvent::Opened { stream, has_body: !ends }),
                    Some(block) => {
                        let Some(fields) = fields_of_block(&block) else { break };
                        events.push(FrameEvent::Trailers { stream, fields });
                    }
                }
            }
            _ => {}
        }
    }
    events
}

fn check_frames(pieces: &[&[u8]]) {
    let whole = pieces.concat();
    for is_client in [true, false] {
        let read = |pieces: &[&[u8]]| {
            let mut frames = if is_client { Frames::of_client() } else { Frames::of_server() };
            let mut events = Vec::new();
            for mut piece in pieces.iter().copied() {
                while let Some(event) = frames.next(&mut piece) {
                    events.push(event);
                }
                assert!(piece.is_empty());
            }
            let left = [frames.unfinished_head(), frames.data_left(), frames.trailers()];
            (events, left, frames.is_unfinished())
        };
        let at_once = read(&[&whole]);
        assert_eq!(read(pieces), at_once, "in any pieces");
        let expected = events(&whole, is_client);
        assert_eq!(at_once.0.get(..expected.len()), Some(&expected[..]));
    }
}

struct Reader {
    runtime: Runtime,
    gateway: Arc<Gateway>,
}

/// A gateway that nothing is asked, and that calls nobody.
static READER: LazyLock<Reader> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let config = Config::from_layers("f", REGION, &[]).unwrap();
    let _entered = runtime.enter();
    let gateway = Gateway::new(&config, Clock::Manual(ManualClock::default())).unwrap();
    drop(_entered);
    Reader { runtime, gateway }
});

/// The content of a notice, which only a gateway with the secret of the fleet can write. It may have another version.
fn check_notice(content: &[u8]) {
    let limit = NOTICE_MEMORY + NOTICE_MEMORY_PER_BYTE * content.len();
    for encode_again in [encoded_again, trial_encoded_again] {
        let again = within_memory(limit, || encode_again(content));
        assert!(
            again.is_none_or(|again| encode_again(&again) == Some(again)),
            "what is read is written in the same way"
        );
    }
    let _entered = READER.runtime.enter();
    if let Ok(hint) = postcard::from_bytes::<Hint>(content) {
        for age in [Duration::ZERO, Duration::from_secs(30), Duration::MAX] {
            READER.gateway.take_hint(&hint, age);
        }
    }
}

fn check_query(query: &str) {
    let _entered = READER.runtime.enter();
    let (pages, _) = read_query(&READER.gateway, query);
    assert!(pages.iter().all(|status| [200, 400].contains(&status.as_u16())), "{pages:?}");
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let seed = |what: u8, rest: &[u8]| [&[what], rest].concat();
    let connect =
        |text: &str| seed(CONNECT, &join(&text.split('|').map(|it| it.as_bytes().to_vec()).collect::<Vec<_>>()));
    let request = frame(1, 4, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'h']);
    let trailers = [frame(1, 1, 1, &[0x40, 1, b'a']), frame(9, 4, 1, &[1, b'b', 0x10, 1, b'c', 0])].concat();
    let settings = frame(4, 0, 0, &[0, 1, 0, 0, 1, 0, 0, 3, 0, 0, 0, 9]);
    let frames = [settings, request, frame(0, 0, 1, b"body"), trailers, frame(3, 0, 1, &[0; 4])];
    let denied = [&[1, 4][..], &[7; 32], b"\x09workspace"].concat();
    vec![
        ("connect-200", connect("HTTP/1.1 200 OK\r\n\r\n")),
        (
            "connect-407",
            connect("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0| 407 No\r\nproxy-authenticate: Basic\r\n|\r\nx"),
        ),
        ("otlp", seed(OTLP, b"\x0a\x04\x08\x03\x12\x00\x12\x02no")),
        ("frames", seed(FRAMES, &join(&frames))),
        ("notice-void", seed(NOTICE, &[1, 0])),
        ("notice-refused", seed(NOTICE, &denied)),
        ("query-explain", seed(QUERY, b"url=/v2/p/products?limit=5&header=X-Auth-Token:+t&method=GET")),
        ("query-purge", seed(QUERY, b"operation=ListDesktopProducts&project=p&query=a%3db")),
    ]
}

fuzz_target!(init: write_seeds(seeds), |input: &[u8]| {
    let Some((what, rest)) = input.split_first() else { return };
    match what % 5 {
        CONNECT => check_connect(&split(rest)),
        OTLP => check_otlp(rest),
        FRAMES => check_frames(&split(rest)),
        NOTICE => check_notice(rest),
        _ => check_query(&String::from_utf8_lossy(rest)),
    }
});
