//! Which requests have spans: by the flag in `traceparent`, or by a rate. Pure.

use crate::config::otlp::SamplerName;
use crate::request::trace::TraceContext;

/// Decides as the samplers of OpenTelemetry's SDKs do: the same trace is sampled or not by all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampler {
    /// Whether the flag of the parent decides if there is a parent.
    is_parent_based: bool,
    /// A trace is sampled if 63 bits of its id are smaller.
    bound: u64,
}

impl Sampler {
    /// `rate` is from 0 to 1. It counts for the samplers that have a ratio.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
    pub(crate) fn new(name: SamplerName, rate: f64) -> Self {
        let rate = match name {
            SamplerName::AlwaysOn | SamplerName::ParentbasedAlwaysOn => 1.0,
            SamplerName::AlwaysOff | SamplerName::ParentbasedAlwaysOff => 0.0,
            SamplerName::Traceidratio | SamplerName::ParentbasedTraceidratio => rate,
        };
        let is_parent_based = matches!(
            name,
            SamplerName::ParentbasedAlwaysOn | SamplerName::ParentbasedAlwaysOff | SamplerName::ParentbasedTraceidratio
        );
        // 2^63 is exact, and larger than all 63 bits.
        Self { is_parent_based, bound: (rate * (1_u64 << 63) as f64) as u64 }
    }

    /// Whether a request without a parent begins a trace. `low_half` is that of the new trace's id.
    pub(super) fn samples_root(&self, low_half: u64) -> bool {
        low_half >> 1 < self.bound
    }

    /// Whether a request has a span whose parent is in another process.
    pub(super) fn samples_child(&self, context: &TraceContext) -> bool {
        if self.is_parent_based { context.is_sampled() } else { self.samples_root(context.trace_id.low_half()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::id::RequestIds;

    fn parent(flags: &str) -> TraceContext {
        // Half of the bits: sampled if the rate is above 0.5.
        TraceContext::parse(&format!("00-0000000000000001{:016x}-00f067aa0ba902b7-{flags}", u64::MAX / 2)).unwrap()
    }

    #[test]
    fn each_sampler_decides_by_the_parent_or_by_the_rate() {
        for (name, rate, root, sampled, not_sampled) in [
            (SamplerName::AlwaysOn, 0.0, true, true, true),
            (SamplerName::AlwaysOff, 1.0, false, false, false),
            (SamplerName::Traceidratio, 0.4, false, false, false),
            (SamplerName::Traceidratio, 0.6, true, true, true),
            (SamplerName::ParentbasedAlwaysOn, 0.0, true, true, false),
            (SamplerName::ParentbasedAlwaysOff, 1.0, false, true, false),
            (SamplerName::ParentbasedTraceidratio, 0.4, false, true, false),
            (SamplerName::ParentbasedTraceidratio, 0.6, true, true, false),
        ] {
            let sampler = Sampler::new(name, rate);
            let children = ["01", "00"].map(|flags| sampler.samples_child(&parent(flags)));
            let is_root = sampler.samples_root(parent("00").trace_id.low_half());
            assert_eq!((is_root, children), (root, [sampled, not_sampled]), "{name} {rate}");
        }
    }

    #[test]
    fn a_rate_is_the_share_of_new_traces_and_its_ends_are_exact() {
        let ids = RequestIds::new([5; 32]);
        let share = |rate| {
            let sampler = Sampler::new(SamplerName::Traceidratio, rate);
            (0..10_000).filter(|_| sampler.samples_root(ids.next().span())).count()
        };
        assert_eq!((share(0.0), share(1.0)), (0, 10_000));
        // Within five standard deviations.
        assert!(share(0.1).abs_diff(1_000) < 150);
        assert!(Sampler::new(SamplerName::Traceidratio, 1.0).samples_root(u64::MAX));
    }
}
