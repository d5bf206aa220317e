//! What is told, when, and what a look-up may still use.

use super::*;
use crate::clock::Clock;

const SECOND: Duration = Duration::from_secs(1);

fn set(number: u16) -> Name {
    let mut name = [7; 16];
    name[..2].copy_from_slice(&number.to_le_bytes());
    name
}

/// A notice about a set; others have other versions.
fn notice(number: u16, version: u8) -> Notice {
    let sealed = Bytes::copy_from_slice(&[&set(number)[..], &[version]].concat());
    Notice { voids: Some(set(number)), kind: NoticeKind::Entries, sealed, if_known: Box::default() }
}

fn place(number: u16) -> Place {
    Place { record: [0; 16], sets: Box::new([[9; 16], set(number)]) }
}

fn order(number: u64) -> Option<Order> {
    Some(Order { incarnation: [1; 16], number })
}

/// Its notices about everything are about the sets 1,000 and 1,001.
fn notices() -> Notices {
    Notices::new(Box::new(|kind, extent| Notice {
        kind,
        ..notice(1_000 + u16::from(kind == NoticeKind::Grants), u8::from(extent == Extent::Engine))
    }))
}

/// The sets that are told now, in their order, at these tickets.
fn tell(notices: &mut Notices, mut ticket: u64, now: Instant) -> Vec<Name> {
    let mut told = Vec::new();
    while let Some(notice) = notices.begin() {
        told.extend(notice.notice.voids);
        notices.end(order(ticket), now);
        ticket += 1;
    }
    told
}

#[test]
fn a_log_that_is_read_again_has_nothing_new() {
    let (mut notices, now) = (notices(), Clock::System.now());
    // Two about the set of each.
    assert!(notices.learn(&read(1, 0, 1), now) && notices.learn(&read(1, 1, 2), now));
    for version in 0..2 {
        notices.add(notice(2, version));
        tell(&mut notices, 3 + u64::from(version), now);
    }
    for entry in [read(1, 0, 1), read(1, 1, 2), read(2, 0, 3), read(2, 1, 4)] {
        assert!(!notices.learn(&entry, now), "{entry:?}");
    }
    // Another one is told again, at a later place.
    assert!(!notices.learn(&read(1, 1, 9), now) && notices.learn(&read(1, 2, 10), now));
}

fn read(number: u16, version: u8, ticket: u64) -> LogEntry {
    let Notice { voids, sealed, .. } = notice(number, version);
    LogEntry { incarnation: [1; 16], number: 1, ticket, voids, sealed, told_at: Duration::ZERO }
}

#[test]
fn what_becomes_void_while_it_is_told_is_told_again() {
    let (mut notices, now) = (notices(), Clock::System.now());
    notices.add(notice(1, 0));
    assert_eq!((notices.begin().unwrap().notice, notices.len()), (notice(1, 0), 1));
    notices.add(notice(1, 1));
    notices.end(order(1), now);
    assert_eq!((notices.len(), notices.begin().unwrap().notice), (1, notice(1, 1)));
    notices.end(None, now);
    assert_eq!((notices.len(), notices.begin().unwrap().notice), (1, notice(1, 1)));
    notices.end(order(2), now);
    assert_eq!(notices.len(), 0);
}

#[test]
fn only_places_of_what_is_not_told_are_concerned() {
    let (mut notices, now) = (notices(), Clock::System.now());
    notices.add(notice(1, 0));
    assert!(notices.concerns(&place(1)) && !notices.concerns(&place(2)));
    notices.begin();
    assert!(notices.concerns(&place(1)) && !notices.concerns(&place(2)));
    notices.end(None, now);
    assert!(notices.concerns(&place(1)));
    notices.begin();
    notices.end(order(1), now);
    assert!(!notices.concerns(&place(1)));
}

#[test]
fn a_record_is_current_if_nothing_known_voids_it_and_nothing_has_come_since() {
    let (mut notices, now) = (notices(), Clock::System.now());
    let is_current = |notices: &Notices, number, as_of| notices.is_current(&place(1), order(number).unwrap(), as_of);
    let before = notices.serial();
    assert!(is_current(&notices, 1, before));
    notices.add(notice(1, 0));
    assert!(!is_current(&notices, 9, notices.serial()), "it is not told yet");
    tell(&mut notices, 5, now);
    let after = notices.serial();
    assert!(!is_current(&notices, 9, before), "it has come since");
    assert!(is_current(&notices, 6, after) && !is_current(&notices, 5, after));
    assert!(notices.learn(&read(1, 1, 8), now));
    assert!(!is_current(&notices, 9, after), "another gateway's has come since");
    assert!(is_current(&notices, 9, notices.serial()) && !is_current(&notices, 8, notices.serial()));
    let other = Order { incarnation: [2; 16], number: 1 };
    assert!(notices.is_current(&place(1), other, notices.serial()), "tickets of another incarnation say nothing");
    let before = notices.serial();
    notices.lose();
    assert!(!notices.is_current(&place(2), order(9).unwrap(), before));
    assert!(notices.is_current(&place(2), order(9).unwrap(), notices.serial()));
}

#[test]
fn own_notices_and_those_that_have_been_read_are_not_new() {
    let (mut notices, now) = (notices(), Clock::System.now());
    notices.add(notice(1, 0));
    notices.begin();
    assert!(!notices.learn(&read(1, 0, 1), now), "the reply to its telling comes later");
    notices.end(order(1), now);
    assert!(!notices.learn(&read(1, 0, 1), now));
    assert!(notices.learn(&read(1, 1, 2), now) && !notices.learn(&read(1, 1, 2), now));
    let hint = Notice { voids: None, kind: NoticeKind::Hint, ..notice(2, 0) };
    notices.add(hint.clone());
    assert_eq!(notices.next_hint().unwrap().notice, hint);
    assert!(!notices.learn(&LogEntry { voids: None, ..read(2, 0, 0) }, now));
    assert!(notices.learn(&LogEntry { voids: None, ..read(2, 1, 0) }, now));
}

#[test]
fn a_new_link_is_told_again_what_may_matter_still_whoever_has_told_it() {
    let (mut notices, begun) = (notices(), Clock::System.now());
    for (number, second) in [(1, 0), (2, 5)] {
        notices.add(notice(number, 0));
        tell(&mut notices, 1, begun + second * SECOND);
    }
    notices.learn(&read(3, 0, 4), begun + 6 * SECOND);
    notices.tell_again(10 * SECOND, begun + 12 * SECOND);
    assert_eq!(tell(&mut notices, 5, begun), [set(2), set(3)]);
}

#[test]
fn each_notice_about_a_set_is_told_again() {
    // A master that was behind may have either of them, and not the other one.
    let (mut notices, now) = (notices(), Clock::System.now());
    notices.add(notice(1, 0));
    tell(&mut notices, 1, now);
    notices.learn(&read(1, 1, 2), now + SECOND);
    notices.tell_again(10 * SECOND, now + SECOND);
    let (first, second) = (notices.begin(), {
        notices.end(order(3), now);
        notices.begin()
    });
    assert_eq!(
        [first, second].map(|told| told.unwrap().notice.sealed),
        [notice(1, 0), notice(1, 1)].map(|it| it.sealed)
    );
    notices.end(order(4), now);
    // With more of them than are kept, the engine is voided.
    (2..=5).for_each(|version| assert!(notices.learn(&read(1, version, 5), now)));
    notices.tell_again(10 * SECOND, now);
    assert_eq!(tell(&mut notices, 6, now), [set(1), set(1), set(1), set(1), set(1_000), set(1_001)]);
}

#[test]
fn strangers_are_told_of_only_if_some_gateway_knows_them() {
    let (mut notices, now) = (notices(), Clock::System.now());
    let stranger = |number| Notice { if_known: Box::new([set(number)]), kind: NoticeKind::Grants, ..notice(number, 0) };
    [1, 2, 3].into_iter().for_each(|number| assert!(!notices.add(stranger(number))));
    assert_eq!(notices.len(), 3);
    assert!(notices.concerns(&place(2)), "a look-up could find a proof from before");
    let checked = notices.strangers(2);
    notices.checked(&checked, &[false, true]);
    assert!(!notices.concerns(&place(1)) && notices.concerns(&place(2)) && notices.concerns(&place(3)));
    assert_eq!(tell(&mut notices, 1, now), [set(2)]);
    assert_eq!(notices.strangers(9).len(), 1);
}

#[test]
fn too_many_notices_become_one_about_everything_of_their_kind() {
    let (mut notices, now) = (notices(), Clock::System.now());
    let grants = |number| Notice { kind: NoticeKind::Grants, ..notice(number, 0) };
    let most = u16::try_from(MAX_KEPT).unwrap();
    notices.add(notice(60_000, 0));
    (1..=most).for_each(|number| assert!(!notices.add(grants(2_000 + number))));
    assert_eq!(notices.len(), MAX_KEPT + 1);
    notices.add(grants(1));
    assert_eq!(notices.len(), 2);
    assert!(notices.concerns(&place(60_000)) && notices.concerns(&place(1_001)) && !notices.concerns(&place(2_001)));
    assert_eq!(tell(&mut notices, 1, now), [set(60_000), set(1_001)]);
}

#[test]
fn if_not_all_that_was_told_is_known_the_engine_is_voided_on_a_new_link() {
    let (mut notices, now) = (notices(), Clock::System.now());
    for number in 0..=u16::try_from(MAX_KEPT).unwrap() {
        notices.learn(&read(2_000 + number, 0, 1), now + Duration::from_millis(number.into()));
    }
    notices.tell_again(60 * SECOND, now + SECOND);
    let told = tell(&mut notices, 1, now);
    assert_eq!(told.len(), MAX_KEPT + 2);
    assert!(!told.contains(&set(2_000)) && told.ends_with(&[set(1_000), set(1_001)]));
}

#[test]
fn a_notice_that_was_not_told_is_kept_beside_an_older_one_that_is_told_again() {
    let (mut notices, now) = (notices(), Clock::System.now());
    notices.add(notice(1, 0));
    tell(&mut notices, 1, now);
    notices.add(notice(1, 1));
    for _ in 0..3 {
        // Each link fails.
        notices.tell_again(10 * SECOND, now);
        assert_eq!((notices.len(), notices.begin().unwrap().notice), (2, notice(1, 1)));
        notices.end(None, now);
    }
    assert_eq!(tell(&mut notices, 2, now), [set(1), set(1)]);
}

#[test]
fn strangers_that_some_gateway_knows_are_bounded_too() {
    let (mut notices, now) = (notices(), Clock::System.now());
    let stranger = |number| Notice { if_known: Box::new([set(number)]), kind: NoticeKind::Grants, ..notice(number, 0) };
    let most = u16::try_from(MAX_KEPT).unwrap();
    (0..=most).for_each(|number| assert_eq!(notices.add(stranger(2_000 + number)), number == most, "{number}"));
    for _ in 0..2 {
        let strangers = notices.strangers(MAX_KEPT);
        notices.checked(&strangers, &vec![true; strangers.len()]);
        notices.add(stranger(1));
    }
    assert_eq!(notices.len(), 2, "one about everything, and one that is not checked");
    assert_eq!(tell(&mut notices, 1, now), [set(1_001)]);
}
