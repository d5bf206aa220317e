//! The gateway of a fleet that is killed, and starts again without what it knew. It is a process of its own.

use std::sync::Mutex;
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::body::Bytes;
use tokio::time::sleep;
use workspace_gateway::testing::clock::Clock;

use super::cache_status::{CacheStatus, Source};
use super::client::Connection;
use super::endpoint::{Begun, Endpoint, Standing};
use super::engine::Engine;
use super::gateway::Gateway;
use super::lock;
use super::world::Journal;

/// So many calls should be in flight in so many looks in a row when it is killed: upstream is slow. Most of them have leases.
const MIN_CALLS: u64 = 3;
const IN_A_ROW: usize = 20;
/// How often this is looked for, until upstream is slow at last. Then it is killed in any case.
const LOOKS: usize = 3_000;
const LOOK: Duration = Duration::from_millis(5);
/// After this time its leases end within `ENDING`. Those of others are renewed each 250 ms, and then last 1 s.
const DOWN: Duration = Duration::from_millis(350);
const ENDING: Duration = Duration::from_millis(650);
/// Counts the leases that end within a time, without marks that a call had no response for others.
const COUNT: &str = "local n = 0
    for _, key in ipairs(redis.call('KEYS', 'wg2:*:l:*')) do
        local left = redis.call('PTTL', key)
        if redis.call('GET', key) ~= '-' and left > 0 and left < tonumber(ARGV[1]) then n = n + 1 end
    end
    return n";

pub(crate) struct Mortal {
    gateway: Mutex<Gateway>,
    settings: String,
    /// How many leases it had when it was killed.
    pub(crate) leases: usize,
    /// How many times it was killed without enough calls in flight.
    pub(crate) idle_kills: usize,
}

impl Mortal {
    pub(crate) fn start(settings: String) -> Self {
        Self { gateway: Mutex::new(Gateway::start(&settings)), settings, leases: 0, idle_kills: 0 }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::new(lock(&self.gateway).address, None)
    }

    pub(crate) fn is_in_sync(&self) -> bool {
        lock(&self.gateway).in_sync_until() > Clock::System.now()
    }

    /// Kills it, if possible while it has calls in flight, and starts it again. `forget`: what is known about it must be forgotten.
    pub(crate) async fn kill(
        &mut self,
        (number, endpoint): (usize, &Endpoint),
        engine: &Engine,
        journal: &Mutex<Journal>,
        forget: impl FnOnce(),
    ) {
        let mut in_a_row = 0;
        for _ in 0..LOOKS {
            in_a_row = if lock(&self.gateway).calls() >= MIN_CALLS { in_a_row + 1 } else { 0 };
            if in_a_row == IN_A_ROW {
                break;
            }
            sleep(LOOK).await;
        }
        self.idle_kills += usize::from(in_a_row < IN_A_ROW);
        lock(journal).down[number].begin(true, Clock::System.now());
        lock(&self.gateway).kill();
        lock(journal).down[number].settle(Clock::System.now());
        forget();
        sleep(DOWN).await;
        let count = engine.run(&["EVAL", COUNT, "0", &ENDING.as_millis().to_string()]).await;
        self.leases += count.parse::<usize>().expect("a number");
        *lock(&self.gateway) = Gateway::start(&self.settings);
        endpoint.restart(lock(&self.gateway).address, None);
        let mut journal = lock(journal);
        journal.down[number].begin(false, Clock::System.now());
        journal.down[number].settle(Clock::System.now());
    }

    /// Sends a request.
    pub(crate) async fn ask(&self, request: Request<Empty<Bytes>>) -> (StatusCode, Source, Standing) {
        let (address, in_sync_until) = {
            let mut gateway = lock(&self.gateway);
            (gateway.address, gateway.in_sync_until())
        };
        let mut connection = Connection::open(0, address, false, false).await.expect("it listens");
        let begun = Begun::elsewhere(in_sync_until);
        let head = connection.send(request).await.expect("a response").into_parts().0;
        let decided = Clock::System.now();
        let standing = begun.end(decided, lock(&self.gateway).in_sync_until());
        (head.status, CacheStatus::read(&head.headers).source(head.status == StatusCode::OK), standing)
    }
}
