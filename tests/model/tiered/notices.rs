//! What gateways tell each other: what they must tell, and what another one knows when it has read that.

use std::time::Duration;

use workspace_gateway::testing::cache::second_tier::{LogReader, NoticeKind};
use workspace_gateway::testing::clock::Clock;

use super::super::domain::{Ms, RequestId, SCOPES, ScopeId, UpstreamResult, scope_of, service_of};
use super::super::property::{Denied, Property};
use super::super::scripted_upstream::UpstreamRequest;
use super::engine::Noticed;
use super::link::{Read, ReadNotice};
use super::steps::GatewayId;
use super::{Driver, SYNC, Selection};

/// What a notice says.
#[derive(Clone, Debug)]
pub(super) enum Meaning {
    Denied(Denied),
    /// A denial by something before upstream: other gateways keep their grants, and use no older proof.
    Withdrawn(Denied),
    /// What is purged, and the operation, if that is in no project alone. `None`: all operations.
    Purged(Selection, Option<Option<&'static str>>),
    Changed(ScopeId),
    Varies(&'static str),
}

impl Meaning {
    fn denied(&self) -> Option<Denied> {
        match self {
            Self::Denied(denied) | Self::Withdrawn(denied) => Some(*denied),
            Self::Purged(..) | Self::Changed(_) | Self::Varies(_) => None,
        }
    }
}

pub(super) struct Expected {
    meaning: Meaning,
    is_optional: bool,
    /// Whether the gateway knows the caller. `None` if that is not clear.
    knows_caller: Option<bool>,
}

impl Expected {
    pub(super) fn always(meaning: Meaning) -> Self {
        Self { meaning, is_optional: false, knows_caller: None }
    }
}

/// What a call that ends tells of its caller.
pub(super) fn denials(
    property: &Property,
    id: RequestId,
    result: &UpstreamResult,
    grant_ttl: Ms,
    now: Ms,
) -> Vec<Expected> {
    let UpstreamRequest { caller, key, is_unsafe, .. } = property.request_of(id);
    let Some(status) = result.denial() else { return Vec::new() };
    let is_proved = |scope| property.own_proof(caller, scope, grant_ttl, now).is_some();
    let expected = |denied, is_granted: bool| Expected {
        meaning: if result.is_of_intermediary() { Meaning::Withdrawn(denied) } else { Meaning::Denied(denied) },
        is_optional: false,
        knows_caller: is_granted.then_some(true).or(property.is_stranger(caller).then_some(false)),
    };
    let in_scope = (!is_unsafe).then(|| expected(Denied::Scope(caller, scope_of(key)), is_proved(scope_of(key))));
    let in_service = (status == 401 && result.denies_credential()).then(|| {
        let is_known = is_proved(scope_of(key));
        expected(Denied::Service(caller, service_of(key)), is_known)
    });
    in_scope.into_iter().chain(in_service).collect()
}

/// What a call that ends tells of entries. `is_voided`: by what is known of its caller, it must.
pub(super) fn entries_voided(
    request: &UpstreamRequest,
    result: &UpstreamResult,
    is_voided: bool,
    varies: bool,
) -> Option<Expected> {
    let scope = scope_of(request.key);
    let meaning = match request.is_unsafe {
        true if result.is_change() => Meaning::Changed(scope),
        false if varies || result.list(request.key, request.validator).is_some() => {
            Meaning::Varies(SCOPES[scope].operation)
        }
        _ => return None,
    };
    // The configuration says that responses of some operations belong to one caller.
    let is_optional = !is_voided || !request.is_unsafe && !SCOPES[scope].is_shared;
    Some(Expected { meaning, is_optional, knows_caller: None })
}

impl Driver {
    /// A gateway must tell this now.
    pub(super) fn expect(&mut self, gateway: GatewayId, expected: Vec<Expected>) {
        self.expected = (self.processes[gateway].number, expected);
    }

    /// Judges what gateways have told.
    pub(super) fn check_notices(&mut self, noticed: Vec<Noticed>) -> Result<(), String> {
        let (process, expected) = std::mem::take(&mut self.expected);
        let mut noticed = noticed.into_iter().peekable();
        for Expected { meaning, is_optional, knows_caller } in expected {
            let kind = if meaning.denied().is_some() { NoticeKind::Grants } else { NoticeKind::Entries };
            let Some(told) = noticed.next_if(|told| told.process == process && told.kind == kind) else {
                if is_optional {
                    continue;
                }
                return Err(format!("PROPERTY: process {process} does not tell: {meaning:?}"));
            };
            if knows_caller.is_some_and(|knows_caller| knows_caller != told.is_for_known) {
                return Err(format!("PROPERTY: process {process} tells {meaning:?}, known: {}", told.is_for_known));
            }
            self.record(&format!(
                "    process {process} tells: {meaning:?} {:?}",
                told.order.map(|order| order.number)
            ));
            self.count("notice told");
            let gateway = self.processes.iter().position(|it| it.number == process);
            if let (Some(gateway), true, Meaning::Changed(scope)) = (gateway, is_optional, &meaning) {
                let now = self.now;
                self.processes[gateway].property.told_changed(*scope, now);
                self.make_void(gateway, std::array::from_fn(|it| it == *scope));
            }
            if let (Some(gateway), Some(denied), Some(order)) = (gateway, meaning.denied(), told.order) {
                let now = self.now;
                self.processes[gateway].property.knows_void(denied, (order.incarnation, order.number), now);
            }
            self.meanings.insert(told.notice, (meaning, self.now));
        }
        match noticed.next() {
            Some(told) => Err(format!("PROPERTY: process {} tells something without a reason", told.process)),
            None => Ok(()),
        }
    }

    /// All gateways have new connections: they tell again what they know.
    pub(super) fn tell_again(&mut self) {
        for process in &mut self.processes {
            for (notice, order) in process.link.tell_again() {
                if let Some(denied) = self.meanings.get(&notice).and_then(|(meaning, _)| meaning.denied()) {
                    process.property.knows_void(denied, (order.incarnation, order.number), self.now);
                }
            }
        }
    }

    /// A gateway reads the log.
    pub(super) async fn read(&mut self, gateway: GatewayId, most: usize, again: bool) -> Result<(), String> {
        let now = self.now;
        let process = &mut self.processes[gateway];
        if again {
            process.link.read_again();
        }
        let Some(Read { notices, has_gap, is_whole }) = process.link.read(most) else { return Ok(()) };
        let mut events = Vec::new();
        for ReadNotice { notice, voids, sealed, order } in notices {
            let process = &mut self.processes[gateway];
            process
                .gateway
                .told(voids, &sealed, Duration::ZERO)
                .map_err(|_| "RULES: a notice cannot be read".to_owned())?;
            let Some((meaning, told)) = self.meanings.get(&notice).cloned() else { continue };
            events.push(format!("    gateway {gateway} reads: {meaning:?}"));
            let property = &mut process.property;
            if let Some(denied) = meaning.denied() {
                property.knows_void(denied, (order.incarnation, order.number), now);
            }
            match meaning {
                Meaning::Denied(denied) => property.told_denied(denied, now),
                Meaning::Withdrawn(_) => {}
                Meaning::Purged(selection, whole) => {
                    property.told_purged(told, now, |scope| selection[scope]);
                    whole.into_iter().for_each(|operation| property.purged_whole(operation));
                }
                Meaning::Changed(scope) => property.told_changed(scope, now),
                Meaning::Varies(operation) => property.told_varying(operation),
            }
        }
        let process = &mut self.processes[gateway];
        if has_gap {
            events.push(format!("    gateway {gateway} has missed notices"));
            process.gateway.missed();
            process.property.missed(now);
            // What is private stays so. Copies may come from the engine again, which knows what is void.
            process.property.told_purged(0, now, |_| true);
        }
        if is_whole {
            process.gateway.extend_sync(Clock::Manual(self.clock.clone()).now() + Duration::from_millis(SYNC));
            process.property.in_sync_until(now + SYNC);
        }
        let number = events.len();
        events.iter().for_each(|event| self.record(event));
        *self.tally.entry("read in the log").or_default() += number;
        *self.tally.entry("notices missed").or_default() += usize::from(has_gap);
        self.observe().await
    }
}
