//! Applies what other gateways have told. Here it has the effect that it had there, except that nobody is told.

use std::time::Duration;

use bytes::Bytes;

use super::Gateway;
use super::message::{Message, decode};
use super::tier::service_name;
use crate::cache::grants::CallerScope;
use crate::cache::second_tier::{LogReader, Name, Unread};
use crate::catalogue::Service;
use crate::request::caller::Caller;

impl LogReader for Gateway {
    fn told(&self, voids: Option<Name>, sealed: &Bytes, age: Duration) -> Result<(), Unread> {
        let Some(tier) = &self.memory.second_tier else { return Ok(()) };
        let mut sealed = sealed.to_vec();
        let content = tier.names.open_notice(voids, &mut sealed).map_err(|_| Unread)?;
        let message = decode(content).ok_or(Unread)?;
        self.apply(message, age);
        Ok(())
    }

    fn missed(&self) {
        self.void_entries();
        // Otherwise denials are not told, so none of them was missed.
        if self.memory.second_tier.as_ref().is_some_and(|tier| tier.shares_grants) {
            self.memory.grants.lapse_all(self.clock.now());
        }
    }
}

impl Gateway {
    fn apply(&self, message: Message<'_>, age: Duration) {
        let (memory, now) = (&self.memory, self.clock.now());
        let active = self.active();
        let catalogue = active.catalogue();
        match message {
            Message::EngineVoid => {}
            Message::AllGrants => memory.grants.lapse_all(now),
            Message::AllEntries => self.void_entries(),
            // What this gateway has in scopes that mean something else, is something else.
            Message::Denied { caller, scope } => {
                if let Some(scope) = scope.scope(catalogue) {
                    memory.grants.told_denied(&CallerScope { caller: Caller::from_sealed(caller), scope }, now);
                }
            }
            Message::Refused { caller, service } => {
                let caller = Caller::from_sealed(caller);
                let is_named = |known: &Service| service_name(*known, catalogue.origin(*known)) == service;
                if let Some(service) = catalogue.services().find(is_named) {
                    memory.grants.told_refused(caller, service, now);
                    memory.known_callers.refused(&caller);
                }
            }
            Message::Purged(selection) => {
                self.purge_here(&selection.into());
            }
            Message::Invalidated(scope) => {
                if let Some(scope) = scope.scope(catalogue) {
                    memory.store.invalidate(&scope, now);
                }
            }
            Message::Hint(hint) => self.take_hint(&hint, age),
            Message::Private(name) => {
                if let Some(name) = name.private(catalogue) {
                    memory.store.told_private(&name);
                }
            }
        }
    }
}
