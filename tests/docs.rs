//! The documents tell of everything there is: settings, metrics, reasons.

use std::collections::BTreeMap;

use strum::VariantArray;
use workspace_gateway::testing::cache::miss::Miss;
use workspace_gateway::testing::cache::unstorable::Unstorable;
use workspace_gateway::testing::config::REFERENCE;
use workspace_gateway::testing::config::table::{Applies, Setting};
use workspace_gateway::testing::request::BypassReason;
use workspace_gateway::testing::request::validate::Invalid;
use workspace_gateway::testing::signing::ring::SignatureRejection;
use workspace_gateway::testing::telemetry::events::Event;
use workspace_gateway::testing::telemetry::outcome::Outcome;
use workspace_gateway::testing::upstream::Failure;

use crate::support::World;

const README: &str = include_str!("../README.md");
const METRICS: &str = include_str!("../deploy/metrics.md");

/// What the reference says of each setting: its default, as far as it has one, and the prose before it. Settings that
/// follow one another without a comment in between share their prose.
fn in_the_reference() -> BTreeMap<String, (Option<String>, String)> {
    let mut told = BTreeMap::new();
    let (mut section, mut prose, mut is_told) = (String::new(), String::new(), false);
    for line in REFERENCE.lines() {
        let comment = line.strip_prefix("# ");
        let text = comment.unwrap_or(line);
        let entry = text.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]"));
        let table = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let name = entry.map(str::to_owned).or_else(|| Some(format!("{section}{}", text.split_once(" = ")?.0)));
        let is_setting = |name: &String| Setting::all().iter().any(|setting| setting.name() == *name);
        if let Some(name) = name.filter(is_setting) {
            let default = text.split_once(" = ").filter(|_| comment.is_none()).map(|(_, value)| value.replace('"', ""));
            assert!(told.insert(name.clone(), (default, prose.clone())).is_none(), "{name} is there twice");
            is_told = true;
        } else if let Some(name) = table {
            (section, prose) = (format!("{name}."), String::new());
        } else if line.is_empty() || is_told {
            (prose, is_told) = (text.to_owned(), false);
        } else {
            prose = format!("{prose} {text}");
        }
    }
    told
}

/// The row of the README's table of settings, by its cells.
fn in_the_readme(name: &str) -> Vec<&'static str> {
    let beginnings = [format!("| `{name}` | "), format!("| `[[{name}]]` | ")];
    let is_it = |line: &&str| beginnings.iter().any(|beginning| line.starts_with(beginning));
    let rows: Vec<_> = README.lines().filter(is_it).collect();
    assert_eq!(rows.len(), 1, "{name}: {rows:?}");
    rows[0].trim_matches('|').split('|').map(str::trim).collect()
}

#[test]
fn every_setting_is_told_with_its_default_and_its_flag() {
    let reference = in_the_reference();
    for setting in Setting::all() {
        let name = setting.name();
        let (default, prose) = reference.get(&name).unwrap_or_else(|| panic!("{name} is not in the reference"));
        let cells = in_the_readme(&name);
        match setting.flag.map(|flag| flag.name) {
            Some(flag) => {
                let variable = flag.to_ascii_uppercase().replace('-', "_");
                assert!(prose.contains(&format!("--{flag}")), "{name}: {prose}");
                assert!(prose.contains(&format!("WORKSPACE_GATEWAY_{variable}")), "{name}: {prose}");
                assert_eq!(cells[1], format!("`--{flag}`, `{variable}`"), "{name}");
            }
            None => assert!(!prose.contains("--") && !cells[1].contains("--"), "{name} has no flag: {prose}"),
        }
        if let Some(default) = default {
            assert_eq!(cells[2].replace('"', ""), format!("`{default}`"), "{name}");
        }
    }
}

#[test]
fn every_setting_that_needs_a_restart_says_so() {
    let mut at_restart = Vec::new();
    for setting in Setting::all() {
        let (_, prose) = &in_the_reference()[&setting.name()];
        let says_so = ["Needs a restart.", "need a restart."].iter().any(|words| prose.contains(words));
        assert_eq!(says_so, setting.applies == Applies::AtRestart, "{}: {prose}", setting.name());
        at_restart.extend(says_so.then(|| setting.name()));
    }
    let (_, list) = README.split_once("- These need a restart, and the log says so when they differ: ").unwrap();
    let (list, _) = list.split_once("\n- ").unwrap();
    let mut told: Vec<_> = list.split('`').skip(1).step_by(2).collect();
    told.sort_unstable();
    at_restart.sort();
    assert_eq!(told, at_restart);
}

#[tokio::test]
async fn every_metric_is_told() {
    let world = World::new().await;
    world.get("/v2/PROJECT/products").await;
    let page = world.server.gateway().metrics().encode().unwrap();
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE workspace_gateway_")) {
        let name = line.split(' ').next().unwrap();
        assert!(METRICS.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn every_result_and_reason_is_told() {
    let bypasses = BypassReason::VARIANTS.iter().map(|reason| reason.into_str());
    let unstorable = Unstorable::VARIANTS.iter().map(|reason| reason.into_str());
    let refusals = SignatureRejection::VARIANTS.iter().map(|refusal| refusal.into_str());
    let invalid = Invalid::VARIANTS.iter().map(|invalid| invalid.into_str());
    let names = bypasses
        .chain(unstorable)
        .chain(refusals)
        .chain(invalid)
        .chain(Miss::VARIANTS.iter().map(|miss| miss.into_str()))
        .chain(Failure::VARIANTS.iter().map(|failure| failure.into_str()))
        .chain(Outcome::VARIANTS.iter().map(|outcome| outcome.into_str()));
    for name in names {
        assert!(README.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn every_event_is_told_with_its_level_its_meaning_and_an_action() {
    let operating = include_str!("../deploy/operating.md");
    for &event in Event::VARIANTS {
        let row = format!("| `{}` | ", event.into_str());
        let row = operating
            .lines()
            .find_map(|line| line.strip_prefix(&row))
            .unwrap_or_else(|| panic!("{}", event.into_str()));
        let cells: Vec<_> = row.trim_end_matches(" |").split(" | ").collect();
        // Those for somebody to act are warnings, and say what to do. A refused caller is a matter of the client's.
        let is_warning = event.is_bad() && event != Event::Denial;
        assert_eq!(cells[0], if is_warning { "`warn`" } else { "`info`" }, "{row}");
        assert!(cells.len() == 3 && !(is_warning && cells[2].starts_with("none")), "{row}");
    }
}

#[test]
fn every_client_has_a_page_that_the_readme_links() {
    let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/clients");
    let pages: Vec<_> = pages.read_dir().unwrap().map(|page| page.unwrap().file_name()).collect();
    assert!(!pages.is_empty());
    for page in pages {
        assert!(README.contains(&format!("(deploy/clients/{})", page.display())), "{}", page.display());
    }
}

#[test]
fn every_page_of_a_client_answers_the_same_questions() {
    let parts = [
        "\n## Errors\n",
        "\n## Timeouts and retries\n",
        "\n## TLS and proxies\n",
        "\n## Check\n",
        "401",
        "429",
        "503",
        "cached",
    ];
    let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/clients");
    for page in pages.read_dir().unwrap() {
        let path = page.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().nth(2).is_some_and(|first| first.starts_with("For ")), "{}", path.display());
        for part in parts {
            assert!(text.contains(part), "{}: {part}", path.display());
        }
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{}", path.display());
    }
}
