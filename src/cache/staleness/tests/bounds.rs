//! The bounds of the looks that are kept.

use super::*;

#[test]
fn the_key_with_the_fewest_answers_makes_room() {
    let mut bench = Bench::new(3 * MAX_KEYS_OF_SCOPE);
    for list in 0..10 {
        bench.look(list, "A1", 0);
        bench.answer(list, 0..20);
    }
    // Many other lists, each asked for once or twice.
    for list in 10..bench.keys.len() {
        let second = u32::try_from(list).unwrap();
        bench.look(list, "A1", second);
        bench.answer(list, second..second + 2);
    }
    let state = bench.staleness.looks.lock();
    let keys = &state.scopes.values().next().unwrap().keys;
    assert_eq!((keys.len(), state.keys, state.runs), (MAX_KEYS_OF_SCOPE, MAX_KEYS_OF_SCOPE, MAX_KEYS_OF_SCOPE));
    assert!(bench.keys[..10].iter().chain(bench.keys.last()).all(|key| keys.contains_key(key)));
}

#[test]
fn the_memory_is_bounded() {
    let mut bench = Bench::new(MAX_KEYS_OF_SCOPE + 10);
    for version in 0..2 * MAX_RUNS {
        for list in 0..bench.keys.len() {
            let second = u32::try_from(version).unwrap() * 10;
            bench.look(list, &format!("A{version}"), second);
            if list < MAX_KEYS_OF_SCOPE - 1 {
                bench.answer(list, second..second + 5);
            }
        }
    }
    let state = bench.staleness.looks.lock();
    assert_eq!(state.keys, MAX_KEYS_OF_SCOPE);
    assert_eq!(state.runs, MAX_RUNS * (MAX_KEYS_OF_SCOPE - 1) + 1);
    drop(state);
    // After a while without looks, other keys get their place.
    let other = bench.keys.len() - 2;
    bench.look(other, "A1", 10 * HOUR);
    let state = bench.staleness.looks.lock();
    assert_eq!((state.keys, state.runs), (1, 1));
}

#[test]
fn answers_of_which_looks_were_dropped_are_not_judged() {
    let mut bench = Bench::new(1);
    let mut looks = String::from("A0");
    (1..70).for_each(|version| looks += &format!(" B{version} A{version}"));
    // A look a minute with a change every two minutes fills the runs in more than two hours; twice as many do not fit.
    let end = bench.looks(&looks);
    assert!((bench.answers(end).answers - 3600.0).abs() <= 60.0, "{:?}", bench.answers(end));
    let mut looks = String::from("A0");
    (1..200).for_each(|version| looks += &format!(" {}{version}", ['A', 'B'][version % 2]));
    let mut bench = Bench::new(1);
    let mut second = 0;
    for look in looks.split(' ') {
        bench.look(0, look, second);
        bench.answer(0, second..second + 20);
        second += 20;
    }
    let answers = bench.answers(second).answers;
    assert!(answers < 22.0 * 60.0 && answers > 20.0 * 60.0, "{answers}");
}

#[test]
fn a_large_key_is_not_measured_and_takes_no_memory() {
    let mut bench = Bench::new(0);
    let (small, large) = (bench.add_list("p", &"x".repeat(200)), bench.add_list("p", &"x".repeat(2_000)));
    for (list, keys) in [(large, 0), (small, 1)] {
        bench.look(list, "A1", 1);
        assert_eq!(bench.staleness.looks.lock().keys, keys);
    }
}

#[test]
fn the_least_active_scope_makes_room_for_another() {
    let mut bench = Bench::new(0);
    for project in 0..=MAX_SCOPES {
        let list = bench.add_list(&format!("p{project}"), "1");
        bench.look(list, "A1", 1);
        let answers = if project == 7 { 1 } else { 20 };
        bench.answer(list, 1..1 + answers);
    }
    let state = bench.staleness.looks.lock();
    let is_kept = |list: usize| state.scopes.contains_key(bench.keys[list].key.scope());
    assert_eq!((state.scopes.len(), state.keys, state.runs), (MAX_SCOPES, MAX_SCOPES, MAX_SCOPES));
    assert!(!is_kept(7) && is_kept(0) && is_kept(MAX_SCOPES));
}

#[test]
fn a_scope_with_many_keys_takes_no_place_from_others() {
    let mut bench = Bench::new(0);
    // The keys of these scopes are all that may be kept.
    for project in 0..MAX_KEYS / MAX_KEYS_OF_SCOPE {
        for key in 0..MAX_KEYS_OF_SCOPE {
            let list = bench.add_list(&format!("p{project}"), &key.to_string());
            bench.look(list, "A1", 1);
            bench.answer(list, 1..20);
        }
    }
    let other = bench.add_list("other", "1");
    (0..5).for_each(|look| bench.look(other, "A1", look));
    let state = bench.staleness.looks.lock();
    assert_eq!(state.keys, MAX_KEYS);
    assert_eq!(state.scopes[bench.keys[other].key.scope()].keys.len(), 1);
}

#[test]
fn a_scope_with_many_runs_shortens_no_history_of_others() {
    let mut bench = Bench::new(0);
    let own = bench.add_list("own", "1");
    let others: Vec<_> = (0..2 * MAX_KEYS_OF_SCOPE)
        .map(|key| bench.add_list(["p0", "p1"][key / MAX_KEYS_OF_SCOPE], &key.to_string()))
        .collect();
    for version in 0..u32::try_from(MAX_RUNS + 8).unwrap() {
        for list in others.iter().flat_map(|other| [other, &own]) {
            bench.look(*list, &format!("A{version}"), version);
        }
    }
    let state = bench.staleness.looks.lock();
    assert!(state.runs <= MANY_RUNS + MAX_RUNS, "{}", state.runs);
    let runs = |list: usize| state.scopes[bench.keys[list].key.scope()].keys[&bench.keys[list]].runs.len();
    assert!(runs(own) == MAX_RUNS && others.iter().any(|other| runs(*other) < MAX_RUNS));
}

#[test]
fn the_looks_at_shared_lists_of_a_scope_that_becomes_private_are_forgotten() {
    let mut bench = Bench::new(1);
    let owned = CacheKey { owner: Some(caller("A")), key: Arc::clone(&bench.keys[0].key) };
    bench.keys.push(owned.clone());
    bench.counters.push(Arc::default());
    bench.sent.push(0);
    let other = bench.add_list("other", "1");
    (0..3).for_each(|list| bench.look(list, "A1", 1));
    bench.staleness.forget_shared(|scope| scope == owned.key.scope());
    let state = bench.staleness.looks.lock();
    let keys: Vec<_> = state.scopes[owned.key.scope()].keys.keys().collect();
    assert!(keys == [&owned] && state.scopes[bench.keys[other].key.scope()].keys.len() == 1);
    assert_eq!((state.keys, state.runs), (2, 2));
}
