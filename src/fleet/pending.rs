//! What has become void, and whether the engine knows. Pure.

use std::time::{Duration, Instant};

use crate::cache::second_tier::{Place, Voided};

/// The most that is kept. With more, everything becomes void.
const MAX_KEPT: usize = 256;

/// What has become void and was not told to the engine yet, and what it was told in the last time. The engine may have
/// lost that: a replica that was behind becomes the master, or a backup is restored. So each new link is told it again.
#[derive(Default)]
pub(super) struct Pending {
    queue: Vec<Voided>,
    /// The one that is being told. If the same becomes void meanwhile, that is told, too.
    telling: Option<Voided>,
    told: Vec<(Voided, Instant)>,
}

impl Pending {
    /// Whether the engine knows all.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How much the engine does not know yet.
    pub(super) fn len(&self) -> usize {
        self.queue.len() + usize::from(self.telling.is_some())
    }

    /// Whether the engine may not know yet that a record of this place is void.
    pub(super) fn concerns(&self, place: &Place) -> bool {
        self.queue.iter().chain(&self.telling).any(|voided| match voided {
            Voided::Everything => true,
            Voided::Set(name) => place.sets.contains(name),
        })
    }

    pub(super) fn add(&mut self, voided: Voided) {
        if voided == Voided::Everything || self.queue.len() >= MAX_KEPT {
            self.queue = vec![Voided::Everything];
        } else if !self.queue.contains(&voided) && !self.queue.contains(&Voided::Everything) {
            self.queue.push(voided);
        }
    }

    /// The next one to tell. [`Self::end`] must follow.
    pub(super) fn begin(&mut self) -> Option<Voided> {
        self.telling = self.queue.pop();
        self.telling
    }

    pub(super) fn end(&mut self, voided: Voided, is_told: bool, now: Instant) {
        self.telling = None;
        if !is_told {
            return self.add(voided);
        }
        self.told.retain(|(told, _)| *told != voided && voided != Voided::Everything);
        self.told.push((voided, now));
        if self.told.len() > MAX_KEPT {
            self.told = vec![(Voided::Everything, now)];
        }
    }

    /// There is a new link: what was told within `lifetime` is told again.
    pub(super) fn tell_again(&mut self, lifetime: Duration, now: Instant) {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < lifetime;
        for (voided, _) in std::mem::take(&mut self.told).into_iter().filter(|(_, at)| is_recent(at)) {
            self.add(voided);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);

    fn set(number: u8) -> Voided {
        Voided::Set([number; 16])
    }

    #[test]
    fn what_becomes_void_while_it_is_told_is_told_again() {
        let (mut pending, now) = (Pending::default(), Clock::System.now());
        pending.add(set(1));
        assert_eq!((pending.begin(), pending.len()), (Some(set(1)), 1));
        pending.add(set(1));
        pending.end(set(1), true, now);
        assert_eq!((pending.len(), pending.begin()), (1, Some(set(1))));
        pending.end(set(1), false, now);
        assert_eq!((pending.len(), pending.begin()), (1, Some(set(1))));
        pending.end(set(1), true, now);
        assert!(pending.is_empty());
    }

    #[test]
    fn only_places_of_what_is_pending_are_concerned() {
        let place = |number: u8| Place { record: [0; 16], sets: [[9; 16], [8; 16], [number; 16]] };
        let (mut pending, now) = (Pending::default(), Clock::System.now());
        pending.add(set(1));
        assert!(pending.concerns(&place(1)) && !pending.concerns(&place(2)));
        pending.begin();
        assert!(pending.concerns(&place(1)) && !pending.concerns(&place(2)));
        pending.end(set(1), true, now);
        assert!(!pending.concerns(&place(1)));
        pending.add(Voided::Everything);
        assert!(pending.concerns(&place(2)));
    }

    #[test]
    fn a_new_link_is_told_again_what_may_matter_still() {
        let (mut pending, begun) = (Pending::default(), Clock::System.now());
        for (number, second) in [(1, 0), (2, 5)] {
            pending.add(set(number));
            let voided = pending.begin().unwrap();
            pending.end(voided, true, begun + second * SECOND);
        }
        pending.tell_again(10 * SECOND, begun + 12 * SECOND);
        assert_eq!((pending.begin(), pending.begin()), (Some(set(2)), None));
    }

    #[test]
    fn too_much_is_everything() {
        let numbered = |number: usize| {
            let mut name = [0; 16];
            name[..2].copy_from_slice(&u16::try_from(number).unwrap().to_le_bytes());
            Voided::Set(name)
        };
        let (mut pending, now) = (Pending::default(), Clock::System.now());
        for number in 0..=MAX_KEPT {
            pending.add(numbered(number));
            let voided = pending.begin().unwrap();
            pending.end(voided, true, now);
            assert!(pending.told.len() <= MAX_KEPT);
        }
        pending.tell_again(SECOND, now);
        assert_eq!((pending.begin(), pending.begin()), (Some(Voided::Everything), None));
        (0..=MAX_KEPT).for_each(|number| pending.add(numbered(number)));
        assert_eq!((pending.begin(), pending.begin()), (Some(Voided::Everything), None));
        pending.add(Voided::Everything);
        pending.add(set(1));
        assert_eq!(pending.len(), 1);
    }
}
