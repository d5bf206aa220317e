//! Parses and formats `X-Sdk-Date`, such as `20261122T120000Z`: in UTC, with a resolution of one second.

use std::time::SystemTime;

/// Accepts exactly this form.
pub fn parse(text: &str) -> Option<SystemTime> {
    let has_form = text.len() == 16
        && text.bytes().enumerate().all(|(place, byte)| match place {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
    if !has_form {
        return None;
    }
    // humantime validates the date. It needs the form with separators.
    let mut separated = *b"0000-00-00T00:00:00Z";
    for (place, digits) in [(0, 0..4), (5, 4..6), (8, 6..8), (11, 9..11), (14, 11..13), (17, 13..15)] {
        separated[place..place + digits.len()].copy_from_slice(&text.as_bytes()[digits]);
    }
    humantime::parse_rfc3339(std::str::from_utf8(&separated).ok()?).ok()
}

pub fn show(date: SystemTime) -> String {
    humantime::format_rfc3339_seconds(date).to_string().replace(['-', ':'], "")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_formatted_date_is_parsed_to_the_same_second() {
        // As `date -u -d @1795348800` prints it.
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_348_800);
        assert_eq!(show(date), "20261122T120000Z");
        assert_eq!(parse("20261122T120000Z"), Some(date));
        assert_eq!(parse(&show(date + Duration::from_millis(1_900))), Some(date + Duration::from_secs(1)));
    }

    #[test]
    fn other_forms_are_not_accepted() {
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
