//! Which differences count as changes, and which callers are odd.

use super::*;

#[test]
fn a_difference_counts_when_a_second_look_confirms_it() {
    for (looks, is_change) in [
        ("A1 B1 A2 A2", true),
        ("A1 B1 A2 B3", false),
        ("A1 B1 A2", false),
        ("A1 B1 C2 C2", false),
        ("A1 B1 C2 C2 C3 C3", true),
        ("A1 B1 A2 B2", true),
        ("A1 B1 C2 D2 A1 C2 D2", false),
    ] {
        let mut bench = Bench::new(1);
        bench.looks(looks);
        let state = bench.staleness.looks.lock();
        let key = state.scopes.values().next().unwrap().keys.values().next().unwrap();
        let changes = key.spans(false).iter().filter(|span| matches!(span, history::Span::Changed { .. })).count();
        assert_eq!(changes > 0, is_change, "{looks}");
    }
}

#[test]
fn a_digest_that_returns_retracts_what_was_between() {
    // A limited view, once and several times in a row; a timestamp; and one caller that sees an odd body once.
    for between in ["C9", "C9 C9", "C8 B1 C9", "B9"] {
        let mut bench = Bench::new(1);
        let end = bench.looks(&format!("{CALM} {between} A1"));
        let [wrong, lower, upper] = bench.wrong(end);
        assert!(wrong < 5.0 && lower == 0.0 && upper < 30.0, "{between}: {wrong} {upper}");
    }
}

#[test]
fn an_odd_caller_does_not_hide_or_add_changes() {
    for odd in [["C9", "C9"], ["C8", "C9"], ["C7", "C2"]] {
        let mut bench = Bench::new(1);
        let end = bench.looks(&format!("{CALM} C4 A1 C5 A1 {} A2 {} B2", odd[0], odd[1]));
        let [wrong, _, upper] = bench.wrong(end);
        assert!(wrong > 20.0 && wrong < 130.0 && upper < 140.0, "{odd:?}: {wrong} {upper}");
        let runs = bench.staleness.looks.lock().runs;
        assert_eq!(runs, 2, "{odd:?}");
    }
}

/// Which of these callers are odd after some looks at the first list.
fn odd_callers_of(looks: &str) -> String {
    let mut bench = Bench::new(1);
    let end = f64::from(bench.looks(looks));
    let state = bench.staleness.looks.lock();
    let odd = &state.scopes.values().next().unwrap().findings.odd_callers;
    "ABCXY".chars().filter(|name| odd.contains(caller(&name.to_string()), end)).collect()
}

#[test]
fn a_caller_is_odd_if_its_digests_never_return_while_those_of_others_do() {
    for (looks, odd) in [
        ("A1 X2 A1 X3 A1 X4", "X"),
        ("A1 X2 Y3 X4 Y5 A1 X6 Y7 A1 X8 Y9", "XY"),
        ("A1 X2 Y2 A1 X3 Y3 A1 X4 Y4", "XY"),
        ("A1 B1 X2 A1 B1 X3 A1 X4", "X"),
        // Eight tokens of one user.
        ("A1 X20 a21 b22 c23 d24 e25 f26 g27 A1 X30 a31 b32 c33 d34 e35 f36 g37 A1 X40 a41", "X"),
        // Limited views.
        ("A1 X9 A1 X9 A1 X9 A2 X9 A2 X9", ""),
        ("X9 A1 X9 A1 X9 A2 X9 A2 X9 A3 X9 A3", ""),
        ("A1 X9 Y9 A1 X9 Y9 A2 X9 Y9 A2 X9 Y9", ""),
        // Changes.
        ("A1 B1 A2 B3 A4 B5 A6 B7", ""),
        ("A1 A2 A1 A2 A1 A2 A1 A3", ""),
        ("A1 B1 A2 B2 A1 B1 A2 B2 A1 B1 A3 B3", ""),
    ] {
        assert_eq!(odd_callers_of(looks), odd, "{looks}");
    }
}

#[test]
fn a_user_with_two_tokens_whose_bodies_always_differ_moves_nothing() {
    // One other caller only. The bodies of both tokens may even be equal.
    for attack in ["X{}1 Y{}2 X{}3 Y{}4", "X{}1 Y{}1 X{}2 Y{}2"] {
        let mut looks = String::from("A1 A1 A1 A1 A1 A1");
        for round in 10..30 {
            looks += &format!(" {} A1", attack.replace("{}", &round.to_string()));
        }
        let mut bench = Bench::new(1);
        let end = bench.looks(&looks);
        let [wrong, _, upper] = bench.wrong(end);
        assert!(wrong < 10.0 && upper < 60.0, "{attack}: {wrong} {upper}");
        // A change that the others see still counts.
        let end = bench.looks(&format!("{looks} A2 B2"));
        let [wrong, lower, _] = bench.wrong(end);
        assert!(wrong > 10.0 && lower < 35.0, "{attack}: {wrong} {lower}");
    }
}

#[test]
fn two_views_of_a_list_are_no_changes() {
    let views = [
        format!("C9 {CALM} C9 A1 B1 C9 A1 B1 C9 A1 B1 C9 A1 B1"),
        format!("{CALM} C9 A1 C9 B1 C9 A1 C9 B1 C9 A1 C9"),
        "A1 C9 D9 ".repeat(40),
    ];
    for looks in &views {
        let mut bench = Bench::new(1);
        let end = bench.looks(looks.trim());
        let [wrong, lower, upper] = bench.wrong(end);
        assert!(wrong < 15.0 && lower == 0.0 && upper < 70.0, "{looks}: {wrong} {lower} {upper}");
    }
}

#[test]
fn a_look_that_arrives_after_a_later_one_is_ignored() {
    for late in ["A1", "B2", "C3"] {
        let mut bench = Bench::new(1);
        let end = bench.looks(&format!("{CALM} A2 B2"));
        let before = bench.answers(end);
        let (counters, sent) = (Arc::clone(&bench.counters[0]), bench.sent[0]);
        bench.look(0, late, end - MINUTE - MINUTE / 2);
        (bench.counters[0], bench.sent[0]) = (counters, sent);
        assert_eq!(bench.answers(end + 1).stale, before.stale, "{late}");
        bench.look(0, "A3", end + MINUTE);
        bench.look(0, "B3", end + 2 * MINUTE);
        assert!(bench.answers(end + 2 * MINUTE).stale.is_some(), "{late}");
    }
}

#[test]
fn a_response_that_takes_longer_than_the_time_to_the_next_one_is_no_span() {
    let mut bench = Bench::new(2);
    bench.looks(CALM);
    for (version, second) in (2..40).zip((21 * MINUTE..).step_by(20)) {
        let body = format!("A{version}");
        let digest = *blake3::hash(body.as_bytes()).as_bytes();
        let (sent, received) = (bench.at(second), bench.at(second + 50));
        let observation = Observation { digest, caller: caller(["A", "B"][version % 2]), sent, received };
        for key in &bench.keys {
            bench.staleness.look(key, &observation, Arc::default());
        }
    }
    bench.answers(40 * MINUTE);
}

#[test]
fn a_private_list_that_always_differs_moves_nothing() {
    let run = |with_timestamps: bool| {
        let mut bench = Bench::new(2);
        let private = |key: &CacheKey, owner| CacheKey { owner: Some(caller(owner)), key: Arc::clone(&key.key) };
        bench.keys = vec![private(&bench.keys[0], "B"), private(&bench.keys[1], "A")];
        for minute in 0..300 {
            bench.look(0, &format!("B{}", minute / 100), minute * MINUTE);
            bench.answer(0, minute * MINUTE..minute * MINUTE + MINUTE);
            if with_timestamps {
                bench.look(1, &format!("A{}", 1000 + minute), minute * MINUTE);
                bench.answer(1, minute * MINUTE..minute * MINUTE + MINUTE);
            }
        }
        (bench.answers(300 * MINUTE), bench.ttl(0, 300 * MINUTE))
    };
    let (known, ttl) = run(false);
    assert!(known.stale.is_some());
    assert_eq!(run(true), (known, ttl));
}
