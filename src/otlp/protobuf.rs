//! Writes protobuf messages (https://protobuf.dev/programming-guides/encoding). Only what OTLP needs. The tests read what
//! is written here with `opentelemetry-proto`.
//!
//! Generated types would need 16 more crates in the program, the SDK of OpenTelemetry among them.

/// A message, or a part of one.
#[derive(Default)]
pub(super) struct Message(Vec<u8>);

/// How a value is encoded.
#[derive(Clone, Copy)]
enum WireType {
    Varint = 0,
    Fixed64 = 1,
    Length = 2,
    Fixed32 = 5,
}

impl Message {
    /// A message with these fields.
    pub(super) fn of(write: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut message = Self::default();
        write(&mut message);
        message.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u32, wire_type: WireType) {
        self.varint(u64::from(field) << 3 | wire_type as u64);
    }

    /// An `enum`, `bool`, `uint64` or `int64`.
    pub(super) fn number(&mut self, field: u32, value: u64) {
        self.key(field, WireType::Varint);
        self.varint(value);
    }

    pub(super) fn fixed32(&mut self, field: u32, value: u32) {
        self.key(field, WireType::Fixed32);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn fixed64(&mut self, field: u32, value: u64) {
        self.key(field, WireType::Fixed64);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn double(&mut self, field: u32, value: f64) {
        self.fixed64(field, value.to_bits());
    }

    /// A packed list of `fixed64` or `double`.
    pub(super) fn packed(&mut self, field: u32, values: impl Iterator<Item = u64>) {
        let bytes: Vec<u8> = values.flat_map(u64::to_le_bytes).collect();
        self.bytes(field, &bytes);
    }

    /// `bytes` or a `string`.
    pub(super) fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, WireType::Length);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    /// A message in this one.
    pub(super) fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        self.bytes(field, &Self::of(write));
    }
}

/// The value of a field with an integer, in a message of a peer. `None` if it is not there, or the message is invalid.
pub fn find_number(message: &[u8], field: u64) -> Option<u64> {
    find(message, field).and_then(|found| if let Found::Number(number) = found { Some(number) } else { None })
}

/// The same for bytes, a string or a message.
pub fn find_bytes(message: &[u8], field: u64) -> Option<&[u8]> {
    find(message, field).and_then(|found| if let Found::Bytes(bytes) = found { Some(bytes) } else { None })
}

enum Found<'m> {
    Number(u64),
    Bytes(&'m [u8]),
}

fn find(mut rest: &[u8], field: u64) -> Option<Found<'_>> {
    while !rest.is_empty() {
        let key = take_varint(&mut rest)?;
        let found = match key & 7 {
            0 => Found::Number(take_varint(&mut rest)?),
            2 => {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                Found::Bytes(rest.split_off(..length)?)
            }
            1 => Found::Bytes(rest.split_off(..8)?),
            5 => Found::Bytes(rest.split_off(..4)?),
            _ => return None,
        };
        if key >> 3 == field {
            return Some(found);
        }
    }
    None
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = rest.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_encoded_as_the_specification_shows() {
        // The examples of the specification: a = 150, b = "testing", c = {a = 150}, f = [3] as fixed64.
        assert_eq!(Message::of(|message| message.number(1, 150)), [0x08, 0x96, 0x01]);
        assert_eq!(Message::of(|message| message.bytes(2, b"testing")), *b"\x12\x07testing");
        assert_eq!(Message::of(|message| message.message(3, |inner| inner.number(1, 150))), *b"\x1a\x03\x08\x96\x01");
        assert_eq!(Message::of(|message| message.packed(6, [3].into_iter())), *b"\x32\x08\x03\0\0\0\0\0\0\0");
        assert_eq!(Message::of(|message| message.fixed32(16, 1)), *b"\x85\x01\x01\0\0\0");
        assert_eq!(Message::of(|message| message.double(2, 1.0)), *b"\x11\0\0\0\0\0\0\xf0\x3f");
    }

    proptest! {
        #[test]
        fn written_fields_are_found_again(number: u64, bytes: Vec<u8>, cut in 0_usize..40) {
            let message = Message::of(|message| {
                message.fixed32(1, 7);
                message.fixed64(2, 7);
                message.number(300, number);
                message.bytes(4, &bytes);
            });
            prop_assert_eq!(find_number(&message, 300), Some(number));
            prop_assert_eq!(find_bytes(&message, 4), Some(&bytes[..]));
            prop_assert_eq!(find_number(&message, 5), None);
            // An incomplete message is no panic.
            let _ = find_bytes(&message[..cut.min(message.len())], 4);
        }

        #[test]
        fn no_bytes_cause_a_panic(bytes: Vec<u8>, field in 0_u64..20) {
            let _ = (find_number(&bytes, field), find_bytes(&bytes, field));
        }
    }
}
