//! A span that has ended, with attributes by OpenTelemetry's semantic conventions. It has nothing that the access log
//! would not show: no credential, no query and no other text of a client than a shortened path and user agent.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use crate::request::trace::TraceContext;

/// A span that has ended.
#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) kind: SpanKind,
    pub(crate) context: TraceContext,
    /// The id of the parent span in the same trace.
    pub(crate) parent: Option<u64>,
    /// The method, with the template of the path if it is known.
    pub(crate) name: String,
    pub(crate) end: SystemTime,
    pub(crate) duration: Duration,
    pub(crate) attributes: Vec<(&'static str, Attribute)>,
    /// The call of another request that has answered this one.
    pub(crate) link: Option<TraceContext>,
    pub(crate) is_error: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpanKind {
    /// A request of a client.
    Server,
    /// A call to upstream.
    Client,
}

#[derive(Debug)]
pub(crate) enum Attribute {
    Text(Cow<'static, str>),
    Number(i64),
}

impl From<&'static str> for Attribute {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Attribute {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<i64> for Attribute {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}
