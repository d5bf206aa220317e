//! Parses the HTTP/2 frames that one side sends (RFC 9113 §4.1): where they start and end, and which streams they open
//! and close. Of their payload, only the fields of trailer sections are counted.

use super::field_count::FieldCount;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const GOAWAY: u8 = 0x7;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const ACK: u8 = 0x1;

/// A setting: its identifier (RFC 9113 §6.5.2) and its value.
type Http2Setting = [u8; 6];
const HEADER_TABLE_SIZE: [u8; 2] = [0, 1];

/// What a complete frame means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameEvent {
    /// The head of a request is complete.
    Opened { stream: u32, has_body: bool },
    /// A trailer section of a request is complete.
    Trailers { stream: u32, fields: usize },
    /// SETTINGS are complete. `table_size`: their SETTINGS_HEADER_TABLE_SIZE, if present.
    Settings { table_size: Option<u32> },
    /// The settings of the other side are acknowledged.
    Acknowledged,
    /// The client has reset the stream, or the server has reset it or sent its whole response.
    Closed { stream: u32 },
}

/// The parser for one side. For a client, it starts after the preface.
pub struct Frames {
    is_client: bool,
    /// Length, type, flags and stream; the first `header_len` bytes are present.
    header: [u8; 9],
    header_len: usize,
    /// Payload bytes that remain in this frame.
    left: usize,
    /// Whether this frame, or one that must follow it, belongs to a head.
    in_head: bool,
    /// Whether the head ends with this frame.
    is_last: bool,
    /// Whether the stream ends with this frame, or with the head that it belongs to.
    is_end: bool,
    /// Bytes of that head so far.
    head: usize,
    /// The highest stream identifier of a head so far. They ascend (RFC 9113 §5.1.1).
    highest: u32,
    /// SETTINGS: the current setting, and the last table size.
    setting: Http2Setting,
    table_size: Option<u32>,
    /// Set if the head is a trailer section, because its stream was opened before.
    trailer: Option<Box<FieldCount>>,
    /// Bytes of all trailer sections so far.
    trailers: usize,
    /// Bytes of complete heads, without trailer sections.
    completed_heads: usize,
    /// Whether a frame was complete. The first one completes the preface (RFC 9113 §3.4).
    has_complete_frame: bool,
    has_goaway: bool,
}

impl Frames {
    pub fn of_client() -> Self {
        Self {
            is_client: true,
            header: [0; 9],
            header_len: 0,
            left: 0,
            in_head: false,
            is_last: false,
            is_end: false,
            head: 0,
            highest: 0,
            setting: [0; 6],
            table_size: None,
            trailer: None,
            trailers: 0,
            completed_heads: 0,
            has_complete_frame: false,
            has_goaway: false,
        }
    }

    pub fn of_server() -> Self {
        Self { is_client: false, ..Self::of_client() }
    }

    /// Parses bytes up to the next event. `bytes` keeps what follows it.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Option<FrameEvent> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.header_len < self.header.len() {
                self.header[self.header_len] = byte;
                self.header_len += 1;
                *bytes = rest;
                if self.header_len == self.header.len() {
                    self.begin();
                }
            } else {
                let (payload, rest) = bytes.split_at(bytes.len().min(self.left));
                if self.header[3] == SETTINGS {
                    self.read_settings(payload);
                }
                self.left -= payload.len();
                self.head += if self.in_head { payload.len() } else { 0 };
                if let Some(count) = &mut self.trailer {
                    count.read(payload);
                    self.trailers += payload.len();
                }
                *bytes = rest;
            }
            if self.header_len == self.header.len()
                && self.left == 0
                && let Some(event) = self.end()
            {
                return Some(event);
            }
        }
        None
    }

    /// Whether a head, the preface or a frame header is incomplete.
    pub fn is_unfinished(&self) -> bool {
        !self.has_complete_frame || self.in_head || (1..self.header.len()).contains(&self.header_len)
    }

    /// How many bytes an incomplete head will have at the end of this frame.
    pub fn unfinished_head(&self) -> usize {
        if self.in_head { self.head + self.left } else { 0 }
    }

    /// How many bytes remain of a DATA frame.
    pub fn data_left(&self) -> usize {
        let is_data = self.header_len == self.header.len() && self.header[3] == DATA;
        if is_data { self.left } else { 0 }
    }

    /// The bytes of heads that were completed since the last call. h2 decodes them now.
    pub(super) fn take_completed_heads(&mut self) -> usize {
        std::mem::take(&mut self.completed_heads)
    }

    /// The bytes of all trailer sections so far.
    pub fn trailers(&self) -> usize {
        self.trailers
    }

    /// h2 does not hold the trailer sections so far any more.
    pub(super) fn forget_trailers(&mut self) {
        self.trailers = 0;
    }

    /// Whether the gateway can write a frame here.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.has_complete_frame && self.header_len == 0 && !self.in_head
    }

    pub(super) fn has_goaway(&self) -> bool {
        self.has_goaway
    }

    fn begin(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.header;
        self.left = u32::from_be_bytes([0, high, middle, low]) as usize;
        self.has_goaway |= kind == GOAWAY;
        if [HEADERS, DATA].contains(&kind) {
            self.is_end = flags & END_STREAM != 0;
        }
        if kind == HEADERS && self.is_client {
            let stream = self.stream();
            self.trailer = (stream <= self.highest).then(Box::default);
            self.highest = stream.max(self.highest);
        }
        if [HEADERS, CONTINUATION].contains(&kind) {
            self.in_head = true;
            self.is_last = flags & END_HEADERS != 0;
            if let Some(count) = &mut self.trailer {
                count.begin(if kind == HEADERS { flags } else { 0 }, self.left);
            }
        }
    }

    fn end(&mut self) -> Option<FrameEvent> {
        let (kind, stream) = (self.header[3], self.stream());
        self.has_complete_frame = true;
        self.header_len = 0;
        match kind {
            RST_STREAM => return Some(FrameEvent::Closed { stream }),
            SETTINGS if self.header[4] & ACK != 0 => return Some(FrameEvent::Acknowledged),
            SETTINGS => return Some(FrameEvent::Settings { table_size: self.table_size.take() }),
            _ => {}
        }
        let is_head = std::mem::take(&mut self.is_last);
        let head = if is_head { std::mem::take(&mut self.head) } else { 0 };
        self.in_head &= !is_head;
        if !self.is_client {
            return (self.is_end && (is_head || kind == DATA)).then_some(FrameEvent::Closed { stream });
        }
        if !is_head {
            return None;
        }
        if let Some(count) = self.trailer.take() {
            return Some(FrameEvent::Trailers { stream, fields: count.fields() });
        }
        self.completed_heads += head;
        Some(FrameEvent::Opened { stream, has_body: !self.is_end })
    }

    fn read_settings(&mut self, payload: &[u8]) {
        let size = self.setting.len();
        for (&byte, left) in payload.iter().zip((1..=self.left).rev()) {
            // The last setting ends with the frame.
            let index = size - 1 - (left - 1) % size;
            self.setting[index] = byte;
            let [one, two, value @ ..] = self.setting;
            if index == size - 1 && [one, two] == HEADER_TABLE_SIZE {
                self.table_size = Some(u32::from_be_bytes(value));
            }
        }
    }

    fn stream(&self) -> u32 {
        stream_of(self.header)
    }
}

fn stream_of([.., one, two, three, four]: [u8; 9]) -> u32 {
    u32::from_be_bytes([one, two, three, four]) & 0x7fff_ffff
}

/// Whether `bytes` start with a non-empty DATA frame of this stream.
pub(super) fn begins_with_data_of(stream: u32, bytes: &[u8]) -> bool {
    let is_it = |&header: &[u8; 9]| header[..3] != [0; 3] && header[3] == DATA && stream_of(header) == stream;
    bytes.first_chunk().is_some_and(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [_, high, middle, low] = u32::try_from(length).unwrap().to_be_bytes();
        let mut frame = vec![high, middle, low, kind, flags, 0, 0, 0, 1];
        frame.resize(9 + length, 0xff);
        frame
    }

    impl Frames {
        /// Parses all bytes, and returns whether something is incomplete.
        fn follow(&mut self, mut bytes: &[u8]) -> bool {
            while self.next(&mut bytes).is_some() {}
            self.is_unfinished()
        }

        fn events(&mut self, mut bytes: &[u8]) -> Vec<FrameEvent> {
            std::iter::from_fn(|| self.next(&mut bytes)).collect()
        }
    }

    fn on(stream: u8, mut frame: Vec<u8>) -> Vec<u8> {
        frame[8] = stream;
        frame
    }

    #[test]
    fn streams_are_opened_by_clients_and_closed_by_both_sides() {
        let client = [
            on(1, frame(HEADERS, END_STREAM, 40)),
            on(1, frame(CONTINUATION, END_HEADERS, 3)),
            on(3, frame(HEADERS, END_HEADERS, 40)),
            on(3, frame(DATA, END_STREAM, 9)),
            on(5, frame(HEADERS, END_HEADERS, 40)),
            on(5, frame(RST_STREAM, 0, 4)),
        ];
        let opened = |stream, has_body| FrameEvent::Opened { stream, has_body };
        let closed = |stream| FrameEvent::Closed { stream };
        let expected = [opened(1, false), opened(3, true), opened(5, true), closed(5)];
        assert_eq!(Frames::of_client().events(&client.concat()), expected);
        let server = [
            on(3, frame(HEADERS, END_HEADERS, 40)),
            on(1, frame(HEADERS, END_STREAM, 40)),
            on(1, frame(CONTINUATION, END_HEADERS, 40)),
            on(3, frame(DATA, 0, 9)),
            on(3, frame(DATA, END_STREAM, 0)),
            on(5, frame(RST_STREAM, 0, 4)),
        ];
        assert_eq!(Frames::of_server().events(&server.concat()), [1, 3, 5].map(closed));
    }

    #[test]
    fn the_table_size_of_settings_is_read_in_any_pieces() {
        let mut settings = frame(SETTINGS, 0, 18);
        settings[9..].copy_from_slice(&[0, 3, 0, 1, 0, 1, 0, 1, 0, 0, 1, 2, 0, 4, 0, 0, 0, 1]);
        let all = [settings, frame(SETTINGS, ACK, 0), frame(SETTINGS, 0, 0)].concat();
        for size in [1, 5, 6, 100] {
            let mut frames = Frames::of_client();
            let events: Vec<_> = all.chunks(size).flat_map(|piece| frames.events(piece)).collect();
            let settings = |table_size| FrameEvent::Settings { table_size };
            assert_eq!(events, [settings(Some(258)), FrameEvent::Acknowledged, settings(None)], "{size}");
        }
    }

    #[test]
    fn bytes_after_an_event_are_kept() {
        let (head, data) = (frame(HEADERS, END_HEADERS, 4), frame(DATA, 0, 9));
        let both = [head.clone(), data.clone()].concat();
        let mut left = &both[..];
        assert_eq!(Frames::of_client().next(&mut left), Some(FrameEvent::Opened { stream: 1, has_body: true }));
        assert_eq!(left, data);
        assert!(begins_with_data_of(1, left));
        for (stream, other) in [(3, &data[..]), (1, &head), (1, &data[..8])] {
            assert!(!begins_with_data_of(stream, other));
        }
    }

    #[test]
    fn the_remaining_bytes_of_a_data_frame_are_known() {
        let mut frames = Frames::of_client();
        for (more, left) in
            [(frame(DATA, 0, 100)[..60].to_vec(), 49), (vec![0; 49], 0), (frame(HEADERS, 0, 9)[..12].to_vec(), 0)]
        {
            frames.follow(&more);
            assert_eq!(frames.data_left(), left);
        }
    }

    #[test]
    fn a_second_head_of_a_stream_is_its_trailer_section() {
        let mut frames = Frames::of_client();
        frames.follow(&[on(1, frame(HEADERS, END_HEADERS, 40)), on(3, frame(HEADERS, END_HEADERS, 50))].concat());
        assert_eq!(frames.trailers(), 0);
        frames.follow(&[on(1, frame(HEADERS, 0, 7)), on(1, frame(CONTINUATION, END_HEADERS, 5))].concat());
        assert_eq!(frames.trailers(), 12);
        frames.follow(&on(5, frame(HEADERS, END_HEADERS, 60)));
        assert_eq!(frames.trailers(), 12);
        frames.forget_trailers();
        frames.follow(&on(5, frame(HEADERS, END_HEADERS, 8)));
        assert_eq!(frames.trailers(), 8);
    }

    #[test]
    fn only_the_unfinished_head_is_counted() {
        let mut second = frame(HEADERS, 0, 30);
        second[8] = 3;
        let heads = [frame(HEADERS, END_HEADERS, 40), frame(DATA, 0, 9), second, frame(CONTINUATION, 0, 7)];
        let mut frames = Frames::of_client();
        assert!(frames.follow(&heads.concat()));
        assert_eq!((frames.unfinished_head(), frames.take_completed_heads()), (37, 40));
        let last = frame(CONTINUATION, END_HEADERS, 5);
        frames.follow(&last[..10]);
        assert_eq!((frames.unfinished_head(), frames.take_completed_heads()), (42, 0));
        frames.follow(&last[10..]);
        assert_eq!((frames.unfinished_head(), frames.take_completed_heads()), (0, 42));
    }

    #[test]
    fn a_head_is_unfinished_until_its_last_byte() {
        let begun = [frame(SETTINGS, 0, 0), frame(DATA, 0, 70_000), frame(SETTINGS, 1, 6)].concat();
        let head = [frame(HEADERS, 0, 40), frame(CONTINUATION, 0, 0), frame(CONTINUATION, END_HEADERS, 300)].concat();
        // For any partition into reads.
        for size in [1, 2, 7, 9, 100, usize::MAX] {
            let mut frames = Frames::of_client();
            assert!(frames.follow(&[]), "no frame yet");
            let unfinished = begun.chunks(size).map(|read| frames.follow(read)).last();
            assert_eq!(unfinished, Some(false), "{size}");
            for round in 0..3 {
                let unfinished: Vec<_> = head.chunks(size).map(|read| frames.follow(read)).collect();
                let (last, before) = unfinished.split_last().unwrap();
                assert!(!last && before.iter().all(|&unfinished| unfinished), "{size} {round}");
            }
        }
    }

    #[test]
    fn own_frames_can_be_written_between_frames_that_do_not_belong_together() {
        let mut frames = Frames::of_client();
        assert!(!frames.is_at_boundary(), "settings come first");
        for (more, may) in [
            (frame(SETTINGS, 0, 0), true),
            (frame(HEADERS, 0, 40), false),
            (frame(CONTINUATION, END_HEADERS, 1), true),
            (frame(DATA, 0, 9)[..17].to_vec(), false),
            (vec![0], true),
            (vec![0], false),
            (frame(DATA, 0, 0)[1..].to_vec(), true),
            (frame(GOAWAY, 0, 8), true),
        ] {
            frames.follow(&more);
            assert_eq!(frames.is_at_boundary(), may, "{more:?}");
        }
        assert!(frames.has_goaway());
    }

    #[test]
    fn an_incomplete_data_frame_is_not_a_head() {
        let mut frames = Frames::of_client();
        frames.follow(&frame(SETTINGS, 0, 0));
        let data = frame(DATA, 0, 100);
        assert!(!frames.follow(&data[..50]));
        assert!(!frames.follow(&data[50..]));
        assert!(frames.follow(&data[..8]), "what this is going to be is not known yet");
    }
}
