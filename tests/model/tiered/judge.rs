//! Judges what the gateways have done since the last look: the records that they have stored and got, the calls that they
//! have started, and their responses.

use tokio::task::yield_now;

use super::super::domain::{CALLERS, Ms, SCOPES, scope_of};
use super::super::driver::TURNS;
use super::super::property::Copy;
use super::engine::{Asked, Given, Seen};
use super::process::Call;
use super::steps::{GATEWAYS, GatewayId};
use super::{Completed, Driver, LONGEST_LOOK_UP};

impl Driver {
    /// Runs all tasks until none can run, and judges what has happened.
    pub(super) async fn look(&mut self, completed: Option<Completed>) -> Result<(), String> {
        for _ in 0..TURNS {
            yield_now().await;
        }
        let Seen { asked, given, stored } = self.engine.take_seen();
        if let Some((number, place, record)) = stored.first() {
            let Some(Completed { gateway, id, source }) = completed else {
                return Err("PROPERTY: a record was stored although no call has completed".to_owned());
            };
            let is_its = stored.len() == 1 && self.processes[gateway].number == *number;
            let Some(source) = source.filter(|_| is_its) else {
                return Err(format!("PROPERTY: the response to #{id} was stored, but is not for others"));
            };
            self.count("stored in the second tier");
            if *self.places.entry(*place).or_insert(source.key) != source.key {
                return Err(format!("PROPERTY: the response to #{id} was stored under the name of another key"));
            }
            self.sources.insert(*record, source);
        }
        for asked in asked {
            self.check_look_up(&asked)?;
        }
        for given in &given {
            self.take_over(given);
        }
        for gateway in 0..GATEWAYS {
            self.judge(gateway)?;
        }
        Ok(())
    }

    /// The tier is asked for a record only for a caller with a grant.
    fn check_look_up(&mut self, asked: &Asked) -> Result<(), String> {
        let at = asked.at + self.jumped;
        let process = self.processes.iter().find(|process| process.number == asked.process);
        let (Some(process), Some(key)) = (process, self.places.get(&asked.place)) else { return Ok(()) };
        let scope = scope_of(*key);
        let is_proved = |caller| process.property.is_proved(caller, scope, self.settings.grant_ttl, at);
        match (0..CALLERS).any(is_proved) {
            true => Ok(()),
            false => Err(format!("PROPERTY: the second tier was asked for key {key}, but no caller has a grant")),
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

    /// A gateway has got a record. If it may use it, that counts as upstream's response.
    fn take_over(&mut self, given: &Given) {
        let (key, at) = (self.places[&given.place], given.at + self.jumped);
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
        for call in started {
            events.push(format!("    #{} of gateway {gateway} starts a call", call.id));
            process.calls.push(Call { id: call.id, sent: now - jumped, real_sent });
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
            after_void += usize::from(response.detail() == Some("fleet") && !self.told.is_empty());
            let is_private = !SCOPES[scope_of(response.request.key)].is_shared;
            checked = checked.and_then(|()| process.property.check(response, &self.history, is_private));
        }
        events.iter().for_each(|event| self.record(event));
        for (rule, times) in
            [("hit in the second tier", from_tier), ("hit in the second tier after a purge", after_void)]
        {
            *self.tally.entry(rule).or_default() += times;
        }
        checked
    }
}
