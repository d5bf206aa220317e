//! The task that keeps a link to the engine: it connects, finds out whether the engine does what is needed and whether
//! it has lost data, and has it told what has become void. Look-ups are not sent before all that is done. Then it reads the
//! log, renews leases, and checks that the node is still the master, again and again.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::Value;
use tokio::time::{sleep, timeout};

use super::commands::{
    Fault, Fresh, PollReplies, Polled, Told, first_fault, hex, read_deleted, read_done, read_known, read_role,
    read_told,
};
use super::connection::SILENT;
use super::diagnosis;
use super::link::Link;
use super::log::Progress;
use super::{Fleet, LinkError, MAX_LIFETIME};
use crate::cache::second_tier::{
    Incarnation, Lease, LogReader, LookUp, Name, NewRecord, Order, Place, RecordKind, Ticket,
};

/// The name and the place of nothing, to try commands with.
pub(super) const SCRATCH_NAME: Name = [0; 16];
pub(super) static SCRATCH: LazyLock<Place> =
    LazyLock::new(|| Place { record: SCRATCH_NAME, sets: Box::new([SCRATCH_NAME]) });

/// Steps that can fail, and their commands, for an operator.
const TELLING: &str = "telling (EVAL of HEXISTS, HGET, HSET, HLEN, HINCRBY, XADD)";
const READING: &str =
    "reading the log (ROLE, HSETNX, HMGET, XRANGE, HINCRBY, TIME, ECHO, and EVAL of GET, PEXPIRE for leases)";

/// How often the log is read within `fleet.sync`, and while the engine is slow.
const POLLS_PER_SYNC: u32 = 4;
/// Leases are renewed with each poll, and last 1 s.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// The most batches of a poll. The log has about 4,096 notices.
const MAX_BATCHES: usize = 160;
const POLL_WHILE_SLOW: Duration = Duration::from_millis(20);
/// After a link was opened, so long gateways tell again what the engine may have lost.
const SETTLE: Duration = Duration::from_secs(2);
const SHORTEST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_millis(300);
/// After links, one after the other, each of which has found another incarnation of the engine. If the engine has too little
/// memory, each gateway that voids it ends the links of the others.
const LONGEST_RETRY_OF_LOST: Duration = Duration::from_secs(5);
/// After a fault that only an operator can end.
const RETRY_OF_SETTINGS: Duration = Duration::from_secs(5);
/// A link that has lasted so long was a good one.
const GOOD_LINK: Duration = Duration::from_secs(1);

impl Fleet {
    /// Keeps a link to the engine. It does not return.
    pub(crate) async fn run(&self, reader: &dyn LogReader) {
        let mut retry = SHORTEST_RETRY;
        for number in 1.. {
            let opened = Link::open(&self.config, &self.keys, &self.machine, number).await;
            let begun = self.machine.clock.timer_now();
            let result = match opened {
                Ok(link) => self.use_link(Arc::new(link), reader).await,
                Err(error) => error,
            };
            self.unlink(result.clone());
            retry = if self.machine.clock.timer_now() - begun >= GOOD_LINK {
                SHORTEST_RETRY
            } else {
                (2 * retry).min(if result.0 == Fault::WentBack { LONGEST_RETRY_OF_LOST } else { LONGEST_RETRY })
            };
            let pause = match result.0 {
                Fault::Denied | Fault::Tls | Fault::Settings => RETRY_OF_SETTINGS,
                _ => retry,
            };
            // Gateways that have lost the engine together do not come back together.
            let jitter = self.machine.random.u32().map_or(0, |random| random % 50);
            sleep(pause * (100 - jitter) / 100).await;
        }
    }

    /// Waits until the engine knows all that has become void.
    pub(crate) async fn told(&self) {
        loop {
            let mut all_told = pin!(self.all_told.notified());
            // Before the check: it may be the last one that is told between the two.
            all_told.as_mut().enable();
            if self.to_tell() == 0 {
                return;
            }
            all_told.await;
        }
    }

    /// Uses a link until it fails. Returns why.
    async fn use_link(&self, link: Arc<Link>, reader: &dyn LogReader) -> LinkError {
        let during = |step: &'static str| {
            let node = &link.node;
            move |fault: Fault| match fault {
                Fault::WentBack => (fault, format!("{node}: its control key is not the one from before")),
                _ => (fault, format!("{node}: {step} has failed")),
            }
        };
        let incarnation = match self.begin(&link).await {
            Ok(incarnation) => incarnation,
            Err(error) => return error,
        };
        // Before telling: the incarnations of what is told are compared with this one.
        self.position.lock().restart(incarnation);
        self.notices.lock().tell_again(MAX_LIFETIME, self.machine.clock.now());
        if let Err(fault) = self.tell_all(&link).await {
            return during(TELLING)(fault);
        }
        let mut confirmed = Confirmed { opened: self.machine.clock.now(), at: self.machine.clock.now() };
        self.connect(Arc::clone(&link));
        let pause = (self.config.sync / POLLS_PER_SYNC).min(LONGEST_PAUSE);
        let mut due = Box::pin(sleep(pause));
        let mut confirming = Box::pin(self.confirm(&link));
        loop {
            let result = tokio::select! {
                biased;
                fault = link.failed() => Err(during("a look-up, or storing a record,")(fault)),
                confirmation = &mut confirming => {
                    confirming = Box::pin(self.confirm(&link));
                    let at = confirmation.map_err(during("confirming with a Sentinel that it is the master"));
                    at.map(|at| confirmed.at = at.unwrap_or(confirmed.at))
                }
                () = &mut due => {
                    let result = self.poll(&link, reader, &mut confirmed).await;
                    let is_slow = link.breaker.lock().is_open();
                    due = Box::pin(sleep(if is_slow { POLL_WHILE_SLOW } else { pause }));
                    match result.map_err(during(READING)) {
                        // What the engine had no memory for, too.
                        Ok(()) => match self.tell_some(&link).await {
                            Ok(()) => self.tell_hints(&link).await,
                            failed => failed,
                        }
                        .map_err(during(TELLING)),
                        result => result,
                    }
                }
                () = self.to_tell.notified() => {
                    if link.breaker.lock().is_open() {
                        due = Box::pin(sleep(POLL_WHILE_SLOW));
                    }
                    self.tell_some(&link).await.map_err(during(TELLING))
                }
            };
            if let Err(error) = result {
                return error;
            }
        }
    }

    /// Asks the Sentinels after a while whether the node is still the master: one that was cut off from its replicas goes on
    /// to say so itself. Returns when that was; without Sentinels, or if none of them answers, not.
    async fn confirm(&self, link: &Link) -> Result<Option<Instant>, Fault> {
        sleep(self.config.sync / 2).await;
        let asked = self.machine.clock.now();
        match link.dialer.is_still_master(&link.node).await {
            Ok(true) => Ok(Some(asked)),
            Ok(false) => Err(Fault::NotMaster),
            Err(_) => Ok(None),
        }
    }

    /// Tries all commands, and finds out whether the engine has lost data. Returns its incarnation, if it says.
    pub(super) async fn begin(&self, link: &Link) -> Result<Option<Incarnation>, LinkError> {
        let trying =
            |command: &'static str| move |fault: Fault| (fault, format!("{}: {command} has failed", link.node));
        let role = link.dialer.send_first(&link.look_ups, &redis::cmd("ROLE")).await;
        let role = role.map_err(|(fault, what)| (fault, format!("{}: {what}", link.node)))?;
        read_role(&role).map_err(|fault| match diagnosis::of_role(&role) {
            Some(what) => (fault, format!("{}: {what}", link.node)),
            None => trying("ROLE")(fault),
        })?;
        let latest = *self.latest.lock();
        let nothing = LookUp { places: std::slice::from_ref(&*SCRATCH), wants_records: true, lease: None };
        let looked_up = timeout(SILENT, self.ask(link, nothing, 0)).await.unwrap_or(Err(Fault::Silent));
        let looked_up = looked_up.map_err(trying("a look-up (GETRANGE, HSETNX, HMGET, HINCRBY, TIME, ECHO)"))?;
        let order = looked_up.ticket.as_ref().map(|ticket| ticket.order);
        // Another incarnation may be an earlier one, from a backup. Without a ticket nobody knows.
        let is_later =
            |latest: Order, order: Order| latest.incarnation == order.incarnation && latest.number < order.number;
        if let Some(latest) = latest
            && !order.is_some_and(|order| is_later(latest, order))
        {
            self.watcher.faulted(Fault::WentBack);
            self.notices.lock().void_engine();
        }
        self.try_commands(link).await?;
        Ok(order.map(|order| order.incarnation))
    }

    /// Tries the commands that write, with keys that nobody uses.
    async fn try_commands(&self, link: &Link) -> Result<(), LinkError> {
        let trying =
            |command: &'static str| move |fault: Fault| (fault, format!("{}: {command} has failed", link.node));
        let full_is_fine = |result: Result<bool, Fault>| match result {
            Err(Fault::Full) => {
                link.is_full.store(true, Ordering::Relaxed);
                Ok(false)
            }
            result => result,
        };
        let done = |reply: Result<Value, Fault>| full_is_fine(reply.and_then(|reply| read_done(&reply)));
        let Fresh { incarnation, .. } = self.next();
        let (keys, link_writes) = (self.keys.scratch(), &link.writes);
        let lease = Lease { name: SCRATCH_NAME, holder: incarnation };
        // First, too: their values may be none of ours.
        let delete = async || link_writes.send(&keys.delete_all(&[SCRATCH_NAME])).await;
        delete().await.and_then(|reply| read_deleted(&reply)).map_err(trying("DEL"))?;
        // A notice of an earlier try may still be there.
        let told = Told { voids: Some(SCRATCH_NAME), id: &hex(&incarnation), sealed: b"test", incarnation };
        let told = link_writes.send(&keys.tell(told)).await.and_then(|reply| read_told(&reply));
        full_is_fine(told.map(|(is_told, _)| is_told)).map_err(trying(TELLING))?;
        let order = Order { incarnation, number: 1 };
        let ticket = Ticket { order, time: Duration::ZERO, drawn: self.machine.clock.now(), connection: link.number };
        let (sealed, lifetime) = (Bytes::from_static(b"test"), Duration::from_millis(1));
        let record = NewRecord {
            place: SCRATCH.clone(),
            ticket,
            sealed,
            lifetime,
            kind: RecordKind::Entry,
            marker: Some(SCRATCH_NAME),
            lease: Some(lease),
        };
        let stored = done(link_writes.send(&keys.store(&record)).await);
        stored.map_err(trying("storing (EVAL of HGET, GET, GETRANGE, SET)"))?;
        let taken = LookUp { places: &[], wants_records: false, lease: Some(SCRATCH_NAME) };
        let taken = link.look_ups.send_all(&keys.look_up(taken, Some(lease), self.next(), 0)).await;
        taken.and_then(|replies| first_fault(&replies)).map_err(trying("taking a lease (SET, GET, PTTL)"))?;
        done(link_writes.send(&keys.renew(&lease)).await).map_err(trying("renewing (EVAL of GET, PEXPIRE)"))?;
        done(link_writes.send(&keys.release(&lease, None)).await).map_err(trying("releasing (EVAL of GET, DEL)"))?;
        let known = link_writes.send_all(&keys.are_known([SCRATCH_NAME].iter())).await;
        let known = known.and_then(|replies| read_known(&replies, self.holder())?.into_iter().collect());
        known.map(|_: Vec<bool>| ()).map_err(trying("looking for a record and a lease (EXISTS, GETRANGE)"))?;
        let polled = link.look_ups.send_all(&keys.poll("-", self.next())).await;
        polled.and_then(|replies| first_fault(&replies)).map_err(trying(READING))?;
        let rare = link_writes.send_all(&keys.rare()).await;
        rare.and_then(|replies| first_fault(&replies)).map_err(trying("HGETALL or HDEL"))?;
        delete().await.and_then(|reply| read_deleted(&reply)).map_err(trying("DEL"))
    }

    /// Reads the log to its end, and renews the leases that this process has. While the breaker is open, tries a look-up.
    async fn poll(&self, link: &Link, reader: &dyn LogReader, confirmed: &mut Confirmed) -> Result<(), Fault> {
        self.renew_leases(link).await?;
        for _ in 0..MAX_BATCHES {
            let (fresh, sent) = (self.next(), self.machine.clock.now());
            let commands = self.keys.poll(self.position.lock().from(), fresh);
            let replies = timeout(SILENT, link.look_ups.send_all(&commands)).await.unwrap_or(Err(Fault::Silent))?;
            let polled = match (PollReplies { fresh }).read(&replies) {
                Ok(polled) => polled,
                Err(fault) if fault.ends_link() => return Err(fault),
                Err(Fault::Full) => {
                    self.note_full(link, true);
                    break;
                }
                Err(fault) => {
                    self.watcher.faulted(fault);
                    break;
                }
            };
            let is_full = polled.is_full;
            // On a new link each gateway tells again what it knows. Until then this one must not count as settled.
            let progress = self.read(&polled, reader).ok_or(Fault::WentBack)?;
            if self.position.lock().take_begun() {
                confirmed.opened = self.machine.clock.now();
            }
            if let Some(number) = polled.ticket {
                self.note_latest(Order { incarnation: polled.incarnation, number });
            }
            // Others may not have told yet what a full engine did not take.
            if self.note_full(link, polled.ticket.is_none()) && polled.ticket.is_some() {
                confirmed.opened = self.machine.clock.now();
            }
            let is_settled = sent >= confirmed.opened + SETTLE;
            // An engine that accepts nothing cannot be told anything by others either.
            if progress.is_whole && is_settled && polled.ticket.is_some() {
                self.sync.extend(sent.min(confirmed.since(link, sent)) + self.config.sync);
            }
            if progress.is_whole || !is_full {
                break;
            }
        }
        if link.breaker.lock().is_open() {
            self.try_look_up(link).await?;
        }
        Ok(())
    }

    /// The engine accepts something new, or nothing. Returns whether it accepted nothing before.
    fn note_full(&self, link: &Link, is_full: bool) -> bool {
        if is_full {
            self.watcher.faulted(Fault::Full);
        }
        let was_full = link.is_full.swap(is_full, Ordering::Relaxed);
        if was_full != is_full {
            self.report();
        }
        was_full
    }

    /// Applies what has been read of the log. `None` if the engine has lost its data.
    fn read(&self, polled: &Polled, reader: &dyn LogReader) -> Option<Progress> {
        let (is_first, mut progress) = {
            let mut position = self.position.lock();
            (!position.has_read(), position.advance(polled)?)
        };
        for entry in &polled.entries {
            let is_new = self.notices.lock().learn(entry, self.machine.clock.now());
            let age = polled.time.saturating_sub(entry.told_at);
            if is_new && reader.told(entry.voids, &entry.sealed, age).is_err() {
                // A hint of another release may be lost.
                progress.has_gap |= entry.voids.is_some();
            }
        }
        if progress.has_gap {
            self.notices.lock().lose();
            // Before the first notice there is hardly anything that others could have voided.
            if !is_first {
                self.watcher.missed();
            }
            reader.missed();
        }
        Some(progress)
    }

    /// All of them at once, because a client can cause hundreds, and the log is read after that.
    async fn renew_leases(&self, link: &Link) -> Result<(), Fault> {
        let leases: Vec<Lease> = self.leases.lock().values().copied().collect();
        if leases.is_empty() {
            return Ok(());
        }
        let renewing = timeout(SILENT, link.writes.send_all(&self.keys.renew_all(&leases))).await;
        for (lease, reply) in leases.iter().zip(renewing.unwrap_or(Err(Fault::Silent))?) {
            match read_done(&reply) {
                // Another gateway may have it by now.
                Ok(false) => self.forget(lease),
                Err(fault) if fault.ends_link() => return Err(fault),
                Ok(true) | Err(_) => {}
            }
        }
        Ok(())
    }

    async fn try_look_up(&self, link: &Link) -> Result<(), Fault> {
        let begun = self.machine.clock.timer_now();
        let nothing = LookUp { places: std::slice::from_ref(&*SCRATCH), wants_records: true, lease: None };
        timeout(SILENT, self.ask(link, nothing, 0)).await.unwrap_or(Err(Fault::Silent))?;
        let is_in_time = self.machine.clock.timer_now() - begun <= self.config.budget;
        let closes = link.breaker.lock().tried(is_in_time);
        if closes {
            self.report();
        }
        Ok(())
    }
}

/// When a link was opened, and when the node was confirmed as the master the last time.
struct Confirmed {
    opened: Instant,
    at: Instant,
}

impl Confirmed {
    /// Since when nobody has confirmed the master. Without Sentinels it is the node itself that says so, with each poll.
    fn since(&self, link: &Link, polled: Instant) -> Instant {
        if link.dialer.has_sentinels() { self.at } else { polled }
    }
}
