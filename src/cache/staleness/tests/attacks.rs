//! What one user can do to the ttl of others.

use super::*;

/// The lists that others use, and those that only an attacker uses.
const LISTS: usize = 4;
const JUNK: usize = MAX_KEYS_OF_SCOPE - LISTS;
const HOURS: u32 = 5;

/// The looks of an attacker in a minute, at some lists: "X1".
type Attack = dyn Fn(u32) -> Vec<(usize, String)>;

/// The token that a user has in a minute.
type TokenOf = fn(u32) -> char;

/// Three callers look at four lists of a project, one each minute. Each list that has been looked at gets an answer every
/// five seconds. Returns the ttl in the end. If the attacker `is_honest`, it makes the same calls, but sees what others
/// see: so the ages of the answers are the same.
fn ttl_of_others(attack: &Attack, is_honest: bool) -> f64 {
    let mut bench = Bench::new(LISTS + JUNK);
    let mut is_known = [false; LISTS + JUNK];
    for minute in 0..HOURS * 60 {
        let second = minute * MINUTE;
        let caller = ["A", "B", "C"][minute as usize / LISTS % 3];
        let own = (minute as usize % LISTS, format!("{caller}1"));
        let calls = std::iter::once(own).chain(attack(minute));
        for ((list, look), second) in calls.zip((second..).step_by(10).map(|at| at.min(second + 10))) {
            let caller = &look[..1];
            bench.look(list, &if is_honest { format!("{caller}1") } else { look }, second);
            is_known[list] = true;
        }
        // What has not been looked at for longer than the ttl is not in memory any more.
        let is_in_memory = |list: &usize| is_known[*list] && bench.sent[*list] + 5 * MINUTE >= second;
        for list in (0..LISTS + JUNK).filter(is_in_memory) {
            (second + 20..second + MINUTE).step_by(5).for_each(|at| bench.answer(list, at..at + 1));
        }
        if minute % if minute < 60 { 4 } else { 20 } == 3 {
            bench.refresh(second + MINUTE);
            bench.ttl(0, second + MINUTE);
        }
    }
    bench.ttl(0, HOURS * HOUR)
}

/// Looks at all lists, each with a body of its own.
fn timestamps(tokens: &[&str], minute: u32) -> Vec<(usize, String)> {
    let look = |list, token: &&str| (list, format!("{token}{minute} {token}"));
    (0..LISTS).flat_map(|list| tokens.iter().map(move |token| look(list, token))).collect()
}

#[test]
fn nobody_moves_the_ttl_of_others_from_the_start_on() {
    let attacks: [(&str, &Attack); 6] = [
        ("one token", &|minute| timestamps(&["X"], minute)),
        ("two tokens", &|minute| timestamps(&["X", "Y"], minute)),
        ("two tokens with equal bodies", &|minute| {
            (0..LISTS).flat_map(|list| ["X", "Y"].map(|token| (list, format!("{token}{minute} x")))).collect()
        }),
        ("a new token each half hour", &|minute| {
            let token = char::from(b'a' + u8::try_from(minute / 30).unwrap());
            timestamps(&[&token.to_string()], minute)
        }),
        ("eight tokens in turn", &|minute| {
            let token = char::from(b'a' + u8::try_from(minute % 8).unwrap());
            timestamps(&[&token.to_string()], minute)
        }),
        ("for ten minutes", &|minute| if minute < 10 { timestamps(&["X", "Y"], minute) } else { Vec::new() }),
    ];
    for (name, attack) in attacks {
        let [honest, attacked] = [true, false].map(|is_honest| ttl_of_others(attack, is_honest));
        assert!((attacked / honest - 1.0).abs() < 0.1, "{name}: {attacked} s, not {honest} s");
    }
}

#[test]
fn lists_of_one_user_whose_bodies_always_differ_move_no_ttl() {
    let alone = ttl_of_others(&|_| Vec::new(), false);
    let tokens: [(&str, TokenOf); 5] = [
        ("one token", |_| 'X'),
        ("a token that expires", |minute| if minute < 100 { 'X' } else { 'Y' }),
        ("two tokens in turn", |minute| if minute % 2 == 0 { 'X' } else { 'Y' }),
        ("three tokens in turn", |minute| char::from(b'x' + u8::try_from(minute % 3).unwrap())),
        ("a new token each half hour", |minute| char::from(b'a' + u8::try_from(minute / 30).unwrap())),
    ];
    for ((name, token), lists) in tokens.into_iter().flat_map(|it| [(it, 1), (it, 20)]) {
        let attack = move |minute| {
            let token = token(minute);
            (LISTS..LISTS + lists).map(|list| (list, format!("{token}{minute} {list}"))).collect()
        };
        let attacked = ttl_of_others(&attack, false);
        assert!((attacked / alone - 1.0).abs() < 0.1, "{name}, {lists} lists: {attacked} s, not {alone} s");
    }
}

/// Three callers look at a list that does not change. At another list, X and Y, or A and B, always get new responses.
/// Returns what is known after two hours, and whether a caller is odd. So many answers a minute come from the latter list.
fn with_a_changing_list(callers: [&str; 2], answers: u32) -> (Answers, bool) {
    let mut bench = Bench::new(2);
    let end = 2 * HOUR;
    for minute in 0..120 {
        let second = minute * MINUTE;
        let caller = ["A", "B", "C"][minute as usize % 3];
        bench.look(0, &format!("{caller}1"), second);
        bench.answer(0, second..second + MINUTE);
        bench.look(1, &format!("{}{minute}", callers[minute as usize % 2]), second);
        bench.answer(1, second..second + answers);
    }
    let state = bench.staleness.looks.lock();
    let odd = &state.scopes.values().next().unwrap().findings.odd_callers;
    let is_odd = "ABCXY".chars().any(|name| odd.contains(caller(&name.to_string()), f64::from(end)));
    drop(state);
    (bench.answers(end), is_odd)
}

#[test]
fn a_list_that_changes_all_the_time_counts_as_left_out_and_its_callers_are_not_odd() {
    for (callers, answers, is_known) in [(["A", "B"], 60, false), (["A", "A"], 60, false), (["A", "B"], 3, true)] {
        let (answers, is_odd) = with_a_changing_list(callers, answers);
        assert_eq!((answers.stale.is_some(), is_odd), (is_known, false), "{callers:?} {answers:?}");
    }
}

#[test]
fn the_answers_of_callers_whose_bodies_always_differ_are_not_judged() {
    for callers in [["X", "X"], ["X", "Y"]] {
        let (answers, is_odd) = with_a_changing_list(callers, 60);
        let ratio = answers.stale.map(|stale| stale.ratio);
        assert!(
            ratio.is_some_and(|ratio| ratio < 0.005) && answers.answers < 3_700.0 && !is_odd,
            "{callers:?} {answers:?}"
        );
    }
}

#[test]
fn lists_that_one_caller_asks_for_once_are_no_evidence() {
    let junk = |minute| {
        let lists = (LISTS..LISTS + JUNK).filter(|_| minute == 1);
        lists.map(|list| (list, format!("X{list}"))).collect()
    };
    let [attacked, alone] = [ttl_of_others(&junk, false), ttl_of_others(&|_| Vec::new(), false)];
    assert!((attacked / alone - 1.0).abs() < 0.1, "{attacked} s, not {alone} s");
}
