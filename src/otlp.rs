//! The export to OpenTelemetry: spans and metrics, over HTTP or gRPC (OTLP 1). It is off unless an endpoint is set.
//!
//! No request depends on it. Spans come through a bounded queue, and a receiver that hangs or refuses costs only spans.
//! The export has connections of its own, directly to the receiver: it sends nothing of a client but what spans show.

mod common;
mod connection;
mod exporter;
mod metrics;
mod protobuf;
mod resource;
mod tls;
mod traces;

pub(crate) use exporter::Exporter;
// For fuzz targets.
pub use protobuf::{find_bytes, find_number};
pub(crate) use tls::tls_config;
