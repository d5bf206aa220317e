//! Judges what the gateways have done since the last look: the records that they have stored and got, the calls that they
//! have started, and their responses.

use tokio::task::yield_now;

use workspace_gateway::testing::cache::second_tier::RecordKind;

use super::super::domain::{CacheRequest, Ms, RequestDirectives, SCOPES, scope_of};
use super::super::driver::TURNS;
use super::super::property::{Borrowed, Copy};
use super::super::scripted_upstream::UpstreamRequest;
use super::engine::{Asked, Given, Seen, Stored};
use super::process::{Call, Process};
use super::steps::GatewayId;
use super::{Completed, Driver, LONGEST_LOOK_UP, Selection};

impl Driver {
    /// Runs all tasks until none can run, and judges what has happened.
    pub(super) async fn look(&mut self, completed: Option<Completed>) -> Result<(), String> {
        for _ in 0..TURNS {
            yield_now().await;
        }
        let Seen { asked, given, stored, noticed } = self.engine.take_seen();
        self.check_notices(noticed)?;
        self.check_stored(&stored, completed)?;
        for given in &given {
            match given.kind {
                RecordKind::Entry => self.take_over(given),
                RecordKind::Grant => self.borrow(given),
                // No request of the model is signed.
                RecordKind::AccessKey => {}
            }
        }
        // With a proof that it has just got, a request asks again.
        for asked in asked {
            self.check_look_up(&asked)?;
        }
        for gateway in 0..self.processes.len() {
            self.judge(gateway)?;
        }
        self.find_idle();
        Ok(())
    }

    /// What is stored comes from the call that has just completed, and is for others.
    fn check_stored(&mut self, stored: &[Stored], completed: Option<Completed>) -> Result<(), String> {
        if stored.is_empty() {
            return Ok(());
        }
        let Some(Completed { gateway, id, mut source, mut proof }) = completed else {
            return Err("PROPERTY: a record was stored although no call has completed".to_owned());
        };
        let is_its = |stored: &&Stored| stored.process == self.processes[gateway].number;
        if !stored.iter().all(|stored| is_its(&stored)) {
            return Err("PROPERTY: a record was stored by a process whose call has not completed".to_owned());
        }
        for Stored { place, record, kind, .. } in stored {
            let name_of_another =
                || Err(format!("PROPERTY: a record of #{id} was stored under the name of another one"));
            match kind {
                RecordKind::Entry => {
                    let Some(source) = source.take() else {
                        return Err(format!("PROPERTY: the response to #{id} was stored, but is not for others"));
                    };
                    self.count("stored in the second tier");
                    if *self.places.entry(*place).or_insert(source.key) != source.key {
                        return name_of_another();
                    }
                    self.sources.insert(*record, source);
                }
                RecordKind::Grant => {
                    let Some(proof) = proof.take() else {
                        return Err(format!("PROPERTY: the proof of #{id} was stored, but it is none"));
                    };
                    self.count("proof stored in the second tier");
                    let caller_scope = (proof.caller, proof.scope);
                    if *self.grant_places.entry(*place).or_insert(caller_scope) != caller_scope {
                        return name_of_another();
                    }
                    self.proofs.insert(*record, proof);
                }
                RecordKind::AccessKey => return Err("PROPERTY: no request of the model is signed".to_owned()),
            }
        }
        Ok(())
    }

    /// The tier is asked for an entry only for a caller with a grant, or together with the caller's own grant.
    fn check_look_up(&mut self, asked: &Asked) -> Result<(), String> {
        let Some(process) = self.processes.iter().find(|process| process.number == asked.process) else {
            return Ok(());
        };
        let key = asked.places.iter().find_map(|place| self.places.get(place).copied());
        let of_grant = asked.places.iter().find_map(|place| self.grant_places.get(place).copied());
        let Some(key) = key else { return Ok(()) };
        let scope = scope_of(key);
        if asked.places.len() > 1 {
            return match of_grant {
                Some((_, its)) if its != scope => {
                    Err(format!("PROPERTY: the second tier was asked for key {key} with the grant of another scope"))
                }
                _ => Ok(()),
            };
        }
        // A request that waits, or that has come just now.
        let may_ask = |request: &CacheRequest, arrived: Ms| {
            let is_pending = process.waiting.contains(&request.id) || arrived == asked.at;
            request.key == key && !request.is_unsafe && is_pending
        };
        let is_proved = |caller, at| process.property.is_proved(caller, scope, self.settings.grant_ttl, at);
        let is_for_granted = process.requests.iter().any(|(request, arrived, jumped)| {
            // A grant may lapse while the request waits for another gateway.
            may_ask(request, *arrived)
                && [asked.at + self.jumped, *arrived + jumped].into_iter().any(|at| is_proved(request.caller, at))
        });
        match is_for_granted {
            true => Ok(()),
            false => {
                Err(format!("PROPERTY: the second tier was asked for key {key}, but no caller that waits has a grant"))
            }
        }
    }

    /// How much later than it was sent a record may seem to have been sent, by both clocks.
    fn seems_later(&self, sent: Ms) -> Ms {
        // A ticket is drawn, with the time of the engine, a look-up earlier.
        let since = sent.saturating_sub(LONGEST_LOOK_UP);
        let sums = self
            .set_back
            .each_ref()
            .map(|moves| moves.iter().filter(|(at, _)| *at >= since).map(|(_, by)| by).sum::<Ms>());
        sums[0].min(sums[1])
    }

    /// A gateway has got a proof. If it is what was stored there, it may count.
    fn borrow(&mut self, given: &Given) {
        let Given { process, place, record, order, is_genuine, .. } = *given;
        let (Some(proof), Some(caller_scope)) = (self.proofs.get(&record), self.grant_places.get(&place)) else {
            return;
        };
        if !is_genuine || *caller_scope != (proof.caller, proof.scope) {
            self.count("proof that was replaced");
            return;
        }
        let at = given.at + self.jumped;
        let age = (given.at + self.suspended - proof.real_sent).saturating_sub(self.seems_later(proof.real_sent));
        let counts_from = at.saturating_sub(age).max(proof.sent);
        let event =
            format!("    gateway process {process} gets the proof of caller {} from {}", proof.caller, proof.sent);
        let order = (order.incarnation, order.number);
        let borrowed = Borrowed::new(proof.caller, proof.scope, counts_from, order, at);
        self.record(&event);
        self.count("proof of another gateway");
        if let Some(process) = self.processes.iter_mut().find(|it| it.number == process) {
            process.property.borrowed(borrowed);
        }
    }

    /// Since when gateways have had requests, but neither they nor another one makes a call for these.
    fn find_idle(&mut self) {
        let now = self.timer_now();
        let is_called_for = |of: &Process, request: &CacheRequest| {
            self.processes.iter().filter(|process| process.number != of.number).flat_map(|it| &it.calls).any(|call| {
                let is_of_caller = call.caller == request.caller && scope_of(call.key) == scope_of(request.key);
                call.key == request.key || is_of_caller
            })
        };
        let is_idle = |process: &Process| {
            let mut waiting = process.requests.iter().filter(|(request, ..)| process.waiting.contains(&request.id));
            process.upstream.in_flight().is_empty() && waiting.any(|(request, ..)| !is_called_for(process, request))
        };
        let idle: Vec<bool> = self.processes.iter().map(is_idle).collect();
        for (process, is_idle) in self.processes.iter_mut().zip(idle) {
            process.idle_since = is_idle.then(|| process.idle_since.unwrap_or(now));
        }
    }

    /// While all is well, no two gateways call upstream for the same.
    fn check_alone(&self, gateway: GatewayId, call: &Call) -> Result<(), String> {
        let settings = &self.settings;
        let is_bounded = settings.max_flights.min(settings.max_waiters) < 100;
        let others = self.processes.iter().enumerate().filter(|(other, _)| *other != gateway);
        let is_same = |other: &Call| {
            let is_recent = call.sent - other.sent < settings.stale_if_slow;
            let is_for_key = call.is_granted && other.is_granted && call.key == other.key;
            let is_of_caller = !call.is_granted && !other.is_granted && call.caller == other.caller;
            let is_in_scope = scope_of(call.key) == scope_of(other.key);
            other.is_plain
                && is_recent
                && (is_for_key && SCOPES[scope_of(call.key)].is_shared || is_of_caller && is_in_scope)
        };
        let another = others.flat_map(|(other, it)| it.calls.iter().map(move |call| (other, call)));
        match another
            .into_iter()
            .find(|(_, other)| is_same(other))
            .filter(|_| self.is_calm && call.is_plain && !is_bounded)
        {
            Some((other, beside)) => Err(format!(
                "PROPERTY: #{} of gateway {gateway} starts a call beside #{} of gateway {other}",
                call.id, beside.id
            )),
            None => Ok(()),
        }
    }

    /// A gateway has got a record. If it may use it, that counts as upstream's response.
    fn take_over(&mut self, given: &Given) {
        let Some(key) = self.places.get(&given.place).copied() else { return };
        let at = given.at + self.jumped;
        let Some(source) = self.sources.get(&given.record) else { return };
        // In the moment in which it becomes void the order is not known.
        let is_void = self
            .told
            .iter()
            .any(|(void, selection)| selection[scope_of(source.key)] && source.sent < *void && *void < at);
        let event = format!("    gateway process {} gets {} for key {key}", given.process, source.list);
        let real_at = given.at + self.suspended;
        let age = (real_at - source.real_sent).saturating_sub(self.seems_later(source.real_sent));
        let copy = Copy {
            key: source.key,
            list: source.list.clone(),
            sent: source.sent,
            counts_from: at.saturating_sub(age).max(source.sent),
        };
        let rule = match (source.key == key, is_void) {
            (false, _) => "record of another key",
            (true, true) => "record that is void",
            (true, false) => "record of the second tier",
        };
        self.count(rule);
        self.record(&event);
        let process = self.processes.iter_mut().find(|process| process.number == given.process);
        if let Some(process) = process.filter(|_| rule == "record of the second tier") {
            process.property.copied(copy);
        }
    }

    /// Judges the calls that a gateway has started, and its responses.
    fn judge(&mut self, gateway: GatewayId) -> Result<(), String> {
        let (now, jumped, real_sent) = (self.now, self.jumped, self.real());
        let process = &mut self.processes[gateway];
        let (started, relayed) = process.upstream.take_started();
        let mut events = Vec::new();
        let mut plain = Vec::new();
        for call in started {
            events.push(format!("    #{} of gateway {gateway} starts a call", call.id));
            let UpstreamRequest { id, caller, key, .. } = call;
            let (scope, grant_ttl) = (scope_of(key), self.settings.grant_ttl);
            let is_granted = process.property.own_proof(caller, scope, grant_ttl, now).is_some();
            let is_clear = is_granted == process.property.is_proved(caller, scope, grant_ttl, now);
            let (CacheRequest { directives, .. }, ..) = process.requests[id as usize];
            let ends_soon = is_granted && process.property.ends_soon(caller, scope, now);
            let is_plain = directives == RequestDirectives::None && is_clear && !ends_soon;
            let sent = now - jumped;
            process.calls.push(Call { id, sent, real_sent, caller, key, is_plain, is_granted });
            plain.push(Call { id, sent, real_sent, caller, key, is_plain, is_granted });
            // Whether callers share a call is not judged here.
            process.property.started(call, true, true, now, &self.history)?;
        }
        for call in relayed {
            process.property.relayed(call, now, &self.history);
        }
        let mut responses = std::mem::take(&mut *process.responses.lock().unwrap());
        responses.iter_mut().for_each(|response| response.at += jumped);
        let mut checked = Ok(());
        let (mut from_tier, mut after_void) = (0, 0);
        for response in &responses {
            process.waiting.retain(|id| *id != response.request.id);
            process.listed.extend(response.list().map(|_| response.request.id));
            events.push(format!("    gateway {gateway}: {response:?}"));
            from_tier += usize::from(response.detail() == Some("fleet"));
            let is_after =
                |(at, selection): &(Ms, Selection)| *at < response.at && selection[scope_of(response.request.key)];
            after_void += usize::from(response.detail() == Some("fleet") && self.told.iter().any(is_after));
            let is_private = !SCOPES[scope_of(response.request.key)].is_shared;
            checked = checked.and_then(|()| process.property.check(response, &self.history, is_private));
        }
        events.iter().for_each(|event| self.record(event));
        for (rule, times) in
            [("hit in the second tier", from_tier), ("hit in the second tier after a purge", after_void)]
        {
            *self.tally.entry(rule).or_default() += times;
        }
        checked?;
        plain.iter().try_for_each(|call| self.check_alone(gateway, call))
    }
}
