//! Tells the engine what all gateways must know, a part at a time.

use tokio::time::timeout;

use super::commands::{Fault, Told, read_deleted, read_known, read_told};
use super::connection::SILENT;
use super::link::Link;
use super::notices::Numbered;
use super::{Fleet, TellResult};
use crate::cache::second_tier::{NoticeKind, Order};

/// The most hints that are told after a poll, so that they do not push other notices out of the log.
const HINTS_TO_TELL: usize = 8;
/// How many strangers are looked up at a time.
const STRANGERS: usize = 128;
/// So many notices are told before the log is read again, if that is due.
const BATCH_TO_TELL: usize = 64;

impl Fleet {
    /// Tells the engine all that it does not know yet.
    pub(super) async fn tell_all(&self, link: &Link) -> Result<(), Fault> {
        while self.tell_batch(link).await? {}
        Ok(())
    }

    /// Tells the engine a part of what it does not know yet. The rest comes after the log, if that is due: a client can cause
    /// more than the engine can be told at a time, and without the log this gateway is soon out of sync.
    pub(super) async fn tell_some(&self, link: &Link) -> Result<(), Fault> {
        if self.tell_batch(link).await? {
            self.to_tell.notify_one();
        }
        Ok(())
    }

    /// Returns whether there may be more.
    async fn tell_batch(&self, link: &Link) -> Result<bool, Fault> {
        let are_more_strangers = self.check_strangers(link).await?;
        let batch: Vec<Numbered> = {
            let mut notices = self.notices.lock();
            (0..BATCH_TO_TELL).map_while(|_| notices.begin()).collect()
        };
        let (mut failed, mut went_back) = (None, false);
        for (notice, told) in batch.iter().zip(self.tell(link, &batch).await) {
            self.notices.lock().end(told.as_ref().ok().map(|(_, order)| *order), self.machine.clock.now());
            let result = told.as_ref().map_or(TellResult::Failed, |(result, _)| *result);
            self.watcher.told(notice.notice.kind, result);
            went_back |=
                told.as_ref().is_ok_and(|(_, order)| !self.position.lock().note_incarnation(order.incarnation));
            failed = failed.or(told.err());
        }
        // On a new link, this gateway tells the engine everything again.
        if went_back {
            return Err(Fault::WentBack);
        }
        match failed {
            Some(fault) if fault.ends_link() => return Err(fault),
            // An engine without memory may have some later. The gateway tells it again after the next poll.
            Some(_) => return Ok(false),
            None => {}
        }
        if self.to_tell() == 0 {
            self.all_told.notify_waiters();
        }
        Ok(are_more_strangers || batch.len() == BATCH_TO_TELL)
    }

    /// Hints may be lost, so they are not told again.
    pub(super) async fn tell_hints(&self, link: &Link) -> Result<(), Fault> {
        let hints: Vec<Numbered> = {
            let mut notices = self.notices.lock();
            (0..HINTS_TO_TELL).map_while(|_| notices.next_hint()).collect()
        };
        for told in self.tell(link, &hints).await {
            let result = match told {
                Ok((result, _)) => result,
                Err(fault) if fault.ends_link() => return Err(fault),
                Err(_) => TellResult::Failed,
            };
            self.watcher.told(NoticeKind::Hint, result);
        }
        Ok(())
    }

    /// Tells the engine these notices, all of them at once. Returns a result for each of them.
    async fn tell(&self, link: &Link, notices: &[Numbered]) -> Vec<Result<(TellResult, Order), Fault>> {
        if notices.is_empty() {
            return Vec::new();
        }
        let mut commands = redis::pipe();
        for Numbered { notice, id, .. } in notices {
            let incarnation = self.next().incarnation;
            let told = Told { voids: notice.voids, id, sealed: &notice.sealed, incarnation };
            commands.add_command(self.keys.tell(told));
        }
        let replies = match timeout(SILENT, link.writes.send_all(&commands)).await.unwrap_or(Err(Fault::Silent)) {
            Ok(replies) if replies.len() == notices.len() => replies,
            Ok(_) => return vec![Err(Fault::Reply); notices.len()],
            Err(fault) => return vec![Err(fault); notices.len()],
        };
        let mut results = Vec::with_capacity(notices.len());
        for (notice, reply) in notices.iter().zip(&replies) {
            results.push(match read_told(reply) {
                Ok((true, order)) => Ok((TellResult::Told, order)),
                Ok((false, order)) => Ok((TellResult::Known, order)),
                // Everything becomes void, which needs no memory. Only a purge, or a write of a caller with a grant, causes
                // this. The other gateways have not read it, so it is told later, too.
                Err(fault @ (Fault::Full | Fault::Error)) if notice.is_new_of(NoticeKind::Entries) => {
                    let deleted = link.writes.send(&self.keys.void_without_memory()).await;
                    Err(deleted.and_then(|reply| read_deleted(&reply)).err().unwrap_or(fault))
                }
                Err(fault) => Err(fault),
            });
        }
        results
    }

    /// Finds out which denied callers other gateways know. The denial of one that nobody knows is told to nobody: there can be
    /// thousands of them in a second. Returns whether there are more of them.
    async fn check_strangers(&self, link: &Link) -> Result<bool, Fault> {
        let strangers = self.notices.lock().strangers(STRANGERS);
        if strangers.is_empty() {
            return Ok(false);
        }
        let names = strangers.iter().flat_map(|stranger| &stranger.notice.if_known);
        let replies = timeout(SILENT, link.writes.send_all(&self.keys.are_known(names))).await;
        let names_known = read_known(&replies.unwrap_or(Err(Fault::Silent))?, self.holder())?;
        // A key with a value that is none of ours. If in doubt, a gateway knows the caller.
        let is_known = |known: Result<bool, Fault>| {
            known.unwrap_or_else(|fault| {
                self.watcher.faulted(fault);
                true
            })
        };
        let mut names_known = names_known.into_iter().map(is_known);
        let are_known: Vec<bool> = strangers
            .iter()
            .map(|stranger| names_known.by_ref().take(stranger.notice.if_known.len()).fold(false, |any, one| any | one))
            .collect();
        self.notices.lock().checked(&strangers, &are_known);
        are_known.iter().filter(|is_known| !**is_known).for_each(|_| {
            self.watcher.told(NoticeKind::Grants, TellResult::Stranger);
        });
        Ok(strangers.len() == STRANGERS)
    }
}
