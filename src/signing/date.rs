//! `X-Sdk-Date`: `20261122T120000Z`, in UTC and to the second.

use std::time::SystemTime;

/// Reads a date in exactly that form.
pub fn parse(text: &str) -> Option<SystemTime> {
    let is_form = text.len() == 16
        && text.bytes().enumerate().all(|(place, byte)| match place {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
    if !is_form {
        return None;
    }
    // humantime knows the calendar, and the same date with separators.
    let [year, month, day] = [&text[..4], &text[4..6], &text[6..8]];
    let [hour, minute, second] = [&text[9..11], &text[11..13], &text[13..15]];
    humantime::parse_rfc3339(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z")).ok()
}

/// Writes a date in that form.
pub fn show(date: SystemTime) -> String {
    humantime::format_rfc3339_seconds(date).to_string().replace(['-', ':'], "")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        // The second 1,795,348,800 of Unix time, by `date -u -d @1795348800`.
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_348_800);
        assert_eq!(show(date), "20261122T120000Z");
        assert_eq!(parse("20261122T120000Z"), Some(date));
        assert_eq!(parse(&show(date + Duration::from_millis(1_900))), Some(date + Duration::from_secs(1)));
    }

    #[test]
    fn other_forms_are_not_read() {
        for other in [
            "",
            "20261122T120000",
            "20261122T120000z",
            "20261122 120000Z",
            "2026-11-22T12:00:00Z",
            "20261322T120000Z",
            "20260230T120000Z",
            "20261122T250000Z",
            "+0261122T120000Z",
            "20261122T120000Z ",
            "2026112\u{661}T120000Z",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
