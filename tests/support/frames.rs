//! An HTTP/2 client that sends and receives single frames.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{World, within};

/// The client connection preface with empty SETTINGS (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub const DATA: u8 = 0x0;
pub const HEADERS: u8 = 0x1;
pub const RST_STREAM: u8 = 0x3;
pub const GOAWAY: u8 = 0x7;
pub const CONTINUATION: u8 = 0x9;
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A literal field without indexing (RFC 7541 §6.2.2) and without Huffman coding.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        let mut length = text.len();
        let mut bytes = vec![u8::try_from(length.min(127)).unwrap()];
        if length >= 127 {
            length -= 127;
            while length >= 128 {
                bytes.push(u8::try_from(length % 128).unwrap() | 128);
                length /= 128;
            }
            bytes.push(u8::try_from(length).unwrap());
        }
        [bytes, text.as_bytes().to_vec()].concat()
    };
    [vec![0], text(name), text(value)].concat()
}

/// A field block.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

pub fn head(path: &str, token: &str) -> Vec<u8> {
    head_with("GET", path, token, &[])
}

pub fn head_with(method: &str, path: &str, token: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let fields =
        [(":method", method), (":scheme", "http"), (":authority", "g"), (":path", path), ("x-auth-token", token)];
    [block(&fields), block(more)].concat()
}

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Whether it is a 100 (Continue).
    pub fn is_continue(&self) -> bool {
        self.kind == HEADERS && self.flags == END_HEADERS && self.payload == [8, 3, b'1', b'0', b'0']
    }

    /// The status of a response, if it is one that is looked for here, in the static table (RFC 7541 Appendix A).
    pub fn status(&self) -> Option<u16> {
        let statuses = [(0x88, 200), (0x8c, 400), (0x8d, 404)];
        let first = self.payload.first().filter(|_| self.kind == HEADERS)?;
        statuses.iter().find(|(index, _)| index == first).map(|&(_, status)| status)
    }

    pub fn is_end(&self) -> bool {
        [DATA, HEADERS].contains(&self.kind) && self.flags & END_STREAM != 0
    }
}

/// A connection to the gateway.
pub struct FrameClient {
    stream: TcpStream,
    read: Vec<u8>,
}

impl FrameClient {
    pub async fn connect(world: &World) -> Self {
        let stream = within(TcpStream::connect(world.server.proxy_address())).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Self { stream, read: Vec::new() };
        client.send(&[PREFACE]).await;
        client
    }

    pub async fn send(&mut self, frames: &[&[u8]]) {
        within(self.stream.write_all(&frames.concat())).await.unwrap();
    }

    /// The next frame of a stream, or GOAWAY. `None` when the gateway has closed the connection.
    pub async fn read_frame(&mut self) -> Option<Frame> {
        loop {
            let next = self.next().await?;
            if next.kind == GOAWAY || [DATA, HEADERS, RST_STREAM].contains(&next.kind) {
                return Some(next);
            }
        }
    }

    /// All frames of a stream until it ends. Panics at a frame of another stream.
    pub async fn read_stream(&mut self, stream: u32) -> Vec<Frame> {
        let mut frames: Vec<Frame> = Vec::new();
        while !frames.last().is_some_and(|last| last.is_end() || last.kind == RST_STREAM) {
            let next = self.read_frame().await.unwrap_or_else(|| panic!("closed after {frames:?}"));
            assert_eq!(next.stream, stream, "{next:?} after {frames:?}");
            frames.push(next);
        }
        frames
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let [a, b, c, kind, flags, one, two, three, four, after @ ..] = &self.read[..] {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                if after.len() >= length {
                    let stream = u32::from_be_bytes([*one, *two, *three, *four]);
                    let frame = Frame { kind: *kind, flags: *flags, stream, payload: after[..length].to_vec() };
                    self.read.drain(..9 + length);
                    return Some(frame);
                }
            }
            within(self.stream.read_buf(&mut self.read)).await.ok().filter(|&read| read > 0)?;
        }
    }
}
