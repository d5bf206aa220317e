//! The documents tell of everything there is: settings, metrics, reasons.

use workspace_gateway::cache::admission::Unstorable;
use workspace_gateway::config::REFERENCE;
use workspace_gateway::request::BypassReason;
use workspace_gateway::signing::ring::Refusal;
use workspace_gateway::telemetry::outcome::Outcome;

use crate::support::World;

const README: &str = include_str!("../README.md");
const METRICS: &str = include_str!("../deploy/metrics.md");

/// The settings of a table as dotted names.
fn settings(prefix: &str, table: &toml::Table) -> Vec<String> {
    let names = table.iter().flat_map(|(name, value)| match value {
        // Where a secret is.
        toml::Value::Table(inner) if inner.contains_key("file") => vec![format!("{prefix}{name}")],
        toml::Value::Table(inner) => settings(&format!("{prefix}{name}."), inner),
        _ => vec![format!("{prefix}{name}")],
    });
    names.collect()
}

#[test]
fn every_setting_is_told_with_its_default() {
    // What has no default is commented out, and so is uncommented here.
    let all = REFERENCE.replace("# region =", "region =").replace("# workspace_url", "workspace_url");
    let all = all.replace("# appstream_url", "appstream_url").replace("# ca_file", "ca_file");
    let all = all.replace("# admin_token", "admin_token");
    let all = ["cert_file", "key_file", "client_ca_file"]
        .iter()
        .fold(all, |all, name| all.replace(&format!("# {name} ="), &format!("{name} =")));
    let settings = settings("", &toml::from_str(&all).unwrap());
    assert_eq!(settings.len(), 46);
    for name in settings {
        assert!(README.contains(&format!("| `{name}` |")), "{name}");
    }
    let defaults: toml::Table = toml::from_str(REFERENCE).unwrap();
    for (section, values) in defaults {
        for (name, value) in values.as_table().into_iter().flatten() {
            let row = README.lines().find(|line| line.starts_with(&format!("| `{section}.{name}` |"))).unwrap();
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            assert!(row.contains(&format!("`{shown}`")), "{section}.{name} is {shown}: {row}");
        }
    }
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
    let bypasses = BypassReason::ALL.iter().map(|reason| reason.as_str());
    let unstorable = Unstorable::ALL.iter().map(|reason| reason.as_str());
    let refusals = Refusal::ALL.iter().map(|refusal| refusal.as_str());
    let names = bypasses.chain(unstorable).chain(refusals).chain(Outcome::ALL.iter().map(|outcome| outcome.as_str()));
    for name in names {
        assert!(README.contains(&format!("`{name}`")), "{name}");
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
