//! Who may know whom: the architecture's fences, held against the sources.

use std::path::{Path, PathBuf};

/// All sources below a folder or file of `src`, with their text up to their tests; files that are
/// tests may know anyone.
fn sources(place: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut places: Vec<PathBuf> = vec![root.join(place)];
    while let Some(place) = places.pop() {
        if place.is_dir() && !place.ends_with("tests") {
            places.extend(place.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        } else if place.extension().is_some_and(|extension| extension == "rs") && !place.ends_with("tests.rs") {
            let text = std::fs::read_to_string(&place).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
            found.push((place.strip_prefix(&root).unwrap().display().to_string(), code));
        }
    }
    assert!(!found.is_empty(), "nothing in {place}");
    found
}

/// Asserts that no code in these places (comments apart) has any of these words.
fn must_not_name(places: &[&str], words: &[&str], except: &[&str]) {
    for (file, code) in places.iter().flat_map(|place| sources(place)) {
        if except.iter().any(|exempt| file.starts_with(exempt)) {
            continue;
        }
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for word in words {
                assert!(!line.contains(word), "{file} names {word}: {line}");
            }
        }
    }
}

#[test]
fn reading_a_request_is_pure() {
    must_not_name(
        &["request", "catalogue", "signing"],
        &["tokio", "hyper", "crate::clock", "Instant", "SystemTime::now"],
        &[],
    );
}

#[test]
fn freshness_is_told_the_time() {
    must_not_name(
        &["cache/freshness.rs", "cache/lifetime.rs", "cache/pauses.rs", "cache/admission.rs", "cache/body.rs"],
        &["tokio", "hyper", "crate::clock", "moka"],
        &[],
    );
}

#[test]
fn the_cache_knows_no_http_client_and_one_file_knows_moka() {
    must_not_name(&["cache"], &["hyper", "crate::upstream", "crate::reply", "crate::telemetry"], &[]);
    must_not_name(&[""], &["moka"], &["cache/store.rs"]);
}

#[test]
fn one_place_has_an_http_client() {
    // The demo is a client of the gateway.
    must_not_name(&[""], &["client::legacy"], &["upstream", "cli/demo"]);
}

#[test]
fn steps_do_not_know_the_path() {
    let steps = ["catalogue", "request", "cache", "upstream", "reply", "telemetry", "explain.rs"];
    must_not_name(&steps, &["crate::gateway", "crate::server", "crate::admin", "crate::cli"], &[]);
    must_not_name(&[""], &["crate::simulator"], &["simulator", "cli/demo"]);
}

#[test]
fn rooms_know_only_whom_they_may() {
    // Each room of `src`, and the rooms it may import; itself always. Sorted from the ground up.
    let table: [(&str, &[&str]); 18] = [
        ("catalogue", &[]),
        ("signing", &[]),
        ("clock", &[]),
        ("egress", &[]),
        ("stream", &[]),
        ("request", &["catalogue", "signing"]),
        ("cache", &["request", "catalogue"]),
        ("config", &["catalogue", "egress", "signing"]),
        ("upstream", &["request", "catalogue", "clock", "egress", "signing", "stream"]),
        ("telemetry", &["cache", "request", "catalogue", "config", "clock", "signing"]),
        ("reply", &["cache", "request", "signing", "telemetry", "upstream", "stream"]),
        ("explain", &["catalogue", "config", "request", "signing", "upstream"]),
        (
            "gateway",
            &[
                "cache",
                "catalogue",
                "clock",
                "config",
                "reply",
                "request",
                "signing",
                "stream",
                "telemetry",
                "upstream",
            ],
        ),
        ("admin", &["cache", "catalogue", "config", "explain", "gateway", "request", "stream", "telemetry"]),
        ("server", &["admin", "clock", "config", "gateway", "request", "stream", "telemetry"]),
        ("simulator", &["catalogue", "clock", "request", "signing"]),
        (
            "cli",
            &[
                "catalogue",
                "clock",
                "config",
                "egress",
                "explain",
                "gateway",
                "request",
                "server",
                "signing",
                "simulator",
                "stream",
                "telemetry",
            ],
        ),
        ("main", &["cli"]),
    ];
    for (file, code) in sources("") {
        let room = file.trim_end_matches(".rs").split('/').next().unwrap();
        if room == "lib" {
            continue;
        }
        let (_, allowed) = table.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("{room} is new"));
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        for named in code.split("crate::").skip(1) {
            let named = named.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
            assert!(named == room || allowed.contains(&named), "{file} imports {named}");
        }
    }
}

#[test]
fn every_file_says_what_it_is_for_and_is_short_enough_to_read() {
    for (file, code) in sources("") {
        assert!(code.starts_with("//! "), "{file} does not open with //!");
        assert!(code.lines().count() <= 450, "{file} is longer than 450 lines");
    }
}
