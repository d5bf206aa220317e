//! `[[quota]]`: limits of upstream that an operator knows. Checks the entries against the operations. Nothing here holds
//! back a call.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Settings;
use super::entries::Entry;
use super::enums::{PolicyName, ServiceName};
use super::names::OperationName;
use super::redact::redacted;
use super::setting_error::SettingError;
use super::units::written_as_text;
use crate::catalogue::{Catalogue, ConfiguredQuota, Quota, QuotaPolicy};

/// `[[quota]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct QuotaSettings {
    pub service: ServiceName,
    pub policy: PolicyName,
    /// Only with policy `api`. `None`: each operation of the service has this quota.
    pub operation: Option<OperationName>,
    pub limit: QuotaLimit,
    /// Required, unless there is no limit.
    pub window: Option<QuotaWindow>,
}

impl Entry for QuotaSettings {
    const EXPECTED: &'static str = "entries of the form [[quota]], each with a service, a policy and a limit";
}

/// The most calls in a window: a number, or `"none"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaLimit {
    /// From 1 to 1,000,000.
    Calls(u32),
    /// Upstream has no such limit, whatever its refusals say.
    Unlimited,
}

/// The value of `limit` if there is no limit.
const UNLIMITED: &str = "none";

impl<'de> Deserialize<'de> for QuotaLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrNone;

        impl Visitor<'_> for NumberOrNone {
            type Value = QuotaLimit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of calls from 1 to 1000000, or \"none\" if there is no such limit")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<QuotaLimit, E> {
                let calls = u32::try_from(number).ok().filter(|calls| (1..=1_000_000).contains(calls));
                calls.map(QuotaLimit::Calls).ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<QuotaLimit, E> {
                let unlimited = (text == UNLIMITED).then_some(QuotaLimit::Unlimited);
                unlimited.ok_or_else(|| E::invalid_value(Unexpected::Str(&redacted(text)), &self))
            }
        }

        deserializer.deserialize_any(NumberOrNone)
    }
}

impl Serialize for QuotaLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Calls(calls) => serializer.serialize_u32(*calls),
            Self::Unlimited => serializer.serialize_str(UNLIMITED),
        }
    }
}

/// The window of a quota.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct QuotaWindow(pub Duration);

written_as_text!(
    QuotaWindow,
    "a duration from 100ms to 1h with a unit, such as \"1s\" or \"5m\"",
    |text| {
        let window = humantime::parse_duration(text).ok()?;
        (Duration::from_millis(100)..=Duration::from_secs(60 * 60)).contains(&window).then_some(QuotaWindow(window))
    },
    |window| humantime::format_duration(window.0).to_string()
);

/// # Errors
/// The first error, with the index of its entry.
pub(super) fn check(settings: &Settings, catalogue: &Catalogue) -> Result<Vec<ConfiguredQuota>, SettingError> {
    let (mut quotas, mut seen) = (Vec::new(), HashSet::new());
    for (index, entry) in settings.quota.iter().enumerate() {
        let place = format!("quota[{index}]");
        let (service, policy) = (entry.service.0, entry.policy.0);
        let operation = entry.operation.as_ref();
        let operation = operation.map(|name| find_operation(&place, entry, name, catalogue)).transpose()?;
        let configured = ConfiguredQuota { service, policy, operation, quota: quota_of(&place, entry)? };
        if !seen.insert((service, policy, configured.operation.clone())) {
            let subject = subject(&configured);
            return Err(SettingError::from(format!("{place}: {subject} appears twice: expected one entry for it")));
        }
        quotas.push(configured);
    }
    Ok(quotas)
}

fn find_operation(
    place: &str,
    entry: &QuotaSettings,
    name: &OperationName,
    catalogue: &Catalogue,
) -> Result<Arc<str>, SettingError> {
    let (service, policy) = (entry.service.0, entry.policy.0);
    let wrong =
        |expected: &str| SettingError::from(format!("{place}.operation: {name:?} is not allowed: expected {expected}"));
    if policy != QuotaPolicy::Api {
        let policy = policy.into_str();
        return Err(wrong(&format!(
            "none, because policy = {policy:?} counts calls of all operations; only \"api\" has one"
        )));
    }
    let of_service = || catalogue.operations().iter().filter(|operation| operation.service == service);
    let found = of_service().find(|operation| *operation.name == *name.0);
    found.map(|operation| Arc::clone(&operation.name)).ok_or_else(|| {
        let names = of_service().map(|operation| &*operation.name).collect::<Vec<_>>().join(", ");
        wrong(&format!("an operation of {} ({names})", service.as_str())).depending_on(&["operation"])
    })
}

fn quota_of(place: &str, entry: &QuotaSettings) -> Result<Option<Quota>, SettingError> {
    match (entry.limit, entry.window) {
        (QuotaLimit::Calls(calls), Some(QuotaWindow(window))) => Ok(Some(Quota { calls, window })),
        (QuotaLimit::Calls(_), None) => Err(SettingError::from(format!(
            "{place}: missing field `window`, expected a duration such as \"1s\" in each [[quota]] without limit = \"none\""
        ))),
        (QuotaLimit::Unlimited, Some(window)) => Err(SettingError::from(format!(
            "{place}.window: {window:?} is not allowed: expected none, because limit = \"none\""
        ))),
        (QuotaLimit::Unlimited, None) => Ok(None),
    }
}

/// What a quota is of.
fn subject(configured: &ConfiguredQuota) -> String {
    let ConfiguredQuota { service, policy, operation, .. } = configured;
    let operation = match (policy, operation) {
        (QuotaPolicy::Api, Some(name)) => format!(", operation {name}"),
        (QuotaPolicy::Api, None) => ", each operation".to_owned(),
        _ => String::new(),
    };
    format!("policy {} of {}{operation}", policy.into_str(), service.as_str())
}

/// One line about an entry, for `check`.
pub(super) fn describe(configured: &ConfiguredQuota) -> String {
    let quota = configured.quota.map_or_else(|| "no limit".to_owned(), |quota| format!("{quota}"));
    format!("quota: {}: {quota}", subject(configured))
}

#[cfg(test)]
mod tests;
