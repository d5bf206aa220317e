//! The messages that spans and metrics have in common (`common.proto` of OTLP 1).

use std::time::{Duration, SystemTime};

use super::protobuf::Message;

/// A `KeyValue` with a string.
pub(super) fn write_text(message: &mut Message, field: u32, name: &str, text: &str) {
    message.message(field, |pair| {
        pair.bytes(1, name.as_bytes());
        pair.message(2, |value| value.bytes(1, text.as_bytes()));
    });
}

/// A `KeyValue` with an integer.
pub(super) fn write_number(message: &mut Message, field: u32, name: &str, number: i64) {
    message.message(field, |pair| {
        pair.bytes(1, name.as_bytes());
        pair.message(2, |value| value.number(3, number.cast_unsigned()));
    });
}

/// Since 1970.
pub(super) fn nanoseconds(date: SystemTime) -> u64 {
    saturated(date.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// In nanoseconds.
pub(super) fn saturated(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
