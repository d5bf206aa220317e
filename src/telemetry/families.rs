//! The macro that declares metric families, and what it needs to create and register them.

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use strum::VariantArray;

/// From a hit in memory (50 µs) to an upstream at its limits (60 s), in seconds.
pub(super) const BUCKETS: [f64; 19] = [
    50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0,
];

/// Declares a struct with some fields of its own and one field for each metric family, and a constructor that creates and
/// registers all families. A family is `field: kind = "name" ["label", …] { initial series }, "help";`. The initial series
/// are optional.
macro_rules! families {
    (
        $(#[$outer:meta])* pub struct $metrics:ident { $($own_vis:vis $own:ident: $type:ty,)* }
        $($field:ident: $kind:ident = $name:literal [$($label:literal),*] $({ $series:expr })?, $help:literal;)*
    ) => {
        $(#[$outer])*
        pub struct $metrics {
            registry: prometheus::Registry,
            $($own_vis $own: $type,)*
            $(pub $field: $kind,)*
        }

        impl $metrics {
            fn register_all() -> prometheus::Result<Self> {
                let registry = prometheus::Registry::new();
                $(
                    let opts = prometheus::Opts::new($name, $help);
                    let $field: $kind = crate::telemetry::families::register(&registry, opts, &[$($label),*])?;
                    $(crate::telemetry::families::start_at_zero(&$field, $series);)?
                )*
                Ok(Self { registry, $($own: <$type>::default(),)* $($field,)* })
            }
        }
    };
}

pub(super) use families;

/// A kind of metric family, without labels or with some.
pub(super) trait Family: Collector + Clone + 'static {
    fn create(opts: Opts, labels: &[&str]) -> prometheus::Result<Self>;
}

impl Family for IntCounter {
    fn create(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Family for IntGauge {
    fn create(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Family for Gauge {
    fn create(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Family for IntCounterVec {
    fn create(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(opts, labels)
    }
}

impl Family for IntGaugeVec {
    fn create(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(opts, labels)
    }
}

impl Family for GaugeVec {
    fn create(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(opts, labels)
    }
}

impl Family for HistogramVec {
    fn create(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(HistogramOpts::from(opts).buckets(BUCKETS.to_vec()), labels)
    }
}

/// # Errors
/// If another family has the same name.
pub(super) fn register<F: Family>(registry: &Registry, opts: Opts, labels: &[&str]) -> prometheus::Result<F> {
    let family = F::create(opts, labels)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

/// Creates series before their first event, because a series that begins with 1 shows no rate for that event.
pub(super) fn start_at_zero<'v, B: MetricVecBuilder>(
    family: &MetricVec<B>,
    series: impl IntoIterator<Item: AsRef<[&'v str]>>,
) {
    series.into_iter().for_each(|values| drop(family.with_label_values(values.as_ref())));
}

/// The values of a label that are the names of an enum's variants.
pub(super) fn each<E: VariantArray + Copy + Into<&'static str>>() -> impl Iterator<Item = [&'static str; 1]> {
    E::VARIANTS.iter().map(|&variant| [variant.into()])
}

/// The pairs of values of two labels that are the names of two enums' variants.
pub(super) fn pairs<A, B>() -> impl Iterator<Item = [&'static str; 2]>
where
    A: VariantArray + Copy + Into<&'static str>,
    B: VariantArray + Copy + Into<&'static str>,
{
    A::VARIANTS.iter().flat_map(|&first| B::VARIANTS.iter().map(move |&second| [first.into(), second.into()]))
}
