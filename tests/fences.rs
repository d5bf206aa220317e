//! Which module may use which: the rules of the architecture, checked against the source text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// All source files below a folder or file of `src`, with their text up to their tests. Test files may use everything.
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

/// Asserts that no code in these places contains any of these words. Comments are not checked.
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
fn freshness_takes_the_time_as_an_argument() {
    must_not_name(
        &[
            "cache/freshness.rs",
            "cache/lifetime.rs",
            "cache/backoffs.rs",
            "cache/admission.rs",
            "cache/body.rs",
            "cache/staleness",
        ],
        &["tokio", "hyper", "crate::clock", "moka"],
        &[],
    );
}

#[test]
fn the_cache_uses_no_http_client_and_one_file_uses_moka() {
    must_not_name(&["cache"], &["hyper", "crate::upstream", "crate::reply", "crate::telemetry"], &[]);
    must_not_name(&[""], &["moka"], &["cache/store.rs"]);
}

#[test]
fn only_upstream_has_an_http_client() {
    must_not_name(&[""], &["hyper::client"], &["upstream", "otlp/connection.rs", "cli"]);
    // The demo is a client of the gateway.
    must_not_name(&[""], &["client::legacy"], &["upstream", "net/connector.rs", "net/stream.rs", "cli/demo"]);
}

#[test]
fn only_random_has_randomness() {
    must_not_name(&[""], &["getrandom", "SystemRandom"], &["random.rs"]);
    // It decides places in maps.
    must_not_name(&[""], &["RandomState"], &["random.rs", "request/key.rs", "cache/lru_map.rs"]);
}

#[test]
fn only_net_opens_sockets() {
    // The demo and the simulator are the gateway's clients and its upstream.
    let sockets = ["tokio::net", "socket2", "HttpConnector", "TcpStream::connect", "TcpListener::bind", "UdpSocket"];
    must_not_name(&[""], &sockets, &["net.rs", "net/", "simulator", "cli/demo"]);
    let names = ["GaiResolver", "lookup_host", "to_socket_addrs", "ToSocketAddrs"];
    must_not_name(&[""], &names, &["net.rs", "net/"]);
    must_not_name(&[""], &["UnixStream", "UnixListener", "UnixDatagram"], &["cli/supervisor.rs"]);
    // Everything else gets bytes.
    let users = [
        "net.rs",
        "net/",
        "machine.rs",
        "server",
        "upstream",
        "fleet/dialer.rs",
        "otlp/connection.rs",
        "cli",
        "simulator",
        "testing.rs",
    ];
    must_not_name(&[""], &["crate::net"], &users);
}

/// Otherwise the order of events, and so a run of the simulation, could not be repeated.
#[test]
fn nothing_is_left_to_chance_or_to_threads() {
    must_not_name(&[""], &["spawn_blocking"], &["sync.rs", "admin/operator.rs", "cli"]);
    for (file, code) in sources("") {
        let product = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (select, _) in
            product.match_indices("select! {").filter(|_| !file.starts_with("cli/") && !file.contains("tests"))
        {
            let first = product[select..].lines().skip(1).map(str::trim).find(|line| !line.starts_with("//"));
            assert_eq!(first, Some("biased;"), "{file}: a select! in random order");
        }
    }
}

#[test]
fn only_sync_has_locks() {
    must_not_name(&[""], &["parking_lot", "PoisonError"], &["sync.rs", "sync/"]);
    for (file, code) in sources("") {
        let mut of_std = code.lines().filter(|line| line.contains("std::sync"));
        let lock = of_std.find(|line| ["Mutex", "RwLock", "Condvar"].iter().any(|lock| line.contains(lock)));
        assert!(lock.is_none(), "{file} has a lock of its own: {lock:?}");
    }
}

#[test]
fn lower_layers_do_not_use_the_gateway() {
    let steps = ["catalogue", "request", "cache", "upstream", "reply", "telemetry", "otlp", "fast_path", "explain.rs"];
    must_not_name(&steps, &["crate::gateway", "crate::server", "crate::admin", "crate::cli"], &[]);
    must_not_name(&[""], &["crate::simulator"], &["simulator", "cli/demo", "cli/simulate.rs", "testing.rs"]);
}

#[test]
fn the_fast_path_is_used_through_its_interface_alone() {
    // Its modules are private, so the compiler rejects the use of what `mod.rs` does not export.
    let interface = sources("fast_path/mod.rs").remove(0).1;
    for line in interface.lines().filter(|line| line.ends_with(';')) {
        assert!(!line.contains("pub mod") && !line.contains(") mod "), "{line}");
    }
    // The gateway says what to remember and what is fresh. The server passes bytes and a place to write.
    let users =
        ["gateway.rs", "gateway/assemble.rs", "gateway/connection.rs", "gateway/remembered.rs", "server/wire.rs"];
    must_not_name(&[""], &["fast_path::"], &[&["fast_path", "testing.rs"], &users[..]].concat());
}

#[test]
fn folders_import_only_what_the_table_allows() {
    // Each folder of `src`, and the folders that it may import besides itself. The lowest come first.
    let table: [(&str, &[&str]); 25] = [
        ("catalogue", &[]),
        ("signing", &[]),
        ("clock", &[]),
        ("proxy_config", &[]),
        ("certificate", &[]),
        ("stream", &[]),
        ("seal", &[]),
        ("snapshot", &["seal"]),
        ("request", &["catalogue", "signing"]),
        ("budget", &["request"]),
        ("cache", &["budget", "request", "catalogue"]),
        ("config", &["catalogue", "proxy_config", "request", "signing"]),
        ("upstream", &["budget", "certificate", "request", "catalogue", "clock", "proxy_config", "signing", "stream"]),
        ("fleet", &["cache", "clock", "config"]),
        (
            "telemetry",
            &["budget", "cache", "request", "catalogue", "config", "clock", "fleet", "seal", "signing", "upstream"],
        ),
        ("otlp", &["clock", "config", "request", "telemetry", "upstream"]),
        ("reply", &["budget", "cache", "request", "signing", "telemetry", "upstream", "stream"]),
        ("fast_path", &["cache", "catalogue", "clock", "reply", "request", "telemetry"]),
        ("explain", &["catalogue", "config", "request", "signing", "upstream"]),
        (
            "gateway",
            &[
                "budget",
                "cache",
                "catalogue",
                "clock",
                "config",
                "fast_path",
                "fleet",
                "reply",
                "request",
                "seal",
                "signing",
                "snapshot",
                "stream",
                "telemetry",
                "upstream",
            ],
        ),
        ("admin", &["budget", "cache", "catalogue", "config", "explain", "gateway", "request", "stream", "telemetry"]),
        (
            "server",
            &[
                "admin",
                "budget",
                "certificate",
                "clock",
                "config",
                "fast_path",
                "gateway",
                "otlp",
                "request",
                "stream",
                "telemetry",
            ],
        ),
        ("simulator", &["catalogue", "clock", "request", "signing"]),
        (
            "cli",
            &[
                "budget",
                "catalogue",
                "certificate",
                "clock",
                "config",
                "proxy_config",
                "explain",
                "fleet",
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
        let folder = file.trim_end_matches(".rs").split('/').next().unwrap();
        if ["lib", "machine", "net", "random", "sync", "testing"].contains(&folder) {
            continue;
        }
        let (_, allowed) = table.iter().find(|(name, _)| *name == folder).unwrap_or_else(|| panic!("{folder} is new"));
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        for named in code.split("crate::").skip(1) {
            let named = named.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
            // The seams: everything may use them.
            let is_seam = ["machine", "net", "random", "sync"].contains(&named);
            assert!(named == folder || is_seam || allowed.contains(&named), "{file} imports {named}");
        }
    }
}

/// The files of each folder of `src`, and which of its neighbours each of them names.
fn neighbours() -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut folders: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    let files: Vec<(String, String)> = sources("").into_iter().filter(|(file, _)| file.contains('/')).collect();
    for (file, code) in &files {
        let (folder, name) = file.trim_end_matches(".rs").rsplit_once('/').unwrap();
        let path = format!("crate::{}::", folder.replace('/', "::"));
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        // One name, or several in braces.
        let words = |text: &str| {
            let words = text.strip_prefix('{').map_or_else(|| text.split(':').next(), |group| group.split('}').next());
            let words = words.unwrap_or_default().split(|c: char| !c.is_alphanumeric() && c != '_');
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        let by_super = code.split("use super::").skip(1).chain(code.split(" super::").skip(1));
        let named = by_super.chain(code.split(&path).skip(1)).flat_map(words).filter(|named| named != name);
        let is_file = |named: &String| files.iter().any(|(file, _)| *file == format!("{folder}/{named}.rs"));
        let named = if name == "mod" { BTreeSet::new() } else { named.filter(is_file).collect() };
        folders.entry(folder.to_owned()).or_default().insert(name.to_owned(), named);
    }
    folders
}

/// An import chain from a file back to itself.
fn cycle(files: &BTreeMap<String, BTreeSet<String>>, chain: &mut Vec<String>) -> Option<String> {
    let last = chain.last().unwrap().clone();
    for next in files.get(&last).into_iter().flatten() {
        if *next == chain[0] {
            return Some(format!("{} → {next}", chain.join(" → ")));
        }
        if !chain.contains(next) {
            chain.push(next.clone());
            let found = cycle(files, chain);
            chain.pop();
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

#[test]
fn files_of_a_folder_do_not_import_each_other_in_circles() {
    let found: Vec<String> = neighbours()
        .iter()
        .flat_map(|(folder, files)| {
            files.keys().filter_map(move |file| Some(format!("{folder}: {}", cycle(files, &mut vec![file.clone()])?)))
        })
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn steps_of_the_path_do_not_call_each_other() {
    // What the steps are given: parts of the gateway, and values.
    let parts = [
        "memory",
        "look_up",
        "caller_class",
        "fetcher",
        "observer",
        "active_config",
        "upstream_setup",
        "tier",
        "hint",
        "message",
        "scope_record",
        "key_trial",
        "call_trace",
    ];
    let values = ["connection", "cache_request", "role", "fetch_result", "denial"];
    // These call the steps, or are about the gateway as a whole.
    let callers = [
        "fetch",
        "background",
        "claim",
        "forward",
        "keep_warm",
        "fleet_log",
        "fleet_setup",
        "assemble",
        "conditions",
        "inspect",
        "reload",
        "parts",
        "remembered",
        "probe",
        "staleness",
    ];
    let files = neighbours().remove("gateway").unwrap();
    for step in files.keys().filter(|file| !callers.contains(&file.as_str())) {
        let others = files[step].iter().filter(|named| ![&parts[..], &values].concat().contains(&named.as_str()));
        assert_eq!(others.collect::<Vec<_>>(), Vec::<&String>::new(), "{step} calls other steps");
        let (_, code) = sources(&format!("gateway/{step}.rs")).remove(0);
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        let mut words = code.split(|c: char| !c.is_alphanumeric());
        assert!(!words.any(|word| word == "Gateway"), "{step} sees the whole gateway");
    }
}

#[test]
fn every_file_opens_with_its_purpose_and_has_at_most_450_lines() {
    for (file, code) in sources("") {
        assert!(code.starts_with("//! "), "{file} does not open with //!");
        assert!(code.lines().count() <= 450, "{file} is longer than 450 lines");
    }
}
