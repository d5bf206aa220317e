//! How often settings were read again, and what came of it.

use prometheus::{IntCounterVec, IntGauge, Opts};
use strum::{IntoStaticStr, VariantArray};

use super::metrics::Metrics;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Reload {
    /// Other settings are in force from then on.
    Applied,
    /// Something was wrong, and nothing has changed.
    Refused,
    /// Nothing was different that can change at run time.
    Unchanged,
}

/// Counts them.
pub struct Reloads {
    reloads: IntCounterVec,
    last: IntGauge,
}

impl Reloads {
    /// None so far.
    ///
    /// # Errors
    /// If they are counted there already.
    pub fn new(metrics: &Metrics) -> prometheus::Result<Self> {
        let help = "Times that settings were read again, on a signal or because a file had changed. A rise of \
                    `refused`: there is a mistake in the file, the log names it, and the settings from before stay in \
                    force.";
        let reloads = IntCounterVec::new(Opts::new("workspace_gateway_reloads_total", help), &["result"])?;
        for &result in Reload::VARIANTS {
            reloads.with_label_values(&[result.into_str()]);
        }
        metrics.register(Box::new(reloads.clone()))?;
        let help = "Whether the settings that were read last were in order: 1, or 0. Anything but 1: there is a mistake in \
                    the file, and a restart would end with status 2.";
        let last = IntGauge::new("workspace_gateway_last_reload_successful", help)?;
        last.set(1);
        metrics.register(Box::new(last.clone()))?;
        Ok(Self { reloads, last })
    }

    /// Counts one.
    pub fn count(&self, result: Reload) {
        self.reloads.with_label_values(&[result.into_str()]).inc();
        self.last.set(i64::from(result != Reload::Refused));
    }
}
