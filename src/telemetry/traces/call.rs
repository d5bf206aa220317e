//! The span of a call to upstream. It ends with the call, in whatever way that ends.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::super::text::{method_name, shown_path};
use super::{Attribute, Span, SpanKind, Tracer, conventional};
use crate::catalogue::Origin;
use crate::request::trace::TraceContext;
use crate::upstream::Failure;

/// What is called, and why.
pub(crate) struct CallTarget<'t> {
    pub(crate) method: &'t Method,
    pub(crate) origin: &'t Origin,
    /// Without the query.
    pub(crate) path: &'t str,
    /// The name and the template of the path, if the call is for an operation.
    pub(crate) operation: Option<(&'t str, String)>,
    /// What the call is for.
    pub(crate) purpose: &'static str,
}

/// A call that has begun, and whose span is exported when it ends.
pub(crate) struct CallSpan(Option<OpenSpan>);

struct OpenSpan {
    tracer: Arc<Tracer>,
    span: Span,
    begun: Instant,
}

impl CallSpan {
    /// Begins the span of a call. `parent` is the span of the request, if the call is made for one.
    pub(crate) fn begin(
        tracer: &Arc<Tracer>,
        context: TraceContext,
        parent: Option<u64>,
        target: CallTarget<'_>,
    ) -> Self {
        let CallTarget { method, origin, path, operation, purpose } = target;
        let (method, (scheme, default_port)) =
            (conventional(method_name(method)), if origin.is_plaintext() { ("http", 80) } else { ("https", 443) });
        let authority = origin.authority();
        let port = i64::from(authority.port_u16().unwrap_or(default_port));
        let mut attributes: Vec<(&'static str, Attribute)> = vec![
            ("http.request.method", method.into()),
            ("server.address", authority.host().trim_matches(['[', ']']).to_owned().into()),
            ("server.port", port.into()),
            ("url.full", format!("{scheme}://{authority}{}", shown_path(path)).into()),
            ("workspace_gateway.purpose", purpose.into()),
        ];
        let mut name = method.to_owned();
        if let Some((operation, template)) = operation {
            name = format!("{method} {template}");
            attributes.push(("url.template", template.into()));
            attributes.push(("workspace_gateway.operation", operation.to_owned().into()));
        }
        let span = Span {
            kind: SpanKind::Client,
            context,
            parent,
            name,
            // Replaced when it ends.
            end: tracer.clock.date(),
            duration: Duration::ZERO,
            attributes,
            link: None,
            is_error: false,
        };
        Self(Some(OpenSpan { tracer: Arc::clone(tracer), span, begun: tracer.clock.timer_now() }))
    }

    /// The call has ended with the status of a response, or without a response.
    pub(crate) fn ended(mut self, result: Result<StatusCode, Failure>) {
        self.export(result.map_err(|failure| failure.into_str()));
    }

    fn export(&mut self, result: Result<StatusCode, &'static str>) {
        let Some(OpenSpan { tracer, mut span, begun }) = self.0.take() else { return };
        span.end = tracer.clock.date();
        span.duration = tracer.clock.timer_now().saturating_duration_since(begun);
        match result {
            Ok(status) => {
                span.attributes.push(("http.response.status_code", i64::from(status.as_u16()).into()));
                span.is_error = status.is_client_error() || status.is_server_error();
                if span.is_error {
                    span.attributes.push(("error.type", status.as_str().to_owned().into()));
                }
            }
            Err(failure) => {
                span.is_error = true;
                span.attributes.push(("error.type", failure.into()));
            }
        }
        tracer.export(span);
    }
}

impl Drop for CallSpan {
    fn drop(&mut self) {
        self.export(Err("abandoned"));
    }
}
