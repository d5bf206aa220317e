//! Finds the node of the engine that has the keys, and connects to it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo, Value};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::LinkError;
use super::commands::{Fault, Keys};
use super::connection::{Connection, MAX_IN_FLIGHT, SILENT};
use super::diagnosis::{self, NO_HANDSHAKE};
use super::stream::{Allowance, BoundedStream};
use crate::config::fleet::{FleetConfig, Topology};
use crate::net::Network;

/// The most that a reply may have besides a record, in bytes.
const SMALL_REPLY: u64 = 64 * 1024;

/// How often another node is followed.
const MAX_HOPS: usize = 5;

/// A host and its port.
pub(super) type Node = (String, u16);

pub(super) fn shown_node((host, port): &Node) -> String {
    format!("{host}:{port}")
}

/// Finds nodes and connects to them, with the files as they were when it was made.
pub(super) struct Dialer {
    config: FleetConfig,
    network: Network,
    password: Option<String>,
    tls: Option<Arc<ClientConfig>>,
    /// The number of the link, and then of the Sentinel that has answered last. Further questions begin with that.
    first: AtomicU64,
}

impl Dialer {
    pub(super) fn new(
        config: &FleetConfig,
        network: Network,
        (password, tls): (Option<String>, Option<Arc<ClientConfig>>),
        number: u64,
    ) -> Self {
        Self { config: config.clone(), network, password, tls, first: AtomicU64::new(number) }
    }

    /// The node that has the keys.
    pub(super) async fn find(&self, keys: &Keys) -> Result<Node, LinkError> {
        match &self.config.engine.topology {
            Topology::Standalone => {
                self.config.engine.hosts.first().cloned().ok_or((Fault::Settings, "no host".to_owned()))
            }
            // The first host differs, so that one that is gone does not delay each attempt.
            Topology::Sentinel { master } => self.ask_sentinels(master).await,
            Topology::Cluster => self.find_in_cluster(keys).await,
        }
    }

    pub(super) fn has_sentinels(&self) -> bool {
        matches!(self.config.engine.topology, Topology::Sentinel { .. })
    }

    /// Whether the Sentinels, if there are any, still name this node as the master.
    ///
    /// # Errors
    /// If no Sentinel answers.
    pub(super) async fn is_still_master(&self, node: &str) -> Result<bool, LinkError> {
        match &self.config.engine.topology {
            Topology::Sentinel { master } => Ok(shown_node(&self.ask_sentinels(master).await?) == node),
            Topology::Standalone | Topology::Cluster => Ok(true),
        }
    }

    /// Connects to a node, or to this address of it. `logs_in`: with the user and the password.
    pub(super) async fn dial(
        &self,
        node: &Node,
        address: Option<SocketAddr>,
        logs_in: bool,
    ) -> Result<(Connection, SocketAddr), LinkError> {
        let (host, port) = (&*node.0, node.1);
        let describe = |fault: Fault, error: &dyn std::fmt::Display| (fault, format!("{host}:{port}: {error}"));
        let is_in_handshake = AtomicBool::new(false);
        let connecting = async {
            let failed = |error: io::Error| describe(Fault::Connection, &error);
            let tcp = match address {
                Some(address) => self.network.connect(address).await.map_err(failed)?,
                None => self.network.dial(host, port).await.map_err(failed)?,
            };
            let address = tcp.peer_addr().map_err(failed)?;
            let Some(tls) = &self.tls else {
                // Sentinels and nodes of a cluster name others.
                if !self.config.allows_plaintext && !address.ip().is_loopback() {
                    let what = "is not on this machine: expected TLS (rediss…://), or fleet.insecure_plaintext = true";
                    return Err(describe(Fault::Settings, &what));
                }
                let connection = self.log_in(tcp, logs_in, false).await;
                return Ok((connection.map_err(|(fault, error)| describe(fault, &error))?, address));
            };
            let name = ServerName::try_from(host.to_owned());
            let name = name.map_err(|error| describe(Fault::Settings, &error))?;
            is_in_handshake.store(true, Ordering::Relaxed);
            let stream = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await;
            is_in_handshake.store(false, Ordering::Relaxed);
            let stream = stream.map_err(|error| match tls_fault(&error) {
                (fault, None) => describe(fault, &error),
                (fault, Some(what)) => describe(fault, &what),
            })?;
            let connection = self.log_in(stream, logs_in, true).await;
            Ok((connection.map_err(|(fault, error)| describe(fault, &error))?, address))
        };
        timeout(SILENT, connecting).await.unwrap_or_else(|_| {
            let is_in_handshake = is_in_handshake.load(Ordering::Relaxed);
            let what = if is_in_handshake { NO_HANDSHAKE } else { "no answer within 500 ms" };
            Err(describe(Fault::Silent, &what))
        })
    }

    async fn log_in<S>(&self, stream: S, logs_in: bool, is_tls: bool) -> Result<Connection, LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let allowance = Allowance::new(self.config.max_record() as u64 + SMALL_REPLY);
        let mut info = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        if logs_in && let Some(password) = &self.password {
            info = info.set_password(password);
            if let Some(user) = &self.config.engine.user {
                info = info.set_username(user);
            }
        }
        // The time limits are ours.
        let settings = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_pipeline_buffer_size(2 * MAX_IN_FLIGHT);
        let stream = BoundedStream::new(stream, allowance.clone());
        let (inner, driver) =
            MultiplexedConnection::new_with_config(&info, stream, settings).await.map_err(|error| {
                match allowance.refused() {
                    Some(what) => (Fault::Reply, what.to_owned()),
                    None => (Fault::of(&error), shown(&error, is_tls)),
                }
            })?;
        Ok(Connection::new(inner, allowance, tokio::spawn(driver)))
    }

    /// Sends the first command over a connection. An error says what the peer seems to be.
    pub(super) async fn send_first(&self, connection: &Connection, command: &redis::Cmd) -> Result<Value, LinkError> {
        connection.send(command).await.map_err(|fault| {
            let what = connection.refused().or_else(|| diagnosis::of_first_command(fault, self.tls.is_some()));
            (fault, what.unwrap_or("no answer to the first command").to_owned())
        })
    }

    /// All hosts with their places, for each link beginning with another one.
    fn hosts(&self) -> impl Iterator<Item = (u64, &Node)> {
        let hosts = &self.config.engine.hosts;
        let first = usize::try_from(self.first.load(Ordering::Relaxed)).unwrap_or_default() % hosts.len().max(1);
        (0..).zip(hosts).cycle().skip(first).take(hosts.len())
    }

    /// The address of the master, from the first Sentinel that knows it.
    async fn ask_sentinels(&self, master: &str) -> Result<Node, LinkError> {
        let mut last = (Fault::Connection, "there is no Sentinel in fleet.engine".to_owned());
        let mut command = redis::cmd("SENTINEL");
        command.arg("get-master-addr-by-name").arg(master);
        for (place, sentinel) in self.hosts() {
            let reply = match self.dial(sentinel, None, false).await {
                Ok((connection, _)) => self.send_first(&connection, &command).await,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            if let Ok(Value::Array(parts)) = &reply
                && let [Value::BulkString(host), Value::BulkString(port)] = &parts[..]
                && let (Ok(host), Ok(port)) = (String::from_utf8(host.clone()), String::from_utf8_lossy(port).parse())
            {
                self.first.store(place, Ordering::Relaxed);
                return Ok((host, port));
            }
            let (fault, what) = match reply {
                Ok(Value::ServerError(error)) => {
                    (Fault::of_server(&error), diagnosis::of_sentinel(&Value::ServerError(error), master))
                }
                Ok(reply) => (Fault::NotMaster, diagnosis::of_sentinel(&reply, master)),
                Err((fault, what)) => (fault, what),
            };
            last = (fault, format!("{}: {what}", shown_node(sentinel)));
        }
        Err(last)
    }

    /// The node of the keys' hash slot. Other nodes name it.
    async fn find_in_cluster(&self, keys: &Keys) -> Result<Node, LinkError> {
        let mut last = (Fault::NotMaster, "no node of the cluster has the keys".to_owned());
        for (_, first) in self.hosts() {
            let mut node = first.clone();
            for _ in 0..MAX_HOPS {
                let reply = match self.dial(&node, None, true).await {
                    Ok((connection, _)) => self.send_first(&connection, &keys.find()).await,
                    Err(error) => {
                        last = error;
                        break;
                    }
                };
                match reply {
                    Ok(Value::ServerError(error)) if error.code() == "MOVED" => {
                        let Some(next) = error.details().and_then(|details| moved_to(details, &node)) else { break };
                        node = next;
                    }
                    Ok(Value::ServerError(error)) => {
                        let fault = Fault::of_server(&error);
                        let what = diagnosis::of_error(&error).unwrap_or_else(|| fault.describe());
                        last = (fault, format!("{}: {what}", shown_node(&node)));
                        break;
                    }
                    Ok(_) => return Ok(node),
                    Err((fault, what)) => {
                        last = (fault, format!("{}: {what}", shown_node(&node)));
                        break;
                    }
                }
            }
        }
        Err(last)
    }
}

/// Where an error `MOVED 1234 host:port` points to. Without a host it is the same host.
pub(super) fn moved_to(details: &str, from: &Node) -> Option<Node> {
    let (host, port) = details.split_whitespace().nth(1)?.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((if host.is_empty() { from.0.clone() } else { host.to_owned() }, port.parse().ok()?))
}

/// An error of the engine. Its text can repeat what it was sent, so only its code is shown.
fn shown(error: &redis::RedisError, is_tls: bool) -> String {
    let fault = Fault::of(error);
    if let Some(what) = diagnosis::of_first_command(fault, is_tls) {
        return what.to_owned();
    }
    match (fault, error.code()) {
        (Fault::Denied, _) => "the user or the password is refused".to_owned(),
        (_, Some(code)) if code.len() <= 32 && code.bytes().all(|byte| byte.is_ascii_uppercase()) => code.to_owned(),
        (_, Some(_)) => "an unknown error".to_owned(),
        (_, None) => error.category().to_owned(),
    }
}

/// Why a TLS handshake has failed, and for an operator what, unless the error says it.
fn tls_fault(error: &io::Error) -> (Fault, Option<&'static str>) {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => (Fault::Tls, None),
        Some(rustls::Error::InvalidMessage(_)) => (Fault::Reply, Some(NO_HANDSHAKE)),
        // The engine wants another certificate of the gateway.
        Some(_) => (Fault::Denied, None),
        None => (Fault::Connection, Some(NO_HANDSHAKE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_node_names_another_node() {
        let from = ("a".to_owned(), 1);
        for (details, expected) in [
            ("3999 127.0.0.1:6381", Some(("127.0.0.1", 6381))),
            ("3999 :6381", Some(("a", 6381))),
            ("3999 [::1]:6381", Some(("::1", 6381))),
            ("3999", None),
            ("3999 host:port", None),
        ] {
            assert_eq!(moved_to(details, &from), expected.map(|(host, port)| (host.to_owned(), port)), "{details}");
        }
    }
}
