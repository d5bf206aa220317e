//! `[otlp]`: where spans and metrics are exported to, and how. Nothing here connects.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::files::Files;
use super::otlp_values::pairs;
pub(crate) use super::otlp_values::{OtlpProtocol, OtlpUrl, SamplerName};
use super::read_file::shown_path;
use super::settings::OtlpSettings;

/// Checked settings of the export, with the headers, which may be credentials.
#[derive(Clone)]
pub struct OtlpConfig {
    pub(crate) protocol: OtlpProtocol,
    /// `None` if no spans are exported.
    pub(crate) traces: Option<OtlpUrl>,
    /// `None` if no metrics are exported.
    pub(crate) metrics: Option<OtlpUrl>,
    pub(crate) headers: HeaderMap,
    pub(crate) ca_file: Option<PathBuf>,
    /// For one export.
    pub(crate) timeout: Duration,
    pub(crate) sampler: SamplerName,
    /// From 0 to 1.
    pub(crate) sampling_rate: f64,
    pub(crate) max_queue: usize,
    pub(crate) max_batch: usize,
    pub(crate) batch_delay: Duration,
    pub(crate) retry_for: Duration,
    pub(crate) metrics_interval: Duration,
    /// Names and values.
    pub(crate) resource: Vec<(String, String)>,
}

impl fmt::Debug for OtlpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OtlpConfig(…)")
    }
}

/// The paths of OTLP over HTTP.
const TRACES_PATH: &str = "/v1/traces";
const METRICS_PATH: &str = "/v1/metrics";

impl OtlpConfig {
    /// The same with room for no more spans than fit into their part of a memory budget of so many bytes.
    pub(crate) fn fitted(&self, budget: usize) -> Self {
        let spans = budget / PART_OF_BUDGET / SPAN_SIZE;
        let max_batch = self.max_batch.min(spans / 4).max(1);
        Self { max_batch, max_queue: self.max_queue.min(spans.saturating_sub(max_batch)).max(1), ..self.clone() }
    }

    /// The memory of the spans that wait and of those that are being exported, in bytes.
    pub(crate) fn span_memory(&self) -> usize {
        (self.max_queue + self.max_batch) * SPAN_SIZE
    }

    /// Reads the headers. `None` if nothing is exported.
    pub(super) fn look_up(settings: &OtlpSettings, files: &mut Files) -> Result<Option<Self>, String> {
        let below = |path: &str| {
            let endpoint = settings.endpoint.clone()?;
            let path = if settings.protocol == OtlpProtocol::Http { path } else { "" };
            Some(OtlpUrl { path: endpoint.path.clone() + path, ..endpoint })
        };
        let traces = settings.traces_endpoint.clone().or_else(|| below(TRACES_PATH)).filter(|_| settings.traces);
        let metrics = settings.metrics_endpoint.clone().or_else(|| below(METRICS_PATH)).filter(|_| settings.metrics);
        if traces.is_none() && metrics.is_none() {
            return Ok(None);
        }
        let named = |error| format!("otlp.headers: {error}");
        let text = settings.headers.as_ref().map(|headers| headers.look_up(files)).transpose().map_err(named)?;
        let mut resource = settings.resource_attributes.as_ref().map_or_else(Vec::new, |given| given.pairs.clone());
        // A name that is set counts more than an attribute, and this more than the default.
        let is_default = settings.service_name.0 == DEFAULT_SERVICE;
        if !is_default || resource.iter().all(|(name, _)| name != SERVICE_NAME) {
            resource.retain(|(name, _)| name != SERVICE_NAME);
            resource.push((SERVICE_NAME.to_owned(), settings.service_name.0.clone()));
        }
        Ok(Some(Self {
            protocol: settings.protocol,
            traces,
            metrics,
            headers: text.map(|text| headers(&text)).transpose()?.unwrap_or_default(),
            ca_file: settings.ca_file.clone(),
            timeout: settings.timeout.0,
            sampler: settings.sampler,
            sampling_rate: settings.sampling_rate.0,
            max_queue: settings.max_queue.0,
            max_batch: settings.max_batch.0.min(settings.max_queue.0),
            batch_delay: settings.batch_delay.0,
            retry_for: settings.retry_for.0,
            metrics_interval: settings.metrics_interval.0,
            resource,
        }))
    }
}

const SERVICE_NAME: &str = "service.name";

/// The default of `otlp.service_name`.
const DEFAULT_SERVICE: &str = "workspace-gateway";

/// What a span takes at most in the queue, in bytes, with its share of a message.
const SPAN_SIZE: usize = 2 * 1024;

/// The spans that wait and those that are being exported have at most this part of the memory budget.
const PART_OF_BUDGET: usize = 8;

/// The headers that the export sets itself.
const OWN: [HeaderName; 6] = [CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TE, TRANSFER_ENCODING];

/// The headers of a text. An error shows no part of it.
fn headers(text: &str) -> Result<HeaderMap, String> {
    let wrong = || {
        "otlp.headers: (not shown, may be a secret) is not allowed: expected name=value,name=value with percent-encoded \
         values, such as authorization=Bearer%20TOKEN, and no header that the export sets itself"
            .to_owned()
    };
    let mut headers = HeaderMap::new();
    for (name, value) in pairs(text).ok_or_else(wrong)? {
        let name: HeaderName = name.parse().map_err(|_| wrong())?;
        let mut value = HeaderValue::try_from(value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        if OWN.contains(&name) || headers.insert(name, value).is_some() {
            return Err(wrong());
        }
    }
    Ok(headers)
}

/// Checks the settings against each other.
pub(super) fn check(otlp: &OtlpSettings) -> Result<(), String> {
    let OtlpSettings { endpoint, traces_endpoint, metrics_endpoint, .. } = otlp;
    let endpoints =
        [("endpoint", endpoint), ("traces_endpoint", traces_endpoint), ("metrics_endpoint", metrics_endpoint)];
    for (name, url) in endpoints.iter().filter_map(|(name, url)| Some((name, url.as_ref()?))) {
        if otlp.protocol == OtlpProtocol::Grpc && !url.path.is_empty() {
            return Err(format!("otlp.{name}: \"{url}\" is not allowed: expected a URL without a path with grpc"));
        }
        if otlp.headers.is_some() && !url.is_private() {
            return Err(format!(
                "otlp.{name}: \"{url}\" is not allowed in plaintext with otlp.headers, because others could read a \
                 credential in them: expected https, or a loopback address"
            ));
        }
    }
    if let Some(path) = &otlp.ca_file
        && !endpoints.iter().any(|(_, url)| url.as_ref().is_some_and(|url| url.is_tls))
    {
        return Err(format!("otlp.ca_file: {} is not allowed: expected an endpoint with https", shown_path(path)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn spans_have_at_most_an_eighth_of_the_memory_budget() {
        let otlp = |max_queue: usize| {
            let text = format!("region = \"r\"\n[otlp]\nendpoint = \"http://127.0.0.1:4318\"\nmax_queue = {max_queue}");
            Config::from_layers("f", &text, &[]).unwrap().otlp.unwrap()
        };
        for (max_queue, budget, fitted) in
            [(2048, 64 << 20, (2048, 512)), (200_000, 256 << 20, (15_872, 512)), (2048, 8 << 20, (384, 128))]
        {
            let otlp = otlp(max_queue).fitted(budget);
            assert_eq!((otlp.max_queue, otlp.max_batch), fitted, "{max_queue} in {budget}");
            assert!(otlp.span_memory() <= budget / 8);
        }
    }
}
