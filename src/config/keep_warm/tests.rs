//! Which entries are allowed, the errors, and what the calls cost.

use super::super::secret::Secret;
use super::super::{Config, EnvironmentKey, Files, REFERENCE, SettingsDiff};
use super::*;
use crate::catalogue::AdaptiveTtl;

const KEYS: &str = "[[access_key]]\nid = \"AK\"\nsecret = \"hush\"\nprojects = [\"p1\", \"p2\"]\n\
                    [[access_key]]\nid = \"ANY\"\nsecret = \"hush\"\n";
const ZONES: &str = "[[operation]]\nname = \"Zones\"\npath = \"/v2/{project_id}/zones/{id}\"\nbody = \"json\"\n";

fn load(text: &str) -> Result<Config, Vec<String>> {
    let config = Config::from_layers("f", &format!("region = \"r\"\n{text}"), &[]);
    config.map_err(|error| error.each().iter().map(ToString::to_string).collect())
}

fn entry(key: &str, projects: &[&str], requests: &[&str]) -> String {
    format!("[[keep_warm]]\naccess_key = \"{key}\"\nprojects = {projects:?}\nrequests = {requests:?}\n")
}

#[test]
fn each_project_gets_each_request_of_its_entry() {
    let text = KEYS.to_owned()
        + ZONES
        + &entry("AK", &["p1", "p2"], &["/v2/{project_id}/products?os_type=Windows", "/v1/{project_id}/product"])
        + &entry("ANY", &["p1"], &["/v2/{project_id}/zones/z-1", "/v2/{project_id}/products"]);
    let config = load(&text).unwrap();
    let kept_warm: Vec<_> = config.keep_warm.iter().map(|it| format!("{} {}", it.key.id(), it.target)).collect();
    let expected = [
        "AK /v2/p1/products?os_type=Windows",
        "AK /v1/p1/product",
        "AK /v2/p2/products?os_type=Windows",
        "AK /v1/p2/product",
        "ANY /v2/p1/zones/z-1",
        "ANY /v2/p1/products",
    ];
    assert_eq!(kept_warm, expected);
    let printed = config.to_toml();
    let shown = format!("{printed}{:?}{:?}", config.settings, config.keep_warm);
    assert!(!shown.contains("hush"), "{shown}");
    let secrets = printed.replace("secret = \"(not shown)\"", "secret = \"hush\"");
    assert_eq!(load(&secrets.replacen("region = \"r\"\n", "", 1)).unwrap().settings, config.settings, "{secrets}");
    assert!(load("").unwrap().keep_warm.is_empty() && !load("").unwrap().to_toml().contains("keep_warm"));
}

#[test]
fn the_key_may_come_from_the_environment() {
    let text = "region = \"r\"\n".to_owned() + &entry("ENV", &["p"], &["/v2/{project_id}/products"]);
    let secret = Secret::Environment("CARGO_PKG_NAME".to_owned());
    let (origin, secret_origin) = ("ID", "SECRET");
    let key = EnvironmentKey { id: "ENV".to_owned(), secret, origin, secret_origin };
    let load = |key| Config::from_files("f", &text, (&[], key), &mut Files::default());
    assert_eq!(load(Some(&key)).unwrap().keep_warm[0].key.id(), "ENV");
    assert!(load(None).unwrap_err().0.to_string().contains("keep_warm[0].access_key: \"ENV\" is not allowed"));
}

#[test]
fn an_error_names_the_entry_and_what_is_allowed() {
    let products = "/v2/{project_id}/products";
    let ak = |requests: &[&str]| entry("AK", &["p1"], requests);
    for (entries, expected) in [
        (
            entry("AKX", &["p1"], &[products]),
            "keep_warm[0].access_key: \"AKX\" is not allowed: expected the id of an [[access_key]]; there are: AK, ANY",
        ),
        (entry("a b", &["p1"], &[products]), "keep_warm[0].access_key: (not shown, may be a secret) is not allowed"),
        (
            entry("AK", &["p1", "p3"], &[products]),
            "keep_warm[0].projects[1]: \"p3\" is not allowed: expected a project that is in access_key.AK.projects",
        ),
        (entry("AK", &["p1", "p1"], &[products]), "keep_warm[0].projects[1]: \"p1\" appears twice: expected each"),
        (
            entry("ANY", &["hush/1"], &[products]),
            "keep_warm[0].projects[0]: (not shown, may be a secret) is not allowed: expected 1 to 255 of",
        ),
        (
            entry("ANY", &["p1", &"hush".repeat(10)], &[products]),
            "keep_warm[0].projects[1]: (not shown, may be a secret) is not allowed: expected 1 to 255 of",
        ),
        (entry("AK", &[], &[products]), "keep_warm[0].projects: is empty: expected at least one"),
        (ak(&[]), "keep_warm[0].requests: is empty: expected at least one"),
        (
            ak(&["/v2/p1/products"]),
            "keep_warm[0].requests[0]: \"/v2/p1/products\" is not allowed: expected a path with",
        ),
        (ak(&[products, "v2/{project_id}/products"]), "keep_warm[0].requests[1]: \"v2/{project_id}/products\" is not"),
        (ak(&["https://u:hush@h/v2/{project_id}/products"]), "keep_warm[0].requests[0]: \"https://…@h/v2/{project_id}"),
        (ak(&["SecretInTheWrongPlace"]), "keep_warm[0].requests[0]: \"…\" is not allowed"),
        (
            ak(&["/v2/{project_id}/products#a"]),
            "keep_warm[0].requests[0]: \"/v2/{project_id}/products\" is not allowed",
        ),
        (ak(&["/v2/{project_id}/products?a={project_id}"]), "is not allowed: expected a path with {project_id} once"),
        (ak(&["/v2/q/zones/{project_id}"]), "is not allowed: expected a path with {project_id} once, in place of the"),
        (
            ak(&["/v2/{project_id}/desktops?x=hush"]),
            "keep_warm[0].requests[0]: \"/v2/{project_id}/desktops\" is not allowed: expected the path of an operation \
             (ListProducts, ListSharerProducts, ListProduct, Zones)",
        ),
        (ak(&["/workspace/v2/{project_id}/products"]), "is not allowed: expected the path of an operation"),
        (
            ak(&["/v2/{project_id}/products?a=b+c"]),
            "is not allowed: expected a request that can be answered from memory, but the query has a '+'",
        ),
        (ak(&["/v2/{project_id}/zones/%41"]), "can be answered from memory, but a path segment is not 1 to 255"),
        (
            ak(&[products, "/v2/{project_id}/products?limit=100"]),
            "keep_warm[0].requests[1]: \"/v2/{project_id}/products\" has the same cache key as keep_warm[0].requests[0] \
             in project p1: expected each cache key once",
        ),
        (
            ak(&[products]) + &entry("ANY", &["p3", "p1"], &[products]),
            "keep_warm[1].requests[0]: \"/v2/{project_id}/products\" has the same cache key as keep_warm[0].requests[0]",
        ),
        (
            "[[keep_warm]]\naccess_key = \"AK\"\nprojects = [\"p1\"]\n".to_owned(),
            "keep_warm[0]: missing field `requests`, expected `access_key`, `projects` and `requests` in each",
        ),
        ("[keep_warm]\naccess_key = \"AK\"\n".to_owned(), "is not allowed: expected entries of the form [[keep_warm]]"),
        (ak(&[products]) + "request = 1\n", "keep_warm[0].request: unknown field `request` (did you mean `requests`?)"),
        (
            "[[keep_warm]]\naccess_key = \"AK\"\nprojects = [\"p1\"]\nrequests = \"hush\"\n".to_owned(),
            "keep_warm[0].requests: (not shown, may be a secret) is not allowed: expected a list such as [\"/v2/{project_id}/products\"]",
        ),
    ] {
        let errors = load(&format!("{KEYS}{ZONES}{entries}")).unwrap_err();
        assert!(errors.len() == 1 && errors[0].contains(expected), "{entries}: {errors:#?} lack {expected:?}");
        assert!(errors[0].contains(" (line ") && !errors[0].contains("hush"), "{errors:#?}");
    }
}

#[test]
fn an_entry_for_one_caller_alone_is_refused() {
    for settings in
        ["[cache]\nsharing = \"caller\"\n", "[[operation]]\nname = \"ListProducts\"\nsharing = \"caller\"\n"]
    {
        let text = format!("{settings}{KEYS}{}", entry("AK", &["p1"], &["/v2/{project_id}/products"]));
        let errors = load(&text).unwrap_err();
        assert!(errors.concat().contains("expected an operation with sharing = \"project\""), "{errors:#?}");
    }
}

#[test]
fn at_most_100_cache_keys_are_kept_warm() {
    let requests = |number: usize| {
        let requests: Vec<_> =
            (0..number).map(|index| format!("/v2/{{project_id}}/products?offset={}", index + 1)).collect();
        entry("AK", &["p1", "p2"], &requests.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let more = |number: usize| {
        let requests: Vec<_> = (0..number).map(|index| format!("/v2/{{project_id}}/zones/{index}")).collect();
        entry("ANY", &["p3"], &requests.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(load(&format!("{KEYS}{ZONES}{}{}", requests(45), more(10))).unwrap().keep_warm.len(), MAX_KEPT_WARM);
    let errors = load(&format!("{KEYS}{ZONES}{}{}", requests(45), more(11))).unwrap_err();
    let expected = "keep_warm[1]: 101 cache keys (projects times requests) up to this entry are too many: expected at \
                    most 100 in all entries";
    assert!(errors.len() == 1 && errors[0].contains(expected), "{errors:#?}");
}

#[test]
fn errors_that_only_result_from_other_errors_are_not_reported() {
    let [products, zones] = ["/v2/{project_id}/products", "/v2/{project_id}/zones/z"];
    let both = entry("AK", &["p1"], &[products, zones]);
    for (text, expected) in [
        // The wrong operation and the key without a secret are removed to find further errors.
        (KEYS.to_owned() + &ZONES.replace("\"/v2", "\"nonsense") + &both, &["operation.Zones.path: "][..]),
        ("[[access_key]]\nid = \"AK\"\n".to_owned() + ZONES + &both, &["access_key.AK: missing field `secret`"]),
        // The only request of the list is wrong.
        (KEYS.to_owned() + &entry("AK", &["p1"], &["/"]), &["keep_warm[0].requests[0]: "]),
        (
            KEYS.to_owned() + &entry("AK", &["p1", "p3"], &["/", products]) + &entry("NO", &["p1"], &[products]),
            &["keep_warm[0].projects[1]: ", "keep_warm[0].requests[0]: ", "keep_warm[1].access_key: "],
        ),
        (
            KEYS.to_owned() + &entry("NO", &["p1", "p1", "a b"], &["/", products, "x"]),
            &[
                "keep_warm[0].access_key: ",
                "keep_warm[0].projects[1]: ",
                "keep_warm[0].projects[2]: ",
                "keep_warm[0].requests[0]: ",
                "keep_warm[0].requests[2]: ",
            ],
        ),
    ] {
        let errors = load(&text).unwrap_err();
        let mut found: Vec<_> = errors.iter().map(|error| error.trim_start_matches("f: ")).collect();
        found.sort_unstable();
        let is_expected = found.iter().zip(expected).all(|(error, expected)| error.starts_with(expected));
        assert!(found.len() == expected.len() && is_expected, "{text}: {found:#?}");
    }
}

#[test]
fn a_changed_entry_is_listed() {
    let settings = |requests: &[&str]| load(&(KEYS.to_owned() + &entry("AK", &["p1"], requests))).unwrap().settings;
    let (one, other) = (settings(&["/v2/{project_id}/products"]), settings(&["/v1/{project_id}/product"]));
    assert_eq!(SettingsDiff::between(&one, &other).applied, ["keep_warm.0.requests"]);
}

#[test]
fn the_interval_is_nine_tenths_of_the_average_lifetime() {
    for (ttl, jitter, expected) in [(300, 10, 256_500), (300, 0, 270_000), (300, 50, 202_500), (60, 10, 51_300)] {
        let interval = interval(Duration::from_secs(ttl), Percent(jitter));
        assert_eq!(interval, Duration::from_millis(expected), "{ttl} s, {jitter} %");
    }
    // The shortest settings that are allowed.
    assert!(interval(Duration::from_millis(1), Percent(50)) > Duration::ZERO);
}

#[test]
fn the_calls_of_all_scopes_are_added_and_an_adaptive_ttl_counts_with_its_minimum() {
    let fixed = (**Catalogue::for_tests(Vec::new()).operation("/v2/p/products").unwrap().0).clone();
    let calls = |scopes: &[(&Operation, usize)]| {
        calls_per_minute(scopes.iter().copied(), Percent(10), Duration::from_secs(300))
    };
    let [min, max] = [30, 3600].map(Duration::from_secs);
    let adaptive = Operation { adaptive_ttl: Some(AdaptiveTtl { max_stale: 0.01, min, max }), ..fixed.clone() };
    let lasting = Operation { ttl: max, ..fixed.clone() };
    let is_near = |one: f64, other: f64| (one - other).abs() < 1e-9;
    assert!(is_near(calls(&[(&fixed, 1), (&fixed, 2)]), 3.0 * 60.0 / 256.5) && is_near(calls(&[]), 0.0));
    assert!(is_near(calls(&[(&fixed, 1), (&adaptive, 1)]), 60.0 / 256.5 + 60.0 / 25.65));
    // The proofs of a scope are enough for a few responses that live longer than the grant, and not for many.
    assert!(is_near(calls(&[(&lasting, 1)]), 60.0 / 270.0) && is_near(calls(&[(&lasting, 11)]), 60.0 / 270.0));
    assert!(is_near(calls(&[(&lasting, 57)]), 57.0 * 60.0 / 3078.0));
}

#[test]
fn check_prints_the_calls_per_minute() {
    let requests = ["/v2/{project_id}/products", "/v1/{project_id}/product"];
    let cost = |settings: &str| {
        let text = KEYS.to_owned() + &entry("AK", &["p1", "p2"], &requests) + settings;
        load(&text)
            .unwrap()
            .to_toml()
            .lines()
            .find(|line| line.starts_with("# keep_warm: "))
            .map(str::to_owned)
            .unwrap()
    };
    for (settings, expected) in [
        ("", "# keep_warm: 4 cache keys cost 0.9 upstream calls per minute"),
        ("[cache]\nttl = \"1m\"", "# keep_warm: 4 cache keys cost 4.7 upstream calls per minute"),
        ("[cache]\nttl = \"1d\"", "# keep_warm: 4 cache keys cost 0.9 upstream calls per minute"),
        (
            "[cache]\nttl = \"1d\"\n[grants]\ngrant_ttl = \"1d\"",
            "# keep_warm: 4 cache keys cost less than 0.1 upstream calls per minute",
        ),
        (
            "[[operation]]\nname = \"ListProduct\"\nttl = { max_stale = \"1%\" }",
            "# keep_warm: 4 cache keys cost at most 5.1 upstream calls per minute",
        ),
    ] {
        assert_eq!(cost(settings), expected, "{settings}");
    }
}

#[test]
fn the_reference_file_shows_a_valid_entry() {
    let lines = REFERENCE.lines().skip_while(|line| *line != "# [[keep_warm]]").take_while(|line| !line.is_empty());
    let uncommented = lines.filter_map(|line| line.strip_prefix("# "));
    let entry: Vec<_> = uncommented.filter(|line| !line.starts_with('#')).collect();
    let key = KEYS.replace("\"ANY\"", "\"EXAMPLEAK0EXAMPLEAK0\"");
    assert_eq!(load(&format!("{key}{}", entry.join("\n"))).unwrap().keep_warm.len(), 2);
    let page = include_str!("../../../config/README.md");
    for name in ["access_key", "projects", "requests"] {
        assert!(page.contains(&format!("| `keep_warm.{name}` | ")), "{name}");
    }
}
