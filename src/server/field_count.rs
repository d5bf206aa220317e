//! Counts the fields of an HTTP/2 trailer section as its bytes arrive (RFC 7541 §6). Nothing is decoded here.
//!
//! h2 silently drops pseudo-header fields of a trailer section. Then it returns fewer fields than this count.

const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The count of one trailer section.
#[derive(Default)]
pub(super) struct FieldCount {
    fields: usize,
    /// Whether the padding length comes next, and how many bytes of the priority come after it.
    is_padding_unknown: bool,
    priority: usize,
    /// Bytes of the field section that remain in this frame.
    left: usize,
    /// An incomplete integer.
    integer: Option<Integer>,
    /// How many strings of this field remain, and how many bytes of the current one.
    strings: usize,
    string: usize,
}

struct Integer {
    kind: IntegerKind,
    value: usize,
    shift: u32,
}

/// What an integer means.
#[derive(Clone, Copy)]
enum IntegerKind {
    /// The table index of a field.
    Indexed,
    /// The table index of a field's name; zero if the name is a string.
    Literal,
    /// The size of the dynamic table.
    TableSize,
    /// The length of a string.
    Length,
}

impl FieldCount {
    /// A frame of the section starts: HEADERS with its flags, or CONTINUATION with 0.
    pub(super) fn begin(&mut self, flags: u8, length: usize) {
        self.is_padding_unknown = flags & PADDED != 0;
        self.priority = if flags & PRIORITY != 0 { 5 } else { 0 };
        self.left = length.saturating_sub(self.priority + usize::from(self.is_padding_unknown));
    }

    /// Counts more payload of the frame.
    pub(super) fn read(&mut self, mut payload: &[u8]) {
        if self.is_padding_unknown
            && let Some((&padding, rest)) = payload.split_first()
        {
            self.is_padding_unknown = false;
            self.left = self.left.saturating_sub(usize::from(padding));
            payload = rest;
        }
        let priority = self.priority.min(payload.len());
        self.priority -= priority;
        let (_, payload) = payload.split_at(priority);
        let block = &payload[..payload.len().min(self.left)];
        self.left -= block.len();
        self.count(block);
    }

    pub(super) fn fields(&self) -> usize {
        self.fields
    }

    fn count(&mut self, mut block: &[u8]) {
        while let Some((&byte, rest)) = block.split_first() {
            if self.string > 0 {
                let here = self.string.min(block.len());
                self.string -= here;
                block = &block[here..];
                continue;
            }
            block = rest;
            match self.integer.take() {
                None => self.begin_integer(byte),
                Some(mut integer) => {
                    let digit = usize::from(byte & 0x7f).checked_shl(integer.shift).unwrap_or(usize::MAX);
                    integer.value = integer.value.saturating_add(digit);
                    integer.shift = integer.shift.saturating_add(7);
                    if byte & 0x80 == 0 {
                        self.end_integer(integer.kind, integer.value);
                    } else {
                        self.integer = Some(integer);
                    }
                }
            }
        }
    }

    fn begin_integer(&mut self, byte: u8) {
        let (kind, prefix) = match byte {
            _ if self.strings > 0 => (IntegerKind::Length, 0x7f),
            0x80.. => (IntegerKind::Indexed, 0x7f),
            0x40.. => (IntegerKind::Literal, 0x3f),
            0x20.. => (IntegerKind::TableSize, 0x1f),
            _ => (IntegerKind::Literal, 0x0f),
        };
        let value = usize::from(byte & prefix);
        if byte & prefix == prefix {
            self.integer = Some(Integer { kind, value, shift: 0 });
        } else {
            self.end_integer(kind, value);
        }
    }

    fn end_integer(&mut self, kind: IntegerKind, value: usize) {
        match kind {
            IntegerKind::TableSize => {}
            IntegerKind::Indexed => self.fields += 1,
            IntegerKind::Literal => (self.fields, self.strings) = (self.fields + 1, if value == 0 { 2 } else { 1 }),
            IntegerKind::Length => (self.strings, self.string) = (self.strings - 1, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts frames that arrive in pieces of `size` bytes.
    fn counted(frames: &[(u8, &[u8])], size: usize) -> usize {
        let mut count = FieldCount::default();
        for (flags, payload) in frames {
            count.begin(*flags, payload.len());
            payload.chunks(size).for_each(|piece| count.read(piece));
        }
        count.fields()
    }

    #[test]
    fn fields_of_every_representation_are_counted_in_any_pieces() {
        let long = [&[0x40, 2, b'x', b'y', 0x7f, 0x81, 0x01][..], &[b'z'; 256]].concat();
        let cases: [(&[u8], usize); 7] = [
            (&[], 0),
            // From the static and the dynamic table.
            (&[0x82, 0xbe, 0xff, 0x80, 0x01], 3),
            // A table size update is not a field.
            (&[0x20, 0x3f, 0xe1, 0x1f, 0x82], 1),
            // A name from a table, with a short and a long index.
            (&[0x44, 1, b'/', 0x0f, 0x2f, 2, b'a', b'b', 0x10, 0, 1, b'c'], 3),
            (&long, 1),
            // A Huffman-coded string and an empty one.
            (&[0x00, 0x81, 0xff, 0x80, 0x82], 2),
            (&[0x04, 0x00, 0x00, 0x01, b'n', 0x00], 2),
        ];
        for (block, fields) in cases {
            for size in [1, 2, 3, 1_000] {
                assert_eq!(counted(&[(0, block)], size), fields, "{block:?} {size}");
                let (one, other) = block.split_at(block.len() / 2);
                assert_eq!(counted(&[(0, one), (0, other)], size), fields, "{block:?} in two frames");
                let padded = [&[3, 0, 0, 0, 0, 9], block, &[0x82, 0x82, 0x82]].concat();
                assert_eq!(counted(&[(PADDED | PRIORITY, &padded)], size), fields, "{block:?} padded");
            }
        }
    }

    #[test]
    fn absurd_lengths_do_not_panic() {
        for block in [&[0xff; 40][..], &[0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1]] {
            assert!(counted(&[(0, block)], 1) <= 1);
        }
        assert_eq!(counted(&[(PADDED, &[255, 0x82])], 1), 0);
    }
}
