//! Bounds what an engine may send, before it is parsed: parsed values need far more memory than the bytes that they
//! come from. It follows RESP2 just enough to count the elements of replies. Pure.

/// The elements of a reply: a look-up has 14 of them, and `ROLE` 3 and 4 for each replica.
const ELEMENTS_OF_REPLY: u64 = 64;
/// The most that earlier replies may have left unused.
const MAX_ELEMENTS: u64 = 32 * ELEMENTS_OF_REPLY;
/// The longest array, and the longest line, such as an error.
const MAX_ARRAY: u64 = 64;
const MAX_LINE: usize = 4096;

/// Where the next byte belongs.
enum Next {
    /// The type, or the rest of a line after it. `last`: the byte before the next one.
    Line { kind: Option<u8>, length: usize, last: u8, number: Option<u64> },
    /// So many bytes of a bulk string, and the line break after it.
    Bulk(u64),
}

const LINE: Next = Next::Line { kind: None, length: 0, last: 0, number: None };

/// What the engine sends.
pub(super) struct Framing {
    next: Next,
    elements: u64,
    largest: u64,
}

impl Framing {
    /// `largest`: the longest bulk string, in bytes.
    pub(super) fn new(largest: u64) -> Self {
        Self { next: LINE, elements: ELEMENTS_OF_REPLY, largest }
    }

    /// So many commands were sent.
    pub(super) fn sent(&mut self, commands: u64) {
        let added = self.elements.saturating_add(commands.saturating_mul(ELEMENTS_OF_REPLY));
        self.elements = added.min(MAX_ELEMENTS);
    }

    /// How many elements may still come.
    pub(super) fn elements_left(&self) -> u64 {
        self.elements
    }

    /// Whether the engine may send these bytes.
    pub(super) fn accepts(&mut self, mut bytes: &[u8]) -> bool {
        while let [first, rest @ ..] = bytes {
            match &mut self.next {
                Next::Bulk(left) => {
                    let here = (*left).min(bytes.len() as u64);
                    *left -= here;
                    if *left == 0 {
                        self.next = LINE;
                    }
                    bytes = bytes.get(usize::try_from(here).unwrap_or(usize::MAX)..).unwrap_or_default();
                }
                Next::Line { .. } => {
                    if !self.accepts_in_line(*first) {
                        return false;
                    }
                    bytes = rest;
                }
            }
        }
        true
    }

    fn accepts_in_line(&mut self, byte: u8) -> bool {
        let Next::Line { kind, length, last, number } = &mut self.next else { return true };
        let Some(of) = *kind else {
            *kind = Some(byte);
            let Some(left) = self.elements.checked_sub(1) else { return false };
            self.elements = left;
            return b"+-:$*".contains(&byte);
        };
        *length += 1;
        let before = std::mem::replace(last, byte);
        match byte {
            // The client ends a line only there. With another end, what it reads as replies would be a bulk string here.
            b'\n' if before != b'\r' => false,
            b'\n' => {
                let number = number.unwrap_or_default();
                // A length of -1 is nil: it has no digits that count.
                self.next = if of == b'$' && number != u64::MAX { Next::Bulk(number + 2) } else { LINE };
                match of {
                    b'$' => number == u64::MAX || number <= self.largest,
                    b'*' => number == u64::MAX || number <= MAX_ARRAY,
                    _ => true,
                }
            }
            b'-' if *length == 1 && (of == b'$' || of == b'*') => {
                *number = Some(u64::MAX);
                true
            }
            b'0'..=b'9' if (of == b'$' || of == b'*') && *number != Some(u64::MAX) => {
                *number = Some(number.unwrap_or_default().saturating_mul(10).saturating_add(u64::from(byte - b'0')));
                *length < 20
            }
            // The client would take ` -5` for -5.
            _ if of == b'$' || of == b'*' => *length < 20 && (byte == b'\r' || byte.is_ascii_digit()),
            _ => *length <= MAX_LINE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::commands::{BATCH, Fresh, Keys};
    use super::*;

    const LOOK_UP: &[u8] =
        b"$5\r\n*9\r\nx\r\n:1\r\n*5\r\n$2\r\nab\r\n$-1\r\n$-1\r\n$0\r\n\r\n$1\r\n7\r\n:8\r\n*2\r\n$1\r\n1\r\n$1\r\n2\r\n$2\r\n42\r\n";

    #[test]
    fn the_replies_of_an_engine_are_accepted_in_any_pieces() {
        for size in 1..LOOK_UP.len() {
            let mut framing = Framing::new(5);
            for _ in 0..100 {
                framing.sent(1);
                assert!(LOOK_UP.chunks(size).all(|piece| framing.accepts(piece)), "pieces of {size}");
            }
            assert!(framing.accepts(b"-ERR a text with a number -1 and 99\r\n+OK\r\n*-1\r\n"));
        }
    }

    #[test]
    fn a_long_log_is_accepted_batch_after_batch() {
        let entry = format!("*2\r\n{}*10\r\n{}", "$3\r\n1-1\r\n", "$1\r\nx\r\n".repeat(10));
        // With two replicas.
        let role =
            "*3\r\n$6\r\nmaster\r\n:1\r\n*2\r\n".to_owned() + &"*3\r\n$1\r\nx\r\n$1\r\nx\r\n$1\r\nx\r\n".repeat(2);
        let others = ":0\r\n*2\r\n$1\r\nx\r\n$1\r\nx\r\n:1\r\n*2\r\n$1\r\nx\r\n$1\r\nx\r\n$1\r\nx\r\n";
        let batch = format!("{role}*{BATCH}\r\n{}{others}", entry.repeat(BATCH));
        let commands = Keys::new("", [0; 16], [[0; 16]; 2]).poll("-", Fresh { incarnation: [0; 16], nonce: 0 });
        let mut framing = Framing::new(64 * 1024);
        for number in 0..200 {
            framing.sent(commands.len() as u64);
            assert!(framing.accepts(batch.as_bytes()), "batch {number}");
        }
    }

    #[test]
    fn what_needs_much_memory_is_refused() {
        let nested = b"*1\r\n".repeat(100);
        let long = [b"-".as_slice(), &[b'x'; MAX_LINE + 1]].concat();
        let wide = b":1\r\n".repeat(100);
        let cases: [&[u8]; 13] = [
            &nested,
            &long,
            &wide,
            b"*65\r\n",
            b"$6\r\n",
            b"$99999999999999999999\r\n",
            b"%1\r\n",
            b"HTTP/1.1",
            b"$-1\r\n$6\r\n",
            // The client reads what comes next as replies.
            b"+a\n$5\r\n",
            b"-a\n",
            b"$ -3\r\n",
            b"$5\n",
        ];
        for bytes in cases {
            assert!(!Framing::new(5).accepts(bytes), "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(20)]));
        }
    }

    #[test]
    fn unused_elements_are_kept_up_to_a_bound() {
        let mut framing = Framing::new(5);
        framing.sent(u64::MAX);
        let most = usize::try_from(MAX_ELEMENTS).unwrap();
        assert!(framing.accepts(&b":1\r\n".repeat(most)) && !framing.accepts(b":1\r\n"));
    }
}
