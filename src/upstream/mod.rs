//! Asking: the only place with an HTTP client.
//!
//! A product list is asked for whole, within a deadline ([`client::Upstream::ask`]); everything else
//! is relayed as a stream that may take as long as something moves ([`client::Upstream::relay`]).

pub mod client;
mod connect;
mod error;
mod idle;

pub use error::UpstreamError;
