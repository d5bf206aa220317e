//! The span of a request. It is made when the request has ended.

use http::Version;

use super::super::completed::CompletedRequest;
use super::{Attribute, Span, SpanKind, Tracer, conventional};

impl Tracer {
    /// Exports the span of a completed request, if it is sampled.
    pub(in crate::telemetry) fn completed(&self, request: &CompletedRequest<'_>) {
        let Some(description) = request.description else { return };
        let Some(trace) = description.trace.as_ref().filter(|trace| trace.is_exported) else { return };
        let method = conventional(description.method);
        let mut attributes: Vec<(&'static str, Attribute)> = vec![
            ("http.request.method", method.into()),
            ("url.path", description.heading.path.to_string().into()),
            ("client.address", description.client.to_string().into()),
            ("network.protocol.version", version(description.version).into()),
            ("http.response.body.size", request.sent_bytes.try_into().unwrap_or(i64::MAX).into()),
            ("workspace_gateway.request_id", request.request_id.to_owned().into()),
            ("workspace_gateway.operation", request.operation.to_owned().into()),
            ("workspace_gateway.result", request.outcome.into_str().into()),
        ];
        let mut name = method.to_owned();
        if let Some(template) = &trace.template {
            name = format!("{method} {template}");
            attributes.push(("http.route", template.clone().into()));
        }
        let status = request.status;
        let is_error = status.is_some_and(|status| status.is_server_error());
        let code = status.map(|status| i64::from(status.as_u16()).into());
        // The client's own errors are none of the server.
        let error = is_error.then(|| match (request.failure, status) {
            (None, Some(status)) => status.as_str().to_owned().into(),
            (failure, _) => failure.unwrap_or("_OTHER").into(),
        });
        let agent = description.heading.agent.as_ref().map(|agent| agent.to_string().into());
        let caller = request.caller.as_ref().map(|caller| caller.as_str().to_owned().into());
        let optional = [
            ("http.response.status_code", code),
            ("error.type", error),
            ("user_agent.original", agent),
            ("workspace_gateway.caller", caller),
            ("workspace_gateway.key", request.key.map(|key| key.as_str().to_owned().into())),
            ("workspace_gateway.miss", request.miss.map(|miss| <&'static str>::from(miss).into())),
            ("workspace_gateway.detail", request.detail.map(Attribute::from)),
            ("workspace_gateway.failure", request.failure.map(Attribute::from)),
            ("workspace_gateway.upstream_request_id", description.upstream_id.clone().map(Attribute::from)),
        ];
        attributes.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
        self.export(Span {
            kind: SpanKind::Server,
            context: trace.context,
            parent: trace.parent,
            name,
            end: self.clock.date(),
            duration: request.took,
            attributes,
            link: trace.link,
            is_error,
        });
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}
