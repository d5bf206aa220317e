//! The pages mention everything that exists (settings, metrics, reasons, events), and what they link to exists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use strum::VariantArray;
use workspace_gateway::testing::cache::miss::Miss;
use workspace_gateway::testing::cache::unstorable::Unstorable;
use workspace_gateway::testing::config::REFERENCE;
use workspace_gateway::testing::config::table::{Applies, Setting};
use workspace_gateway::testing::request::BypassReason;
use workspace_gateway::testing::request::validate::Invalid;
use workspace_gateway::testing::signing::ring::SignatureRejection;
use workspace_gateway::testing::telemetry::conditions::Cause;
use workspace_gateway::testing::telemetry::events::Event;
use workspace_gateway::testing::telemetry::outcome::Outcome;
use workspace_gateway::testing::upstream::Failure;

use crate::support::World;

const README: &str = include_str!("../README.md");
const SETTINGS: &str = include_str!("../config/README.md");
const BEHAVIOUR: &str = include_str!("../deploy/behaviour.md");
const OPERATING: &str = include_str!("../deploy/operating.md");
const METRICS: &str = include_str!("../deploy/metrics.md");

/// In characters.
const LONGEST_LINE: usize = 200;
const MOST_README_LINES: usize = 150;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Markdown files of a folder.
fn pages_in(folder: &str) -> impl Iterator<Item = PathBuf> {
    let files = root().join(folder).read_dir().unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "md"))
}

/// All pages with their text, by their paths from the root.
fn pages() -> BTreeMap<PathBuf, String> {
    let folders = [
        "",
        "config",
        "deploy",
        "deploy/clients",
        "deploy/grafana",
        "deploy/helm/workspace-gateway",
        "deploy/prometheus",
    ];
    let pages = folders.into_iter().flat_map(pages_in);
    pages.map(|path| (path.strip_prefix(root()).unwrap().to_owned(), std::fs::read_to_string(path).unwrap())).collect()
}

/// For each setting in the reference file: its default, if it has one, and the comment before it. Settings that follow
/// one another without a comment in between share their comment.
fn settings_in_reference() -> BTreeMap<String, (Option<String>, String)> {
    let mut settings = BTreeMap::new();
    let (mut section, mut prose, mut is_complete) = (String::new(), String::new(), false);
    for line in REFERENCE.lines() {
        let comment = line.strip_prefix("# ");
        let text = comment.unwrap_or(line);
        let entry = text.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]"));
        let table = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let name = entry.map(str::to_owned).or_else(|| Some(format!("{section}{}", text.split_once(" = ")?.0)));
        let is_setting = |name: &String| Setting::all().iter().any(|setting| setting.name() == *name);
        if let Some(name) = name.filter(is_setting) {
            let default = text.split_once(" = ").filter(|_| comment.is_none()).map(|(_, value)| value.replace('"', ""));
            assert!(settings.insert(name.clone(), (default, prose.clone())).is_none(), "{name} is there twice");
            is_complete = true;
        } else if let Some(name) = table {
            (section, prose) = (format!("{name}."), String::new());
        } else if line.is_empty() || is_complete {
            (prose, is_complete) = (text.to_owned(), false);
        } else {
            prose = format!("{prose} {text}");
        }
    }
    settings
}

/// The cells of a setting's row in config/README.md.
fn settings_row(name: &str) -> Vec<&'static str> {
    let beginnings = [format!("| `{name}` | "), format!("| `[[{name}]]` | ")];
    let is_row = |line: &&str| beginnings.iter().any(|beginning| line.starts_with(beginning));
    let rows: Vec<_> = SETTINGS.lines().filter(is_row).collect();
    assert_eq!(rows.len(), 1, "{name}: {rows:?}");
    rows[0].trim_matches('|').split('|').map(str::trim).collect()
}

#[test]
fn every_setting_is_documented_with_its_default_and_flag() {
    let reference = settings_in_reference();
    for setting in Setting::all() {
        let name = setting.name();
        let (default, prose) = reference.get(&name).unwrap_or_else(|| panic!("{name} is not in the reference"));
        let cells = settings_row(&name);
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
fn every_setting_that_needs_a_restart_is_listed() {
    let mut at_restart = Vec::new();
    for setting in Setting::all() {
        let (_, prose) = &settings_in_reference()[&setting.name()];
        let is_marked = ["Needs a restart.", "need a restart."].iter().any(|words| prose.contains(words));
        assert_eq!(is_marked, setting.applies == Applies::AtRestart, "{}: {prose}", setting.name());
        at_restart.extend(is_marked.then(|| setting.name()));
    }
    let (_, list) = SETTINGS.split_once("- These need a restart, and the log says so when they differ: ").unwrap();
    let (list, _) = list.split_once("\n- ").unwrap();
    let mut listed: Vec<_> = list.split('`').skip(1).step_by(2).collect();
    listed.sort_unstable();
    at_restart.sort();
    assert_eq!(listed, at_restart);
}

#[tokio::test]
async fn every_metric_is_documented() {
    let world = World::new().await;
    world.get("/v2/PROJECT/products").await;
    let exposition = world.server.gateway().metrics().encode().unwrap();
    for line in exposition.lines().filter_map(|line| line.strip_prefix("# TYPE workspace_gateway_")) {
        let name = line.split(' ').next().unwrap();
        assert!(METRICS.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn every_result_and_reason_has_a_row() {
    let names = (BypassReason::VARIANTS.iter().map(|reason| reason.into_str()))
        .chain(Unstorable::VARIANTS.iter().map(|reason| reason.into_str()))
        .chain(SignatureRejection::VARIANTS.iter().map(|reason| reason.into_str()))
        .chain(Invalid::VARIANTS.iter().map(|reason| reason.into_str()))
        .chain(Miss::VARIANTS.iter().map(|reason| reason.into_str()))
        .chain(Failure::VARIANTS.iter().map(|reason| reason.into_str()))
        .chain(Outcome::VARIANTS.iter().map(|result| result.into_str()));
    for name in names {
        assert!(BEHAVIOUR.lines().any(|line| line.starts_with(&format!("| `{name}` | "))), "{name}");
    }
}

/// The text of a section of deploy/operating.md.
fn section(heading: &str) -> &'static str {
    let (_, rest) = OPERATING.split_once(&format!("\n{heading}\n")).unwrap();
    rest.split("\n### ").next().unwrap()
}

#[test]
fn every_event_is_documented_with_its_level_meaning_and_action() {
    for &event in Event::VARIANTS {
        let row = format!("| `{}` | ", event.into_str());
        let row = section("### Events")
            .lines()
            .find_map(|line| line.strip_prefix(&row))
            .unwrap_or_else(|| panic!("{}", event.into_str()));
        let cells: Vec<_> = row.trim_end_matches(" |").split(" | ").collect();
        // A warning says what to do. A refused caller is a bad event, but its client has to act, not the operator.
        let is_warning = event.is_bad() && event != Event::Denial;
        assert_eq!(cells[0], if is_warning { "`warn`" } else { "`info`" }, "{row}");
        assert!(cells.len() == 3 && !(is_warning && cells[2].starts_with("none")), "{row}");
    }
}

#[test]
fn every_condition_is_documented() {
    for cause in Cause::VARIANTS.iter().map(|cause| cause.into_str()).chain(["no-data"]) {
        let row = format!("| `{cause}` | ");
        assert!(section("### What is wrong").lines().any(|line| line.starts_with(&row)), "{cause}");
    }
}

#[test]
fn the_readme_links_every_client_page() {
    let pages: Vec<_> = pages_in("deploy/clients").collect();
    assert!(!pages.is_empty());
    for page in pages {
        let name = page.file_name().unwrap().display();
        assert!(README.contains(&format!("(deploy/clients/{name})")), "{name}");
    }
}

#[test]
fn every_client_page_has_the_same_sections() {
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
    for path in pages_in("deploy/clients") {
        let text = std::fs::read_to_string(&path).unwrap();
        for part in parts {
            assert!(text.contains(part), "{}: {part}", path.display());
        }
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{}", path.display());
    }
}

#[test]
fn every_page_begins_with_its_readers() {
    for (path, text) in pages() {
        // The README is for everyone.
        let first = text.lines().nth(2).unwrap_or_default();
        assert!(path == Path::new("README.md") || first.starts_with("For "), "{}: {first}", path.display());
    }
}

#[test]
fn the_readme_is_short_and_no_line_of_a_page_is_long() {
    let lines = README.lines().count();
    assert!(lines <= MOST_README_LINES, "{lines} lines");
    for (path, text) in pages() {
        for (index, line) in text.lines().enumerate() {
            let length = line.chars().count();
            assert!(length <= LONGEST_LINE, "{}:{}: {length} characters", path.display(), index + 1);
        }
    }
}

#[test]
fn ci_runs_the_test_command_of_the_readme() {
    // The published package has no .ci.
    let Ok(ci) = std::fs::read_to_string(root().join(".ci/run")) else { return };
    let blocks = README.split("```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    let commands: Vec<_> = blocks.filter(|block| block.starts_with("cargo test")).collect();
    assert_eq!(commands, ["cargo test"]);
    // It runs `cargo test`, too.
    assert!(ci.lines().any(|line| line == "python3 tests/coverage.py --at-least 96"));
}

/// A page without its code, in which brackets are no links.
fn without_code(text: &str) -> String {
    let prose = text.split("```").step_by(2).collect::<String>();
    prose.split('`').step_by(2).collect()
}

/// The targets of the links in a page.
fn links(text: &str) -> Vec<String> {
    let prose = without_code(text);
    prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap().to_owned()).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    // Comments in code begin with the same sign.
    let prose: String = text.split("```").step_by(2).collect();
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|&char| char.is_alphanumeric() || " -_".contains(char));
        kept.map(|char| if char == ' ' { '-' } else { char }).collect::<String>().to_lowercase()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_of_a_page_leads_to_a_file_and_a_heading_that_exist() {
    let mut broken = Vec::new();
    for (path, text) in pages() {
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').map_or((&*link, None), |(file, anchor)| (file, Some(anchor)));
            let target = root().join(&path);
            let target = if file.is_empty() { target } else { target.parent().unwrap().join(file) };
            let has_anchor =
                |anchor| std::fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(anchor));
            if !target.exists() || !anchor.is_none_or(has_anchor) {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let page = std::fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.contains("::"));
    let named: Vec<_> = rows.flat_map(|row| row.split('`').filter_map(|word| word.split_once("::"))).collect();
    assert!(named.len() > 30, "{named:?}");
    for (file, name) in named {
        let text = std::fs::read_to_string(root().join(format!("tests/{file}.rs"))).unwrap_or_default();
        assert!(text.contains(&format!("fn {name}(")), "{file}::{name}");
    }
}
