//! The last part of the demo: upstream enforces a quota, and no client gets a 429. First the gateway learns the limit from
//! a refusal. Then it sends no call that upstream would refuse.

use std::io::{self, Write as _};
use std::time::Duration;

use http::StatusCode;

use super::steps::{DemoCaller, UpstreamState};
use super::{DemoSetup, PROJECT, row, summary};
use crate::catalogue::{Quota, QuotaPolicy};
use crate::clock::Clock;
use crate::simulator::{EnforcedQuota, QuotaRecord, QuotaWindow};
use crate::stream::BoxError;

const PATH: &str = "/v2/PROJECT/products";
/// A longer window than upstream's 1 s, so that calls that a busy machine delays do not arrive in the next one.
const QUOTA: Quota = Quota { calls: 5, window: Duration::from_secs(2) };
/// The numbers of different requests that are sent at once, and what the gateway knows then.
const BURSTS: [(usize, &str); 2] = [(6, "at once: one is refused"), (6, "at once: limit is known")];

impl DemoSetup {
    /// Sends more different requests than upstream's quota allows. True if all were answered 200, with one accepted call
    /// for each.
    pub(super) async fn perform_throttled(&self) -> Result<bool, BoxError> {
        let mut out = io::stdout();
        writeln!(
            out,
            "\nNow upstream accepts {} calls in {} s from one address, and the gateway has one.\n",
            QUOTA.calls,
            QUOTA.window.as_secs()
        )?;
        writeln!(out, "{}\nGET {PATH}", row("query", "what happens", "", "slowest", "upstream 429s", "answered from"))?;
        self.set(UpstreamState::Healthy);
        self.simulator.set_quota(EnforcedQuota::new(QuotaPolicy::Ip, QUOTA, QuotaWindow::Sliding));
        let record = || self.simulator.quota_record(None, QuotaPolicy::Ip).unwrap_or_default();
        let (mut asked, mut all_expected, mut slowest_of_all) = (0, true, Duration::ZERO);
        for (count, note) in BURSTS {
            let before = record().refused;
            let (first, last) = (asked + 1, asked + count);
            let target = |offset: usize| format!("{}?offset={offset}", PATH.replace("PROJECT", PROJECT));
            let start = Clock::System.timer_now();
            let replies = self.send_all(DemoCaller::First, (first..=last).map(target).collect()).await?;
            let slowest = Clock::System.timer_now().saturating_duration_since(start);
            let is_good = replies.iter().all(|reply| reply.status == StatusCode::OK && reply.products > 0);
            let status = if is_good { "200" } else { "429" };
            let (query, note) = (format!("offset={first} … offset={last}"), format!("{count} {note}"));
            let latency = format!("{:.1} s", slowest.as_secs_f64());
            let refused = (record().refused - before).to_string();
            let row = row(&query, &note, status, &latency, &refused, &summary(&replies));
            writeln!(out, "{row}{}", if is_good { "" } else { "  ← unexpected" })?;
            (asked, all_expected, slowest_of_all) = (last, all_expected && is_good, slowest_of_all.max(slowest));
        }
        let QuotaRecord { accepted, refused, .. } = record();
        self.simulator.clear_quotas();
        let seen = if all_expected { "no client saw one" } else { "clients saw them" };
        writeln!(
            out,
            "\nUpstream accepted {accepted} calls for {asked} client requests, and answered {refused} with 429: {seen}. \
             The slowest request took {:.1} s.",
            slowest_of_all.as_secs_f64()
        )?;
        Ok(all_expected && accepted == asked as u64)
    }
}
