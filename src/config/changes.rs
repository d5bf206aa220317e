//! The difference between the settings in force and newly read ones, and which changes need a restart. Values are shown
//! only of settings that need a restart, because none of these is a secret.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::Settings;
use super::table::{Applies, FollowUp, Setting, display_value};

/// The result of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsDiff {
    /// The names of settings that have changed.
    pub applied: Vec<String>,
    /// Settings that keep their value until a restart.
    pub at_restart: Vec<AtRestart>,
}

/// A changed setting that needs a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtRestart {
    pub setting: String,
    /// The value until the restart.
    pub in_force: String,
    /// The value after the restart.
    pub given: String,
}

impl SettingsDiff {
    /// Compares newly read settings (`given`) with those in force.
    pub fn between(in_force: &Settings, given: &Settings) -> Self {
        let (old, new) = (named_values(in_force), named_values(given));
        let differing = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
        let differing = differing.filter(|name| old.get(*name) != new.get(*name));
        let needs_restart =
            |name: &String| Setting::of(name).is_some_and(|setting| setting.applies == Applies::AtRestart);
        let (at_restart, mut applied): (Vec<_>, Vec<_>) = differing.cloned().partition(needs_restart);
        // Entries are compared by name, so a new order of the entries does not show in the values.
        if in_force.operation != given.operation && !applied.iter().any(|name| name.starts_with("operation")) {
            applied.push("operation".to_owned());
        }
        let value =
            |values: &BTreeMap<String, Value>, name: &str| values.get(name).map_or_else(String::new, display_value);
        let at_restart = at_restart.into_iter().map(|setting| AtRestart {
            in_force: value(&old, &setting),
            given: value(&new, &setting),
            setting,
        });
        Self { applied, at_restart: at_restart.collect() }
    }

    /// Whether a changed setting requires this action.
    pub fn call_for(&self, follow_up: FollowUp) -> bool {
        let settings = self.applied.iter().filter_map(|name| Setting::of(name));
        settings.flat_map(|setting| setting.follow_ups).any(|it| *it == follow_up)
    }
}

impl Settings {
    /// These settings, except that those that need a restart have their values in force.
    pub fn with_restart_settings_of(mut self, in_force: &Self) -> Self {
        self.keep(in_force);
        self
    }
}

/// The values by setting name, such as `operation.ListProduct.ttl`.
fn named_values(settings: &Settings) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    // This cannot fail: every setting is a string, a number, a list or a table of these.
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
                    let entry_name =
                        ["name", "id"].iter().find_map(|field| entry.get(field)?.as_str().map(str::to_owned));
                    let entry_name = entry_name.unwrap_or_else(|| index.to_string());
                    collect(&name, Table::from_iter([(entry_name, entry)]), values);
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
    fn changed_settings_are_listed_by_name() {
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
    fn a_new_order_of_entries_is_a_change() {
        let entries = ["[[operation]]\nname = \"ListProduct\"\n", "[[operation]]\nname = \"ListProducts\"\n"];
        let changes =
            SettingsDiff::between(&settings(&entries.concat()), &settings(&(entries[1].to_owned() + entries[0])));
        assert_eq!(changes.applied, ["operation"]);
    }

    #[test]
    fn a_setting_that_needs_a_restart_keeps_its_value_and_is_listed_with_both() {
        let in_force = settings("");
        let given = settings(
            "[listen]\nproxy = \"127.0.0.1:1\"\nmetrics = \"127.0.0.1:2\"\nadmin = \"127.0.0.1:3\"\n\
             [upstream]\nmax_calls = 1\nmax_calls_per_caller = 2\n[cache]\nmax_size = \"9MiB\"\nsnapshot = \"/s\"\nttl = \"1s\"\n\
             [fleet]\nengine = \"rediss://host\"\nname = \"n\"\nsecret = \"0123456789abcdef0123456789abcdef\"\n\
             password = \"p\"\nca_file = \"/ca\"\ncert_file = \"/c\"\nkey_file = \"/k\"\nbudget = \"4ms\"\nsync = \"2s\"\ngrants = false\n\
             max_body_size = \"2MiB\"\ninsecure_plaintext = true\n\
             [limits]\nmax_connections = 3\n[log]\nformat = \"json\"\n\
             [otlp]\nendpoint = \"https://a\"\ntraces_endpoint = \"https://b\"\nmetrics_endpoint = \"https://c\"\n\
             protocol = \"grpc\"\nheaders = \"a=b\"\nca_file = \"/o\"\ntimeout = \"1s\"\ntraces = false\n\
             sampler = \"always_on\"\nsampling_rate = 0.1\nmax_queue = 2\nmax_batch = 1\nbatch_delay = \"1s\"\n\
             retry_for = \"1s\"\nmetrics = false\nmetrics_interval = \"1s\"\nservice_name = \"s\"\n\
             resource_attributes = \"a=b\"",
        );
        let changes = SettingsDiff::between(&in_force, &given);
        assert_eq!(changes.applied, ["cache.ttl"]);
        let mut listed: Vec<_> = changes.at_restart.iter().map(|it| it.setting.clone()).collect();
        let at_restart = Setting::all().iter().filter(|setting| setting.applies == Applies::AtRestart);
        let mut all: Vec<_> = at_restart.map(Setting::name).collect();
        listed.sort_unstable();
        all.sort_unstable();
        assert_eq!(listed, all);
        let proxy = changes.at_restart.iter().find(|it| it.setting == "listen.proxy").unwrap();
        assert_eq!((proxy.in_force.as_str(), proxy.given.as_str()), ("127.0.0.1:8080", "127.0.0.1:1"));
        let effective = given.clone().with_restart_settings_of(&in_force);
        assert_eq!(SettingsDiff::between(&in_force, &effective).at_restart, []);
        assert_eq!(SettingsDiff::between(&effective, &given).applied, Vec::<String>::new());
    }

    #[test]
    fn a_change_requires_the_actions_of_its_setting() {
        use FollowUp::{LogUpstream, SetLogLevel, WarnAboutCertificate, WarnAboutPlaintext};
        for (name, expected) in [
            ("region", &[LogUpstream][..]),
            ("upstream.appstream_url", &[LogUpstream]),
            ("operation.Zones.defaults.a", &[LogUpstream]),
            ("listen.cert_file (file content)", &[WarnAboutPlaintext, WarnAboutCertificate]),
            ("listen.insecure_plaintext", &[WarnAboutPlaintext]),
            ("log.level", &[SetLogLevel]),
            ("listen.admin_token.file", &[]),
            ("regions", &[]),
        ] {
            let changes = SettingsDiff { applied: vec![name.to_owned()], ..SettingsDiff::default() };
            let all = [SetLogLevel, LogUpstream, WarnAboutPlaintext, WarnAboutCertificate];
            let called_for: Vec<_> = all.into_iter().filter(|it| changes.call_for(*it)).collect();
            assert_eq!(called_for, expected, "{name}");
        }
    }
}
