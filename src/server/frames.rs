//! Where the frames of HTTP/2 begin and end (RFC 9113 §4.1), and nothing of what is in them: enough to tell
//! whether a client has left a head unfinished, and where something can be said between two frames.

const HEADERS: u8 = 0x1;
const GOAWAY: u8 = 0x7;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;

/// Follows what one side sends; a client, from after its preface.
pub(super) struct Frames {
    /// Length, type, flags and stream; as much of it as there is.
    header: [u8; 9],
    have: usize,
    /// Bytes of the frame that are still to come.
    left: usize,
    /// Whether this frame, or one that must follow it, belongs to a head.
    in_head: bool,
    /// Whether the head ends with this frame.
    is_last: bool,
    /// Whether there was a whole frame. The first one completes the preface (RFC 9113 §3.4).
    begun: bool,
    /// Whether there was a GOAWAY.
    is_going: bool,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { header: [0; 9], have: 0, left: 0, in_head: false, is_last: false, begun: false, is_going: false }
    }

    /// Takes note of what has come. Says whether a head, or the preface, or the few bytes before a frame are
    /// begun and not finished.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) -> bool {
        while let Some(&byte) = bytes.first() {
            if self.have < self.header.len() {
                self.header[self.have] = byte;
                self.have += 1;
                bytes = &bytes[1..];
                if self.have == self.header.len() {
                    self.begin();
                }
            } else {
                let here = bytes.len().min(self.left);
                self.left -= here;
                bytes = &bytes[here..];
            }
            if self.have == self.header.len() && self.left == 0 {
                self.end();
            }
        }
        !self.begun || self.in_head || (1..self.header.len()).contains(&self.have)
    }

    /// Whether a first GOAWAY can be said here.
    pub(super) fn may_go_away(&self) -> bool {
        self.begun && self.have == 0 && !self.in_head && !self.is_going
    }

    fn begin(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.header;
        self.left = u32::from_be_bytes([0, high, middle, low]) as usize;
        self.is_going |= kind == GOAWAY;
        if [HEADERS, CONTINUATION].contains(&kind) {
            self.in_head = true;
            self.is_last = flags & END_HEADERS != 0;
        }
    }

    fn end(&mut self) {
        self.begun = true;
        self.have = 0;
        if self.is_last {
            (self.in_head, self.is_last) = (false, false);
        }
    }
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

    const SETTINGS: u8 = 0x4;
    const DATA: u8 = 0x0;

    #[test]
    fn a_head_is_unfinished_until_its_last_byte() {
        let begun = [frame(SETTINGS, 0, 0), frame(DATA, 0, 70_000), frame(SETTINGS, 1, 6)].concat();
        let head = [frame(HEADERS, 0, 40), frame(CONTINUATION, 0, 0), frame(CONTINUATION, END_HEADERS, 300)].concat();
        // However it is cut into reads.
        for size in [1, 2, 7, 9, 100, usize::MAX] {
            let mut frames = Frames::new();
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
    fn to_go_away_is_said_once_between_frames_that_do_not_belong_together() {
        let mut frames = Frames::new();
        assert!(!frames.may_go_away(), "settings come first");
        for (more, may) in [
            (frame(SETTINGS, 0, 0), true),
            (frame(HEADERS, 0, 40), false),
            (frame(CONTINUATION, END_HEADERS, 1), true),
            (frame(DATA, 0, 9)[..17].to_vec(), false),
            (vec![0], true),
            (vec![0], false),
            (frame(DATA, 0, 0)[1..].to_vec(), true),
            (frame(GOAWAY, 0, 8), false),
            (frame(DATA, 0, 1), false),
        ] {
            frames.follow(&more);
            assert_eq!(frames.may_go_away(), may, "{more:?}");
        }
    }

    #[test]
    fn a_body_that_pauses_is_no_head() {
        let mut frames = Frames::new();
        frames.follow(&frame(SETTINGS, 0, 0));
        let data = frame(DATA, 0, 100);
        assert!(!frames.follow(&data[..50]));
        assert!(!frames.follow(&data[50..]));
        assert!(frames.follow(&data[..8]), "what this is going to be is not known yet");
    }
}
