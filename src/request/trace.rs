//! The trace that a request is part of (W3C Trace Context, `traceparent`), and its continuation upstream.
//!
//! The `traceparent` that is sent upstream is made anew in the form of version 00, with the gateway's own parent id. So
//! it has only hex digits, and no response may depend on it. `tracestate` may be any text. It is not part of the key,
//! and is sent only if an operation is configured to send it.

use http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

const SAMPLED: u8 = 0b01;

/// The flags `sampled` and `random-trace-id`. Other flags are reserved and are not sent upstream.
const FLAGS: u8 = 0b11;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    id: Box<str>,
    flags: u8,
}

impl Trace {
    /// `None` if there is not exactly one valid `traceparent`.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut named = headers.get_all(TRACEPARENT).iter();
        let (Some(value), None) = (named.next(), named.next()) else { return None };
        Self::parse(value.to_str().ok()?)
    }

    /// `None` if the value of a `traceparent` is invalid.
    pub(crate) fn parse(value: &str) -> Option<Self> {
        let mut parts = value.splitn(5, '-');
        let version = hex(parts.next()?, 2)?;
        let id = hex(parts.next()?, 32).filter(|id| !is_zero(id))?;
        hex(parts.next()?, 16).filter(|parent| !is_zero(parent))?;
        let flags = u8::from_str_radix(hex(parts.next()?, 2)?, 16).ok()?;
        // Later versions may have more fields after another dash.
        let is_known = match version {
            "00" => parts.next().is_none(),
            version => version != "ff",
        };
        is_known.then(|| Self { id: id.into(), flags: flags & FLAGS })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the caller may have recorded the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The `traceparent` of the upstream request: the same trace, with `span` as the parent id.
    pub fn continued(&self, span: u64) -> Option<HeaderValue> {
        HeaderValue::try_from(format!("00-{}-{span:016x}-{:02x}", self.id, self.flags)).ok()
    }
}

/// The text, if it is this number of hex digits. Only lower case is allowed.
fn hex(text: &str, digits: usize) -> Option<&str> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == digits && text.bytes().all(is_hex)).then_some(text)
}

fn is_zero(digits: &str) -> bool {
    digits.bytes().all(|digit| digit == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_trace_continues_with_the_gateways_parent_id() {
        for (flags, kept) in [("00", "00"), ("01", "01"), ("03", "03"), ("ff", "03")] {
            let trace = Trace::parse(&format!("00-{ID}-00f067aa0ba902b7-{flags}")).unwrap();
            assert_eq!(trace.id(), ID);
            assert_eq!(trace.continued(0xab).unwrap(), format!("00-{ID}-00000000000000ab-{kept}"));
        }
        let later = Trace::parse(&format!("cc-{ID}-00f067aa0ba902b7-01-further-fields")).unwrap();
        assert_eq!(later.continued(1).unwrap(), format!("00-{ID}-0000000000000001-01"));
    }

    #[test]
    fn an_invalid_traceparent_is_ignored() {
        let (zeros, parent) = ("0".repeat(32), "00f067aa0ba902b7");
        for wrong in [
            String::new(),
            "odd".to_owned(),
            format!("00-{ID}-{parent}"),
            format!("00-{ID}-{parent}-1"),
            format!("00-{ID}-{parent}-01-more"),
            format!("00-{ID}-{parent}-01-"),
            format!("ff-{ID}-{parent}-01"),
            format!("00-{zeros}-{parent}-01"),
            format!("00-{ID}-0000000000000000-01"),
            format!("00-{}-{parent}-01", ID.to_uppercase()),
            format!(" 00-{ID}-{parent}-01"),
            format!("00-{ID}-{parent}-+1"),
        ] {
            assert_eq!(Trace::parse(&wrong), None, "{wrong}");
        }
        let one = HeaderValue::try_from(format!("00-{ID}-{parent}-01")).unwrap();
        let mut headers = HeaderMap::from_iter([(TRACEPARENT, one.clone())]);
        assert!(Trace::read(&headers).is_some());
        headers.append(TRACEPARENT, one);
        assert_eq!(Trace::read(&headers), None, "twice");
    }
}
