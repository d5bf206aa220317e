//! A link to an engine: two connections to the node that has the keys, one for look-ups and one for what is stored or
//! voided, so that look-ups do not wait behind large records.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ProtocolVersion, RedisConnectionInfo, Value};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::LinkError;
use super::breaker::{Breaker, MISSES};
use super::commands::{Fault, Keys};
use super::stream::{Allowance, BoundedStream};
use super::tls;
use crate::config::fleet::{FleetConfig, Topology};
use crate::net;
use crate::sync::Mutex;

/// For everything that is not a look-up. After so long without a reply, a connection is given up.
pub(super) const SILENT: Duration = Duration::from_millis(500);

/// How many look-ups wait for a fault of the engine at most. Further ones do without it.
const MAX_WAITING: usize = 128;
/// How many are in flight. Those that are late before the breaker opens leave their places to others.
pub(super) const MAX_IN_FLIGHT: usize = MAX_WAITING + 1 - MISSES as usize;

/// The most that a reply may have besides a record, in bytes.
const SMALL_REPLY: u64 = 64 * 1024;

/// How often another node is followed.
const MAX_HOPS: usize = 5;

pub(super) struct Link {
    /// Grows with each link of this process.
    pub(super) number: u64,
    /// The host and port, for an operator.
    pub(super) node: String,
    pub(super) look_ups: Connection,
    pub(super) writes: Connection,
    /// Whether look-ups are sent.
    pub(super) breaker: Mutex<Breaker>,
    /// Why it must not be used any more.
    fault: watch::Sender<Option<Fault>>,
}

/// A connection, and the task that reads and writes it.
pub(super) struct Connection {
    inner: MultiplexedConnection,
    allowance: Allowance,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Link {
    /// Connects to the node that has the keys, as its settings say now: files are read each time.
    ///
    /// # Errors
    /// Why this failed, and for an operator what.
    pub(super) async fn open(config: &FleetConfig, keys: &Keys, number: u64) -> Result<Self, LinkError> {
        // Reading the files blocks, for long if their file system hangs.
        let read = config.clone();
        let reading = spawn_blocking(move || {
            let files = read.read_files()?;
            let tls = read.engine.is_tls.then(|| tls::config(&files)).transpose()?;
            Ok((files.password, tls))
        });
        let limit = || (Fault::Settings, "the files of [fleet] cannot be read within 500 ms".to_owned());
        let read: Result<_, String> = timeout(SILENT, reading).await.map_err(|_| limit())?.map_err(|_| limit())?;
        let (password, tls) = read.map_err(|error| (Fault::Settings, error))?;
        let dialer = Dialer { config, password, tls };
        let node = match &config.engine.topology {
            Topology::Standalone => {
                config.engine.hosts.first().cloned().ok_or((Fault::Settings, "no host".to_owned()))?
            }
            // The first host differs, so that one that is gone does not delay each attempt.
            Topology::Sentinel { master } => dialer.ask_sentinels(master, number).await?,
            Topology::Cluster => dialer.find_in_cluster(keys, number).await?,
        };
        let (look_ups, address) = dialer.dial(&node, None, true).await?;
        // A name could stand for another machine by now.
        let (writes, _) = dialer.dial(&node, Some(address), true).await?;
        Ok(Self {
            number,
            node: format!("{}:{}", node.0, node.1),
            look_ups,
            writes,
            breaker: Mutex::default(),
            fault: watch::Sender::new(None),
        })
    }

    /// Makes the link unusable. The first fault counts.
    pub(super) fn fail(&self, fault: Fault) {
        self.fault.send_if_modified(|before| {
            before.is_none() && {
                *before = Some(fault);
                true
            }
        });
    }

    pub(super) fn is_failed(&self) -> bool {
        self.fault.borrow().is_some()
    }

    /// Waits until it is unusable.
    pub(super) async fn failed(&self) -> Fault {
        let mut fault = self.fault.subscribe();
        // The sender is in `self`, so this does not fail.
        let failed = fault.wait_for(Option::is_some).await.ok().and_then(|fault| *fault);
        failed.unwrap_or(Fault::Connection)
    }
}

impl Connection {
    pub(super) async fn send_all(&self, commands: &redis::Pipeline) -> Result<Vec<Value>, Fault> {
        self.allowance.add(commands.len());
        let mut connection = self.inner.clone();
        let replies = connection.send_packed_commands(commands, 0, commands.len()).await;
        replies.map_err(|error| Fault::of(&error))
    }

    /// Sends a command, and waits for at most [`SILENT`].
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, Fault> {
        self.allowance.add(1);
        let mut connection = self.inner.clone();
        match timeout(SILENT, connection.send_packed_command(command)).await {
            Ok(reply) => reply.map_err(|error| Fault::of(&error)),
            Err(_) => Err(Fault::Silent),
        }
    }
}

/// A host and its port.
pub(super) type Node = (String, u16);

struct Dialer<'c> {
    config: &'c FleetConfig,
    password: Option<String>,
    tls: Option<Arc<ClientConfig>>,
}

impl Dialer<'_> {
    /// Connects to a node, or to this address of it. `logs_in`: with the user and the password.
    async fn dial(
        &self,
        node: &Node,
        address: Option<SocketAddr>,
        logs_in: bool,
    ) -> Result<(Connection, SocketAddr), LinkError> {
        let (host, port) = (&*node.0, node.1);
        let describe = |fault: Fault, error: &dyn std::fmt::Display| (fault, format!("{host}:{port}: {error}"));
        let connecting = async {
            let failed = |error: io::Error| describe(Fault::Connection, &error);
            let tcp = match address {
                Some(address) => net::dial(&address.ip().to_string(), address.port()).await.map_err(failed)?,
                None => net::dial(host, port).await.map_err(failed)?,
            };
            let address = tcp.peer_addr().map_err(failed)?;
            let Some(tls) = &self.tls else {
                // Sentinels and nodes of a cluster name others.
                if !self.config.allows_plaintext && !address.ip().is_loopback() {
                    let what = "is not on this machine: expected TLS (rediss…://), or fleet.insecure_plaintext = true";
                    return Err(describe(Fault::Settings, &what));
                }
                let connection = self.log_in(tcp, logs_in).await;
                return Ok((connection.map_err(|(fault, error)| describe(fault, &error))?, address));
            };
            let name = ServerName::try_from(host.to_owned());
            let name = name.map_err(|error| describe(Fault::Settings, &error))?;
            let stream = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await;
            let stream = stream.map_err(|error| describe(tls_fault(&error), &error))?;
            let connection = self.log_in(stream, logs_in).await;
            Ok((connection.map_err(|(fault, error)| describe(fault, &error))?, address))
        };
        timeout(SILENT, connecting).await.unwrap_or_else(|_| Err(describe(Fault::Silent, &"no answer within 500 ms")))
    }

    async fn log_in<S>(&self, stream: S, logs_in: bool) -> Result<Connection, LinkError>
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
        let (inner, driver) = MultiplexedConnection::new_with_config(&info, stream, settings)
            .await
            .map_err(|error| (Fault::of(&error), shown(&error)))?;
        Ok(Connection { inner, allowance, driver: tokio::spawn(driver) })
    }

    /// All hosts, each time beginning with another one.
    fn hosts_from(&self, number: u64) -> impl Iterator<Item = &Node> {
        let hosts = &self.config.engine.hosts;
        let first = usize::try_from(number).unwrap_or_default() % hosts.len().max(1);
        hosts.iter().cycle().skip(first).take(hosts.len())
    }

    /// The address of the master, from the first Sentinel that knows it.
    async fn ask_sentinels(&self, master: &str, number: u64) -> Result<Node, LinkError> {
        let mut last = (Fault::Connection, format!("no Sentinel knows the master {master:?}"));
        let mut command = redis::cmd("SENTINEL");
        command.arg("get-master-addr-by-name").arg(master);
        for sentinel in self.hosts_from(number) {
            let reply = match self.dial(sentinel, None, false).await {
                Ok((connection, _)) => connection.send(&command).await,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            if let Ok(Value::Array(parts)) = &reply
                && let [Value::BulkString(host), Value::BulkString(port)] = &parts[..]
                && let (Ok(host), Ok(port)) = (String::from_utf8(host.clone()), String::from_utf8_lossy(port).parse())
            {
                return Ok((host, port));
            }
        }
        Err(last)
    }

    /// The node of the keys' hash slot. Other nodes name it.
    async fn find_in_cluster(&self, keys: &Keys, number: u64) -> Result<Node, LinkError> {
        let mut last = (Fault::NotMaster, "no node of the cluster has the keys".to_owned());
        for first in self.hosts_from(number) {
            let mut node = first.clone();
            for _ in 0..MAX_HOPS {
                let reply = match self.dial(&node, None, true).await {
                    Ok((connection, _)) => connection.send(&keys.find()).await,
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
                        last = (
                            Fault::of_server(&error),
                            format!("{}:{}: {}", node.0, node.1, Fault::of_server(&error).describe()),
                        );
                        break;
                    }
                    Ok(_) => return Ok(node),
                    Err(fault) => {
                        last = (fault, format!("{}:{}: no answer", node.0, node.1));
                        break;
                    }
                }
            }
        }
        Err(last)
    }
}

/// Where an error `MOVED 1234 host:port` points to. Without a host it is the same host.
fn moved_to(details: &str, from: &Node) -> Option<Node> {
    let (host, port) = details.split_whitespace().nth(1)?.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((if host.is_empty() { from.0.clone() } else { host.to_owned() }, port.parse().ok()?))
}

/// An error of the engine. Its text can repeat what it was sent, so only its code is shown.
fn shown(error: &redis::RedisError) -> String {
    match (Fault::of(error), error.code()) {
        (Fault::Denied, _) => "the user or the password is refused, or a password is needed".to_owned(),
        (_, Some(code)) if code.len() <= 32 && code.bytes().all(|byte| byte.is_ascii_uppercase()) => code.to_owned(),
        (_, Some(_)) => "an unknown error".to_owned(),
        (_, None) => error.category().to_owned(),
    }
}

fn tls_fault(error: &io::Error) -> Fault {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => Fault::Tls,
        // The engine wants another certificate of the gateway.
        Some(_) => Fault::Denied,
        None => Fault::Connection,
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
