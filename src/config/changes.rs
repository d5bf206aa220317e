//! What differs between the settings in force and those that have been read since, and which of it takes a
//! restart. Settings are told by name, values only of those that take a restart: none of them is a secret.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::Settings;
use super::table::{Applies, FollowUp, Setting, told};

/// What becomes of settings that have been read while others were in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsDiff {
    /// The settings that change.
    pub applied: Vec<String>,
    /// Those that would have to.
    pub at_restart: Vec<AtRestart>,
}

/// A setting that has one value in force and another where settings are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtRestart {
    /// Its name.
    pub setting: String,
    /// Its value until the restart.
    pub in_force: String,
    /// Its value from then on.
    pub given: String,
}

impl SettingsDiff {
    /// What changes, or would, when these settings take the place of those in force.
    pub fn between(in_force: &Settings, given: &Settings) -> Self {
        let (old, new) = (named_values(in_force), named_values(given));
        let differing = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
        let differing = differing.filter(|name| old.get(*name) != new.get(*name));
        let needs_restart =
            |name: &String| Setting::of(name).is_some_and(|setting| setting.applies == Applies::AtRestart);
        let (at_restart, mut applied): (Vec<_>, Vec<_>) = differing.cloned().partition(needs_restart);
        // What can differ without a value that does: the order of entries, which are told apart by what they are called.
        if in_force.operation != given.operation && !applied.iter().any(|name| name.starts_with("operation")) {
            applied.push("operation".to_owned());
        }
        let value = |values: &BTreeMap<String, Value>, name: &str| values.get(name).map_or_else(String::new, told);
        let at_restart = at_restart.into_iter().map(|setting| AtRestart {
            in_force: value(&old, &setting),
            given: value(&new, &setting),
            setting,
        });
        Self { applied, at_restart: at_restart.collect() }
    }

    /// Whether one of the settings that have changed calls for this.
    pub fn call_for(&self, follow_up: FollowUp) -> bool {
        let settings = self.applied.iter().filter_map(|name| Setting::of(name));
        settings.flat_map(|setting| setting.follow_ups).any(|it| *it == follow_up)
    }
}

impl Settings {
    /// These settings, but for those that take a restart: they are as they are in force.
    pub fn at_run_time(mut self, in_force: &Self) -> Self {
        self.keep(in_force);
        self
    }
}

/// Values by the names of their settings, as in `operation.ListProduct.ttl`.
fn named_values(settings: &Settings) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    // Every setting is a string, a number, a list or a table of these, which TOML can always express.
    collect("", Table::try_from(settings).unwrap_or_default(), &mut values);
    values
}

fn collect(prefix: &str, table: Table, values: &mut BTreeMap<String, Value>) {
    for (name, value) in table {
        let name = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) => collect(&name, inner, values),
            Value::Array(entries) if entries.iter().any(Value::is_table) => {
                for (index, entry) in entries.into_iter().enumerate() {
                    let called = ["name", "id"].iter().find_map(|field| entry.get(field)?.as_str().map(str::to_owned));
                    let called = called.unwrap_or_else(|| index.to_string());
                    collect(&name, Table::from_iter([(called, entry)]), values);
                }
            }
            value => {
                values.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn settings(text: &str) -> Settings {
        Config::from_layers("test.toml", &format!("region = \"r-1\"\n{text}"), &[]).unwrap().settings
    }

    #[test]
    fn what_differs_is_told_by_name() {
        let in_force = settings(
            "[[operation]]\nname = \"Zones\"\npath = \"/v2/{project_id}/zones\"\nbody = \"json\"\n\
             [[operation]]\nname = \"ListProduct\"\nttl = \"1h\"\n[upstream]\nca_file = \"a.pem\"",
        );
        let given = settings(
            "mode = \"bypass\"\n[cache]\nkeyed_headers = []\n[[operation]]\nname = \"ListProduct\"\nttl = \"2h\"\n\
             [[operation]]\nname = \"Zones\"\npath = \"/v2/{project_id}/zones\"\nbody = \"json\"\ndefaults = { a = \"b\" }",
        );
        let changes = SettingsDiff::between(&in_force, &given);
        let expected = [
            "cache.keyed_headers",
            "mode",
            "operation.ListProduct.ttl",
            "operation.Zones.defaults.a",
            "upstream.ca_file",
        ];
        let mut applied = changes.applied;
        applied.sort();
        assert_eq!((applied.as_slice(), changes.at_restart), (expected.map(str::to_owned).as_slice(), Vec::new()));
        assert_eq!(SettingsDiff::between(&given, &given), SettingsDiff::default());
    }

    #[test]
    fn an_order_is_a_change_too() {
        let entries = ["[[operation]]\nname = \"ListProduct\"\n", "[[operation]]\nname = \"ListProducts\"\n"];
        let changes =
            SettingsDiff::between(&settings(&entries.concat()), &settings(&(entries[1].to_owned() + entries[0])));
        assert_eq!(changes.applied, ["operation"]);
    }

    #[test]
    fn what_takes_a_restart_is_told_with_both_values_and_stays() {
        let in_force = settings("");
        let given = settings(
            "[listen]\nproxy = \"127.0.0.1:1\"\nmetrics = \"127.0.0.1:2\"\nadmin = \"127.0.0.1:3\"\n\
             [upstream]\nmax_calls = 1\nmax_calls_per_caller = 2\n[cache]\nmax_size = \"9MiB\"\nttl = \"1s\"\n\
             [limits]\nmax_connections = 3\n[log]\nformat = \"json\"",
        );
        let changes = SettingsDiff::between(&in_force, &given);
        assert_eq!(changes.applied, ["cache.ttl"]);
        let mut told: Vec<_> = changes.at_restart.iter().map(|it| it.setting.clone()).collect();
        let at_restart = Setting::all().iter().filter(|setting| setting.applies == Applies::AtRestart);
        let mut all: Vec<_> = at_restart.map(Setting::name).collect();
        told.sort_unstable();
        all.sort_unstable();
        assert_eq!(told, all);
        let proxy = changes.at_restart.iter().find(|it| it.setting == "listen.proxy").unwrap();
        assert_eq!((proxy.in_force.as_str(), proxy.given.as_str()), ("127.0.0.1:8080", "127.0.0.1:1"));
        let effective = given.clone().at_run_time(&in_force);
        assert_eq!(SettingsDiff::between(&in_force, &effective).at_restart, []);
        assert_eq!(SettingsDiff::between(&effective, &given).applied, Vec::<String>::new());
    }

    #[test]
    fn what_a_change_calls_for_is_told_by_the_setting_that_it_is_about() {
        use FollowUp::{SetLogLevel, TellUpstream, WarnOfCertificate, WarnOfPlaintext};
        for (name, expected) in [
            ("region", &[TellUpstream][..]),
            ("upstream.appstream_url", &[TellUpstream]),
            ("operation.Zones.defaults.a", &[TellUpstream]),
            ("listen.cert_file (what is in it)", &[WarnOfPlaintext, WarnOfCertificate]),
            ("listen.insecure_plaintext", &[WarnOfPlaintext]),
            ("log.level", &[SetLogLevel]),
            ("listen.admin_token.file", &[]),
            ("regions", &[]),
        ] {
            let changes = SettingsDiff { applied: vec![name.to_owned()], ..SettingsDiff::default() };
            let all = [SetLogLevel, TellUpstream, WarnOfPlaintext, WarnOfCertificate];
            let called_for: Vec<_> = all.into_iter().filter(|it| changes.call_for(*it)).collect();
            assert_eq!(called_for, expected, "{name}");
        }
    }
}
