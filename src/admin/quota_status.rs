//! The limits of upstream in `/status`: those that are known, and what they hold back.

use std::collections::BTreeMap;

use serde::Serialize;
use strum::VariantArray;

use crate::catalogue::{QuotaPolicy, Service};
use crate::gateway::LimitState;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::series::Series;

/// A limit of upstream that is known.
#[derive(Serialize)]
pub(super) struct QuotaSummary {
    service: &'static str,
    policy: &'static str,
    /// For a limit of one operation.
    operation: Option<String>,
    calls: u32,
    window_seconds: f64,
    /// The calls that count now. For limits by user or application: of the caller with the fewest remaining.
    used: u32,
    remaining: u32,
    /// How long it is until the next call can be sent; 0 if one can be sent now.
    free_in_seconds: f64,
    is_configured: bool,
    /// Whether it holds back proved callers that have not met it.
    binds_all: bool,
}

/// What the limits of one policy have done since the start.
#[derive(Serialize)]
pub(super) struct QuotaPolicySummary {
    /// Calls that they hold back now.
    waiting: u64,
    /// Calls that they have held back, if a client waited for them.
    waits: u64,
    wait_seconds: f64,
    refused_by_upstream: u64,
    refused_by_gateway: u64,
}

impl QuotaSummary {
    pub(super) fn of(service: Service, states: Vec<LimitState>) -> impl Iterator<Item = Self> {
        states.into_iter().map(move |state| Self {
            service: service.as_str(),
            policy: state.policy.into_str(),
            operation: state.operation.map(|operation| operation.to_string()),
            calls: state.quota.calls,
            window_seconds: state.quota.window.as_secs_f64(),
            used: state.used,
            remaining: state.remaining,
            free_in_seconds: state.free_in.as_secs_f64(),
            is_configured: state.is_configured,
            binds_all: state.binds_all,
        })
    }
}

impl QuotaPolicySummary {
    /// That of each policy.
    pub(super) fn of(metrics: &Metrics) -> BTreeMap<&'static str, Self> {
        let (waits, waiting) = (Series::of(&metrics.quota_wait), Series::of(&metrics.quota_waiting));
        let refusals = Series::of(&metrics.quota_refusals);
        let of_policy = |policy: &'static str| {
            let waits = waits.histogram(&[], "policy", |of| of == policy);
            let summary = Self {
                waiting: waiting.sum(&[("policy", policy)]),
                waits: waits.count,
                wait_seconds: waits.sum,
                refused_by_upstream: refusals.sum(&[("policy", policy), ("source", "upstream")]),
                refused_by_gateway: refusals.sum(&[("policy", policy), ("source", "gateway")]),
            };
            (policy, summary)
        };
        QuotaPolicy::VARIANTS.iter().map(|policy| of_policy(policy.into_str())).collect()
    }
}
