//! What is the same in all exports: the resource (this process), the instrumentation scope, and the listener for clients.

use std::net::SocketAddr;

use super::common::{write_number, write_text};
use super::protobuf::Message;
use crate::config::otlp::OtlpConfig;

pub(super) struct Resource {
    attributes: Vec<(String, String)>,
    listener: SocketAddr,
    scheme: &'static str,
}

impl Resource {
    /// `listener` is the address for clients.
    pub(super) fn new(config: &OtlpConfig, listener: SocketAddr, has_tls: bool, instance: String) -> Self {
        let mut attributes = config.resource.clone();
        let own = [
            ("service.instance.id", instance),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("telemetry.sdk.language", "rust".to_owned()),
            ("telemetry.sdk.name", "workspace-gateway".to_owned()),
            ("telemetry.sdk.version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        for (name, value) in own {
            // What the operator has set counts.
            if !attributes.iter().any(|(known, _)| known == name) {
                attributes.push((name.to_owned(), value));
            }
        }
        Self { attributes, listener, scheme: if has_tls { "https" } else { "http" } }
    }

    pub(super) fn write(&self, message: &mut Message) {
        for (name, value) in &self.attributes {
            write_text(message, 1, name, value);
        }
    }

    /// The `InstrumentationScope`.
    pub(super) fn write_scope(message: &mut Message) {
        message.bytes(1, env!("CARGO_PKG_NAME").as_bytes());
        message.bytes(2, env!("CARGO_PKG_VERSION").as_bytes());
    }

    /// The attributes of each server span that no request changes.
    pub(super) fn write_listener(&self, message: &mut Message, field: u32) {
        write_text(message, field, "url.scheme", self.scheme);
        // A listener on all addresses has none that clients use.
        if !self.listener.ip().is_unspecified() {
            write_text(message, field, "server.address", &self.listener.ip().to_string());
        }
        write_number(message, field, "server.port", self.listener.port().into());
    }
}
