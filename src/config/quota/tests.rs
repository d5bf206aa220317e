//! Which entries are allowed, and the errors.

use super::super::{Config, REFERENCE, SettingsDiff};
use super::*;
use crate::catalogue::Service;

const ZONES: &str = "[[operation]]\nname = \"Zones\"\npath = \"/v2/{project_id}/zones\"\nbody = \"json\"\n";

fn load(text: &str) -> Result<Config, Vec<String>> {
    let config = Config::from_layers("f", &format!("region = \"r\"\n{text}"), &[]);
    config.map_err(|error| error.each().iter().map(ToString::to_string).collect())
}

fn entry(service: &str, policy: &str, rest: &str) -> String {
    format!("[[quota]]\nservice = \"{service}\"\npolicy = \"{policy}\"\n{rest}\n")
}

const FIVE: &str = "limit = 5\nwindow = \"1s\"";

#[test]
fn entries_become_quotas_in_their_order() {
    let text = entry("workspace", "ip", FIVE)
        + &entry("appstream", "ip", "limit = \"none\"")
        + &entry("workspace", "api", "limit = 1000000\nwindow = \"1h\"")
        + &entry("workspace", "api", "operation = \"Zones\"\nlimit = 1\nwindow = \"100ms\"")
        + &entry("appstream", "api", "operation = \"ListProduct\"\nlimit = \"none\"")
        + &entry("workspace", "user", FIVE)
        + &entry("workspace", "app", FIVE)
        + ZONES;
    let config = load(&text).unwrap();
    let quota = |calls, milliseconds| Some(Quota { calls, window: Duration::from_millis(milliseconds) });
    let expected = [
        (Service::Workspace, QuotaPolicy::Ip, None, quota(5, 1000)),
        (Service::AppStream, QuotaPolicy::Ip, None, None),
        (Service::Workspace, QuotaPolicy::Api, None, quota(1_000_000, 3_600_000)),
        (Service::Workspace, QuotaPolicy::Api, Some("Zones"), quota(1, 100)),
        (Service::AppStream, QuotaPolicy::Api, Some("ListProduct"), None),
        (Service::Workspace, QuotaPolicy::User, None, quota(5, 1000)),
        (Service::Workspace, QuotaPolicy::App, None, quota(5, 1000)),
    ];
    let expected = expected.map(|(service, policy, operation, quota)| ConfiguredQuota {
        service,
        policy,
        operation: operation.map(Arc::from),
        quota,
    });
    assert_eq!(config.quotas, expected);
    let printed = config.to_toml();
    let again = Config::from_layers("f", &printed, &[]).unwrap();
    assert_eq!((again.settings, again.quotas), (config.settings, config.quotas));
    assert!(load("").unwrap().quotas.is_empty() && !load("").unwrap().to_toml().contains("quota"));
}

#[test]
fn an_error_names_the_entry_and_what_is_allowed() {
    let zones = |operation: &str| format!("operation = \"{operation}\"\n{FIVE}");
    for (entries, expected) in [
        (
            entry("workspace", "api", &zones("Zone")),
            "quota[0].operation: \"Zone\" is not allowed: expected an operation of workspace (ListProducts, \
             ListSharerProducts, Zones) (line 9",
        ),
        (
            entry("appstream", "api", &zones("Zones")),
            "quota[0].operation: \"Zones\" is not allowed: expected an operation of appstream (ListProduct) (line 9",
        ),
        (
            entry("workspace", "ip", &zones("Zones")),
            "quota[0].operation: \"Zones\" is not allowed: expected none, because policy = \"ip\" counts calls of all \
             operations; only \"api\" has one (line 9",
        ),
        (
            entry("workspace", "api", &zones("a b")),
            "quota[0].operation: invalid value: string \"a b\", expected 1 to 64",
        ),
        (
            entry("workspace", "ip", FIVE) + &entry("workspace", "ip", "limit = \"none\""),
            "quota[1]: policy ip of workspace appears twice: expected one entry for it (line 11",
        ),
        (
            entry("workspace", "api", FIVE) + &entry("workspace", "api", FIVE),
            "quota[1]: policy api of workspace, each operation appears twice",
        ),
        (
            entry("workspace", "api", &zones("Zones")) + &entry("workspace", "api", &zones("Zones")),
            "quota[1]: policy api of workspace, operation Zones appears twice",
        ),
        (
            entry("workspace", "ip", "limit = \"none\"\nwindow = \"1s\""),
            "quota[0].window: \"1s\" is not allowed: expected none, because limit = \"none\" (line 10",
        ),
        (
            entry("workspace", "ip", "limit = 5"),
            "quota[0]: missing field `window`, expected a duration such as \"1s\" in each [[quota]] without limit = \
             \"none\" (line 6",
        ),
        (
            entry("workspace", "ip", "limit = 5\nwindow = \"99ms\""),
            "quota[0].window: invalid value: string \"99ms\", expected a duration from 100ms to 1h with a unit, such as",
        ),
        (entry("workspace", "ip", "limit = 5\nwindow = \"61m\""), "quota[0].window: invalid value: string \"61m\""),
        (
            entry("workspace", "ip", "limit = 5\nwindow = 1"),
            "quota[0].window: invalid type: integer `1`, expected a dur",
        ),
        (
            entry("workspace", "ip", "limit = 0\nwindow = \"1s\""),
            "quota[0].limit: invalid value: integer `0`, expected a number of calls from 1 to 1000000, or \"none\" if",
        ),
        (
            entry("workspace", "ip", "limit = 1000001\nwindow = \"1s\""),
            "quota[0].limit: invalid value: integer `100000",
        ),
        (
            entry("workspace", "ip", "limit = \"5\"\nwindow = \"1s\""),
            "quota[0].limit: invalid value: string \"5\", expec",
        ),
        (
            entry("workspace", "ip", "limit = 5.0\nwindow = \"1s\""),
            "quota[0].limit: invalid type: floating point `5.0`",
        ),
        (
            entry("workspace", "ip", "window = \"1s\""),
            "quota[0]: missing field `limit`, expected `service`, `policy` and `limit` in each [[quota]]",
        ),
        (entry("own", "ip", FIVE), "quota[0].service: invalid value: string \"own\", expected workspace or appstream"),
        (
            entry("workspace", "tenant", FIVE),
            "quota[0].policy: invalid value: string \"tenant\", expected api, user, app or ip",
        ),
        (
            entry("workspace", "ip", &format!("{FIVE}\nlimits = 5")),
            "quota[0].limits: unknown field `limits` (did you mean `limit`?), exp",
        ),
        (
            "[quota]\nservice = \"workspace\"\n".to_owned(),
            "quota: invalid type: map, expected entries of the form [[quota]],",
        ),
    ] {
        let errors = load(&format!("{ZONES}{entries}")).unwrap_err();
        assert!(errors.len() == 1 && errors[0].contains(expected), "{entries}: {errors:#?} lack {expected:?}");
        assert!(errors[0].contains(" (line "), "{errors:#?}");
    }
}

#[test]
fn errors_that_only_result_from_other_errors_are_not_reported() {
    let api = |operation: &str| entry("workspace", "api", &format!("operation = \"{operation}\"\n{FIVE}"));
    for (text, expected) in [
        // The wrong operation is removed to find further errors.
        (ZONES.replace("\"/v2", "\"nonsense") + &api("Zones"), &["operation.Zones.path: "][..]),
        // Without its operation, each of these would be a quota of each operation.
        (
            entry("workspace", "api", FIVE) + &api("a b") + &api("Zone"),
            &["quota[1].operation: ", "quota[2].operation: "],
        ),
        (
            api("a b") + &entry("workspace", "ip", FIVE) + &entry("workspace", "ip", FIVE),
            &["quota[0].operation: ", "quota[2]: policy ip of workspace appears twice"],
        ),
        (
            entry("workspace", "x", "limit = 0\nwindow = \"0s\"")
                + &entry("workspace", "ip", "limit = 1\nwindow = \"1d\""),
            &["quota[0].limit: ", "quota[0].policy: ", "quota[0].window: ", "quota[1].window: "],
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
fn a_changed_entry_is_listed_and_needs_no_restart() {
    let settings = |rest: &str| load(&entry("workspace", "ip", rest)).unwrap().settings;
    let changes = SettingsDiff::between(&settings(FIVE), &settings("limit = \"none\""));
    assert_eq!(changes.applied, ["quota.0.limit", "quota.0.window"]);
    assert_eq!(changes.at_restart, []);
}

#[test]
fn check_prints_what_each_entry_limits() {
    let text = entry("workspace", "ip", FIVE)
        + &entry("workspace", "api", "limit = 2000\nwindow = \"1m\"")
        + &entry("workspace", "api", "operation = \"ListProducts\"\nlimit = \"none\"");
    let printed = load(&text).unwrap().to_toml();
    let lines: Vec<_> = printed.lines().filter(|line| line.starts_with("# quota: ")).collect();
    let expected = [
        "# quota: policy ip of workspace: 5 in 1s",
        "# quota: policy api of workspace, each operation: 2000 in 1m",
        "# quota: policy api of workspace, operation ListProducts: no limit",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn the_reference_file_shows_a_valid_entry() {
    let lines = REFERENCE.lines().skip_while(|line| *line != "# [[quota]]").take_while(|line| !line.is_empty());
    let uncommented = lines.filter_map(|line| line.strip_prefix("# "));
    let entry: Vec<_> = uncommented.filter(|line| !line.starts_with('#')).collect();
    assert_eq!(load(&entry.join("\n")).unwrap().quotas.len(), 1);
    let page = include_str!("../../../config/README.md");
    for name in ["service", "policy", "operation", "limit", "window"] {
        assert!(entry.iter().any(|line| line.starts_with(&format!("{name} = "))), "{name}");
        assert!(page.contains(&format!("| `quota.{name}` | ")), "{name}");
    }
    let examples = page.split("```toml\n").map(|rest| rest.split("```").next().unwrap_or_default());
    let example = examples.into_iter().find(|example| example.starts_with("[[quota]]")).unwrap();
    assert_eq!(load(example).unwrap().quotas.len(), 2);
}
