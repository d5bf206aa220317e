//! The task that keeps a link to the engine: it connects, finds out whether the engine does what is needed and whether
//! it has lost data, tells it what has become void, and asks it regularly for its role. Look-ups are not sent before all
//! that is done.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::commands::{Fault, read_deleted, read_done, read_role};
use super::link::{Link, SILENT};
use super::{Fleet, LinkError, LookUpResult, MAX_LIFETIME, StoreResult, Watcher};
use crate::cache::second_tier::{Order, Place, Ticket, Voided};
use crate::clock::Clock;
use crate::config::fleet::FleetConfig;
use crate::random::Random;

/// A place of no record, to try commands with.
const SCRATCH: Place = Place { record: [0; 16], sets: [[0; 16]; 3] };

const ROLE_IN_USE: Duration = Duration::from_millis(500);
const ROLE_WHILE_SLOW: Duration = Duration::from_millis(20);
const SHORTEST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_millis(300);
/// After a fault that only an operator can end.
const RETRY_OF_SETTINGS: Duration = Duration::from_secs(5);
/// A link that has lasted so long was a good one.
const GOOD_LINK: Duration = Duration::from_secs(1);

impl Fleet {
    /// Keeps a link to the engine. It does not return.
    pub(crate) async fn run(&self) {
        let mut retry = SHORTEST_RETRY;
        for number in 1.. {
            let opened = Link::open(&self.config, &self.keys, number).await;
            let begun = self.clock.timer_now();
            let result = match opened {
                Ok(link) => self.use_link(Arc::new(link)).await,
                Err(error) => error,
            };
            self.unlink(result.clone());
            retry = if self.clock.timer_now() - begun >= GOOD_LINK {
                SHORTEST_RETRY
            } else {
                (2 * retry).min(LONGEST_RETRY)
            };
            let pause = match result.0 {
                Fault::Denied | Fault::Tls | Fault::Settings => RETRY_OF_SETTINGS,
                _ => retry,
            };
            // Gateways that have lost the engine together do not come back together.
            let jitter = self.random.u32().map_or(0, |random| random % 50);
            sleep(pause * (100 - jitter) / 100).await;
        }
    }

    /// Waits until the engine knows all that has become void.
    pub(crate) async fn told(&self) {
        while !self.pending.lock().is_empty() {
            self.all_told.notified().await;
        }
    }

    /// Uses a link until it fails. Returns why.
    async fn use_link(&self, link: Arc<Link>) -> LinkError {
        let explain = |fault: Fault| (fault, link.node.clone());
        if let Err(error) = self.begin(&link).await {
            return error;
        }
        self.pending.lock().tell_again(MAX_LIFETIME, self.clock.now());
        if let Err(fault) = self.tell(&link).await {
            return explain(fault);
        }
        self.connect(Arc::clone(&link));
        let (mut is_slow, mut due) = (false, Box::pin(sleep(ROLE_IN_USE)));
        loop {
            let result = tokio::select! {
                biased;
                fault = link.failed() => Err(fault),
                () = &mut due => {
                    let result = self.ask_role(&link).await;
                    is_slow = link.breaker.lock().is_open();
                    due = Box::pin(sleep(if is_slow { ROLE_WHILE_SLOW } else { ROLE_IN_USE }));
                    result
                }
                () = self.to_tell.notified() => {
                    if !is_slow && link.breaker.lock().is_open() {
                        (is_slow, due) = (true, Box::pin(sleep(ROLE_WHILE_SLOW)));
                    }
                    self.tell(&link).await
                }
            };
            if let Err(fault) = result {
                return explain(fault);
            }
        }
    }

    /// Tries all commands, and finds out whether the engine has lost data.
    async fn begin(&self, link: &Link) -> Result<(), LinkError> {
        let trying =
            |command: &'static str| move |fault: Fault| (fault, format!("{}: {command} has failed", link.node));
        let role = link.look_ups.send(&redis::cmd("ROLE")).await;
        role.and_then(|reply| read_role(&reply)).map_err(trying("ROLE"))?;
        let latest = *self.latest.lock();
        let looked_up = timeout(SILENT, self.ask(link, &SCRATCH, true)).await.unwrap_or(Err(Fault::Silent));
        let looked_up = looked_up.map_err(trying("a look-up (GETRANGE, HSETNX, HMGET, HINCRBY, TIME, ECHO)"))?;
        let order = looked_up.ticket.as_ref().map(|ticket| ticket.order);
        // Another incarnation may be an earlier one, from a backup. Without a ticket nobody knows.
        let is_later =
            |latest: Order, order: Order| latest.incarnation == order.incarnation && latest.number < order.number;
        if let Some(latest) = latest
            && !order.is_some_and(|order| is_later(latest, order))
        {
            self.watcher.faulted(Fault::WentBack);
            self.pending.lock().add(Voided::Everything);
        }
        let order = order.unwrap_or(Order { incarnation: [0; 16], number: 0 });
        let ticket = Ticket { order, time: Duration::ZERO, drawn: self.clock.now(), connection: link.number };
        let full_is_fine = |result: Result<bool, Fault>| match result {
            Err(Fault::Full) => Ok(false),
            result => result,
        };
        let store = self.keys.store(&SCRATCH, &ticket, b"test", Duration::from_millis(1));
        let stored = full_is_fine(link.writes.send(&store).await.and_then(|reply| read_done(&reply)));
        stored.map_err(trying("storing (EVAL of HGET, GETRANGE, SET)"))?;
        let deleted = link.writes.send(&self.keys.delete(&SCRATCH)).await.and_then(|reply| read_deleted(&reply));
        deleted.map_err(trying("DEL"))?;
        let void = self.keys.void(Voided::Set(SCRATCH.sets[0]), self.next().1);
        let voided = full_is_fine(link.writes.send(&void).await.and_then(|reply| read_done(&reply)));
        voided.map(|_| ()).map_err(trying("voiding (EVAL of HLEN, HEXISTS, HINCRBY, HSET, DEL)"))
    }

    /// Tells the engine what has become void.
    async fn tell(&self, link: &Link) -> Result<(), Fault> {
        loop {
            let Some(voided) = self.pending.lock().begin() else {
                self.all_told.notify_one();
                return Ok(());
            };
            let told = self.send_void(link, voided).await;
            self.pending.lock().end(voided, told.is_ok(), self.clock.now());
            told?;
        }
    }

    async fn send_void(&self, link: &Link, voided: Voided) -> Result<(), Fault> {
        match read_done(&link.writes.send(&self.keys.void(voided, self.next().1)).await?) {
            Ok(_) => Ok(()),
            // Everything becomes void, which needs no memory.
            Err(Fault::Full | Fault::Error) => read_deleted(&link.writes.send(&self.keys.void_without_memory()).await?),
            Err(fault) => Err(fault),
        }
    }

    /// Asks whether the node is a master still: one that has become a replica answers look-ups, too. While the breaker is
    /// open, tries a look-up.
    async fn ask_role(&self, link: &Link) -> Result<(), Fault> {
        read_role(&link.look_ups.send(&redis::cmd("ROLE")).await?)?;
        if !link.breaker.lock().is_open() {
            return Ok(());
        }
        let begun = self.clock.timer_now();
        timeout(SILENT, self.ask(link, &SCRATCH, true)).await.unwrap_or(Err(Fault::Silent))?;
        let is_in_time = self.clock.timer_now() - begun <= self.config.budget;
        let closes = link.breaker.lock().tried(is_in_time);
        if closes {
            self.report();
        }
        Ok(())
    }
}

/// How many look-ups are timed.
const CHECKED_LOOK_UPS: usize = 21;

/// Connects to the engine, and runs each command once. Returns what an operator wants to know of it.
///
/// # Errors
/// Why the engine cannot be used.
pub(crate) async fn check(config: &FleetConfig, clock: Clock, random: Random) -> Result<String, LinkError> {
    struct Nobody;
    impl Watcher for Nobody {
        fn looked_up(&self, _: LookUpResult, _: Duration) {}
        fn stored(&self, _: StoreResult) {}
        fn faulted(&self, _: Fault) {}
        fn changed(&self, _: Result<(), LinkError>) {}
    }
    let fleet = Fleet::new(config.clone(), clock.clone(), random, Arc::new(Nobody));
    let fleet = fleet.map_err(|error| (Fault::Settings, error.to_string()))?;
    let explain = |fault: Fault| (fault, "a look-up has failed".to_owned());
    let link = Link::open(config, &fleet.keys, 1).await?;
    fleet.begin(&link).await?;
    let mut times = Vec::new();
    for _ in 0..CHECKED_LOOK_UPS {
        let begun = clock.timer_now();
        fleet.ask(&link, &SCRATCH, true).await.map_err(explain)?;
        times.push(clock.timer_now() - begun);
    }
    times.sort_unstable();
    let (median, longest) = (times[CHECKED_LOOK_UPS / 2], times[CHECKED_LOOK_UPS - 1]);
    Ok(format!(
        "a look-up takes {:.2} ms (the longest of {CHECKED_LOOK_UPS}: {:.2} ms), fleet.budget is {} ms",
        median.as_secs_f64() * 1e3,
        longest.as_secs_f64() * 1e3,
        config.budget.as_millis()
    ))
}
