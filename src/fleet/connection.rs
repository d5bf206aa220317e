//! A connection to the engine, and how long it is waited for.

use std::ops::Deref;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::breaker::MISSES;
use super::commands::Fault;
use super::stream::Allowance;

/// For everything that is not a look-up. After so long without a reply, a connection is given up.
pub(super) const SILENT: Duration = Duration::from_millis(500);

/// How many look-ups wait for a fault of the engine at most. Further ones do without it.
const MAX_WAITING: usize = 128;
/// How many are in flight. Those that are late before the breaker opens leave their places to others.
pub(super) const MAX_IN_FLIGHT: usize = MAX_WAITING + 1 - MISSES as usize;

/// A connection, and the task that reads and writes it.
pub(super) struct Connection {
    sender: Sender,
    driver: JoinHandle<()>,
}

/// Sends commands over a connection.
#[derive(Clone)]
pub(super) struct Sender {
    inner: MultiplexedConnection,
    allowance: Allowance,
}

impl Deref for Connection {
    type Target = Sender;

    fn deref(&self) -> &Sender {
        &self.sender
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub(super) fn new(inner: MultiplexedConnection, allowance: Allowance, driver: JoinHandle<()>) -> Self {
        Self { sender: Sender { inner, allowance }, driver }
    }

    pub(super) fn sender(&self) -> Sender {
        self.sender.clone()
    }
}

impl Sender {
    pub(super) async fn send_all(&self, commands: &redis::Pipeline) -> Result<Vec<Value>, Fault> {
        self.allowance.add(commands.len());
        let mut connection = self.inner.clone();
        let replies = connection.send_packed_commands(commands, 0, commands.len()).await;
        replies.map_err(|error| self.fault_of(&error))
    }

    /// What the engine has sent that it was not asked for, for an operator.
    pub(super) fn refused(&self) -> Option<&'static str> {
        self.allowance.refused()
    }

    fn fault_of(&self, error: &redis::RedisError) -> Fault {
        if self.refused().is_some() { Fault::Reply } else { Fault::of(error) }
    }

    /// Sends a command, and waits for at most [`SILENT`].
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, Fault> {
        self.allowance.add(1);
        let mut connection = self.inner.clone();
        match timeout(SILENT, connection.send_packed_command(command)).await {
            Ok(reply) => reply.map_err(|error| self.fault_of(&error)),
            Err(_) => Err(Fault::Silent),
        }
    }
}
