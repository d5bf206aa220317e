//! What the targets share: seeds, edits of valid inputs, hyper's reading of a request, and a limit of memory.

use std::cell::RefCell;
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};
use std::{env, fs, future, io, process};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::Empty;
use hyper::body::{Body, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::gateway::snapshot::RecordReader;

/// A folder. If it is set, the target writes its valid inputs there and stops.
const SEEDS: &str = "WORKSPACE_GATEWAY_FUZZ_SEEDS";

/// The smallest configuration.
pub const REGION: &str = "region = \"eu-west-101\"";

/// Later than the machine's clock.
const YEAR_2100: Duration = Duration::from_secs(130 * 365 * 24 * 60 * 60);

/// Writes the seeds if [`SEEDS`] asks for it.
pub fn write_seeds(seeds: impl FnOnce() -> Vec<(&'static str, Vec<u8>)>) {
    let Some(folder) = env::var_os(SEEDS) else { return };
    let folder = Path::new(&folder);
    fs::create_dir_all(folder).unwrap();
    for (name, seed) in seeds() {
        fs::write(folder.join(name), seed).unwrap();
    }
    process::exit(0);
}

/// A reader of records. Its wall clock stands still at the same time in each process, and its boot is unknown. So an input always
/// has the same result.
pub fn record_reader() -> RecordReader {
    let config = Config::from_layers("config.toml", REGION, &[]).unwrap();
    let clock = ManualClock::default();
    let date = SystemTime::UNIX_EPOCH + YEAR_2100;
    clock.advance_wall(date.duration_since(Clock::Manual(clock.clone()).date()).unwrap());
    RecordReader::new(&config, "/v2/p/products", "os_type=Linux", &Clock::Manual(clock)).unwrap()
}

/// The fields of an input and its body: lines, an empty line, and the body. A line that is no field is skipped.
pub fn read_response(input: &[u8]) -> (HeaderMap, &[u8]) {
    let end = input.windows(2).position(|window| window == b"\n\n");
    let (head, body) = end.map_or((input, &b""[..]), |end| (&input[..end], &input[end + 2..]));
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    (headers, body)
}

/// Whether a directive is there, for a reader that knows no quoted strings. `None` if there are some, or other odd text.
pub fn has_directive(headers: &HeaderMap, name: &str) -> Option<bool> {
    let values: Option<Vec<&str>> = headers.get_all("cache-control").iter().map(|it| it.to_str().ok()).collect();
    let values = values.filter(|values| !values.iter().any(|value| value.contains('"')))?;
    let mut parts = values.iter().flat_map(|value| value.split(','));
    Some(parts.any(|part| part.split('=').next().is_some_and(|it| it.trim().eq_ignore_ascii_case(name))))
}

/// Puts records into one sequence of bytes: before each, its length in two bytes.
pub fn join(records: &[Vec<u8>]) -> Vec<u8> {
    let framed = |record: &Vec<u8>| [&u16::try_from(record.len()).unwrap().to_le_bytes()[..], record].concat();
    records.iter().flat_map(framed).collect()
}

/// The records of such a sequence. If the last one is incomplete, it is shorter.
pub fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (record, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        records.push(record);
        bytes = rest;
    }
    records
}

/// Edits bytes. Each edit is four bytes of the script: what to do, where (2), and a value.
pub fn edit(bytes: &mut Vec<u8>, script: &[u8]) {
    for &[what, low, high, value] in script.as_chunks().0 {
        if bytes.is_empty() {
            return;
        }
        let at = usize::from(u16::from_le_bytes([low, high])) % bytes.len();
        match what % 5 {
            0 => bytes[at] = value,
            1 => bytes[at] ^= value,
            2 => bytes.insert(at, value),
            3 => drop(bytes.drain(at..bytes.len().min(at + usize::from(value)))),
            _ => {
                let part = bytes[at..bytes.len().min(at + usize::from(value))].to_vec();
                bytes.extend(part);
            }
        }
    }
}

/// A connection whose client has sent these bytes and waits. What is written to it is dropped.
struct Received<'b>(&'b [u8]);

impl Read for Received<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let (here, rest) = self.0.split_at(self.0.len().min(buffer.remaining()));
        buffer.put_slice(here);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

impl Write for Received<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What hyper's HTTP/1 server makes of the first bytes of a connection.
pub enum Reading {
    /// A request, whether it has a body, and how many bytes follow its head. With a body that number means nothing.
    Request { head: Box<Parts>, has_body: bool, rest: usize },
    /// The head is not complete.
    Waits,
    /// It is no request.
    Fails,
}

pub fn read_request(bytes: &[u8]) -> Reading {
    let request = RefCell::new(None);
    let service = service_fn(|received: Request<Incoming>| {
        let (head, body) = received.into_parts();
        request.borrow_mut().get_or_insert((Box::new(head), !body.is_end_stream()));
        future::pending::<Result<Response<Empty<Bytes>>, Infallible>>()
    });
    let mut builder = http1::Builder::new();
    let mut connection = builder.header_read_timeout(None).serve_connection(Received(bytes), service);
    let polled = Pin::new(&mut connection).poll(&mut Context::from_waker(Waker::noop()));
    let parts = connection.into_parts();
    let rest = parts.read_buf.len() + parts.io.0.len();
    match request.into_inner() {
        Some((head, has_body)) => Reading::Request { head, has_body, rest },
        None if polled.is_pending() => Reading::Waits,
        None => Reading::Fails,
    }
}

/// Runs `read`, which must not use more than `limit` bytes of memory at any time.
pub fn within_memory<T>(limit: usize, read: impl FnOnce() -> T) -> T {
    let mut result = None;
    let memory = allocation_counter::measure(|| result = Some(read()));
    assert!(memory.bytes_max <= limit as u64, "{} bytes of memory, and {limit} are allowed", memory.bytes_max);
    result.unwrap()
}
