//! The trace that a request is part of (W3C Trace Context, `traceparent`), and its continuation upstream.
//!
//! The `traceparent` that is sent upstream is made anew in the form of version 00, with the gateway's own parent id. So
//! it has only hex digits, and no response may depend on it. `tracestate` may be any text. It is not part of the key,
//! and is sent only if an operation is configured to send it.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::id::RequestId;

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Spans of the trace are recorded.
const SAMPLED: u8 = 0b01;

/// The flags `sampled` and `random-trace-id`. Other flags are reserved and are not sent upstream.
const FLAGS: u8 = 0b11;

/// The id of a trace. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId([u8; 16]);

impl TraceId {
    pub(crate) fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// The half that samplers compare with their rate, because its bits are random.
    pub(crate) fn low_half(&self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A span of a trace: what a `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: TraceId,
    /// The id of the span. Never zero.
    pub span_id: u64,
    flags: u8,
}

impl TraceContext {
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
        let id = u128::from_str_radix(hex(parts.next()?, 32)?, 16).ok().filter(|&id| id != 0)?;
        let span_id = u64::from_str_radix(hex(parts.next()?, 16)?, 16).ok().filter(|&id| id != 0)?;
        let flags = u8::from_str_radix(hex(parts.next()?, 2)?, 16).ok()? & FLAGS;
        // Later versions may have more fields after another dash.
        let is_known = match version {
            "00" => parts.next().is_none(),
            version => version != "ff",
        };
        is_known.then_some(Self { trace_id: TraceId(id.to_be_bytes()), span_id, flags })
    }

    /// A new trace that begins with this request. Its ids are as random as the request's.
    pub fn begin(request: &RequestId) -> Self {
        let trace_id = TraceId(request.bits().max(1).to_be_bytes());
        Self { trace_id, span_id: request.span(), flags: FLAGS & !SAMPLED }
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn with_span(self, span_id: u64) -> Self {
        Self { span_id, ..self }
    }

    #[must_use]
    pub(crate) fn with_sampled(self, is_sampled: bool) -> Self {
        Self { flags: if is_sampled { self.flags | SAMPLED } else { self.flags & !SAMPLED }, ..self }
    }

    /// Whether the caller may have recorded the trace, or the gateway exports the span.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    pub(crate) fn flags(&self) -> u8 {
        self.flags
    }

    /// The `traceparent` of a request whose parent is this span.
    pub fn traceparent(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(format!("00-{}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)).ok()
    }
}

/// The text, if it is this number of hex digits. Only lower case is allowed.
fn hex(text: &str, digits: usize) -> Option<&str> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == digits && text.bytes().all(is_hex)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::super::id::RequestIds;
    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_trace_continues_with_the_gateways_parent_id() {
        for (flags, kept) in [("00", "00"), ("01", "01"), ("03", "03"), ("ff", "03")] {
            let trace = TraceContext::parse(&format!("00-{ID}-00f067aa0ba902b7-{flags}")).unwrap();
            assert_eq!((trace.trace_id.to_string().as_str(), trace.span_id), (ID, 0x00f0_67aa_0ba9_02b7));
            let continued = trace.with_span(0xab).traceparent().unwrap();
            assert_eq!(continued, format!("00-{ID}-00000000000000ab-{kept}"));
        }
        let later = TraceContext::parse(&format!("cc-{ID}-00f067aa0ba902b7-01-further-fields")).unwrap();
        assert_eq!(later.with_span(1).traceparent().unwrap(), format!("00-{ID}-0000000000000001-01"));
        assert_eq!(later.trace_id.low_half(), 0xa3ce_929d_0e0e_4736);
        assert_eq!(u128::from_be_bytes(later.trace_id.bytes()), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!([true, false].map(|is_sampled| later.with_sampled(is_sampled).flags()), [1, 0]);
        assert_eq!(later.with_sampled(false).traceparent().unwrap(), format!("00-{ID}-00f067aa0ba902b7-00"));
    }

    #[test]
    fn a_new_trace_has_the_ids_of_its_request_and_is_not_sampled() {
        let request = RequestIds::new([1; 32]).next();
        let trace = TraceContext::begin(&request);
        assert_eq!((trace.trace_id.to_string().as_str(), trace.span_id), (request.as_str(), request.span()));
        assert!(!trace.is_sampled() && trace.with_sampled(true).is_sampled());
        assert!(trace.with_sampled(true).traceparent().unwrap().to_str().unwrap().ends_with("-03"));
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
            assert_eq!(TraceContext::parse(&wrong), None, "{wrong}");
        }
        let one = HeaderValue::try_from(format!("00-{ID}-{parent}-01")).unwrap();
        let mut headers = HeaderMap::from_iter([(TRACEPARENT, one.clone())]);
        assert!(TraceContext::read(&headers).is_some());
        headers.append(TRACEPARENT, one);
        assert_eq!(TraceContext::read(&headers), None, "twice");
    }
}
