//! `simulate`: runs the simulated services without a gateway, on an address and with faults that flags choose, so that
//! a gateway can be tried without an account. It prints how, and each request that arrives.
//!
//! Token and access key are the same in each run, so that callers of a gateway keep their grants while the simulator is
//! restarted with other faults.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args};
use http::StatusCode;
use humantime::format_duration;

use super::failure;
use super::runtime::block_on;
use super::signals::StopSignals;
use crate::catalogue::{Quota, QuotaPolicy, Service};
use crate::clock::Clock;
use crate::config::names::Address;
use crate::config::units::{Span, Window};
use crate::simulator::{ChangeUnit, EndedRequest, EnforcedQuota, IssuedKey, QuotaWindow, Simulator};

/// The project of the simulated lists.
pub(super) const PROJECT: &str = "00000000000000000000000000000001";

/// How many characters of a target are printed.
const MAX_SHOWN: usize = 300;

const TOKEN: &str = "simulated-token";
const KEY_ID: &str = "SIMULATEDACCESSKEY01";
const KEY_SECRET: &str = "simulated-secret";

#[derive(Args)]
pub(super) struct Simulation {
    /// The address for the gateway. With port 0 the system chooses the port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8070")]
    listen: Address,
    /// Lists change at random moments, with this mean interval.
    #[arg(long, value_name = "DURATION")]
    change_every: Option<Span>,
    #[command(flatten)]
    faults: Faults,
}

#[derive(Args)]
#[command(next_help_heading = "Faults", group = ArgGroup::new("fault").multiple(true))]
struct Faults {
    /// Send each response after this time. With 1h, upstream hangs.
    #[arg(long, value_name = "DURATION", group = "fault")]
    latency: Option<Span>,
    /// Answer with this status, from 400 to 599.
    #[arg(long, value_name = "STATUS", groups = ["failure", "fault"], value_parser = status)]
    status: Option<StatusCode>,
    /// Send this Retry-After with --status, in seconds.
    #[arg(long, value_name = "SECONDS", requires = "status")]
    retry_after: Option<u32>,
    /// Close connections without a response.
    #[arg(long, groups = ["failure", "fault"])]
    reset: bool,
    /// Refuse connections.
    #[arg(long, groups = ["failure", "fault"])]
    refuse: bool,
    /// Only this part of the requests gets --status or --reset, such as 20%.
    #[arg(long, value_name = "PERCENT", requires = "failure", conflicts_with = "refuse", value_parser = percent)]
    share: Option<u8>,
    /// Cut lists off in the middle.
    #[arg(long, group = "fault")]
    truncate: bool,
    /// Accept only so many calls in a window, such as 10/1m, and answer further ones 429.
    #[arg(long, value_name = "CALLS/WINDOW", group = "fault", value_parser = quota)]
    quota: Option<Quota>,
    /// The faults begin after this time.
    #[arg(long, value_name = "DURATION", default_value = "0s", requires = "fault")]
    after: Window,
    /// The faults end after this time. Default: never.
    #[arg(long = "for", value_name = "DURATION", requires = "fault")]
    lasting: Option<Span>,
}

fn status(text: &str) -> Result<StatusCode, &'static str> {
    let status = text.parse::<StatusCode>().ok();
    let is_error = |status: &StatusCode| status.is_client_error() || status.is_server_error();
    status.filter(is_error).ok_or("expected a number from 400 to 599")
}

fn percent(text: &str) -> Result<u8, &'static str> {
    let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
    percent.filter(|percent| (1..=100).contains(percent)).ok_or("expected a part from 1% to 100%")
}

fn quota(text: &str) -> Result<Quota, &'static str> {
    let read = || {
        let (calls, window) = text.split_once('/')?;
        let calls = calls.parse().ok().filter(|calls| (1..=1_000_000).contains(calls))?;
        Some(Quota { calls, window: window.parse::<Span>().ok()?.0 })
    };
    read().ok_or("expected a number of calls and a duration, such as 10/1m")
}

impl Faults {
    async fn begin(&self, simulator: &Simulator) {
        simulator.delay(self.latency.map_or(Duration::ZERO, |latency| latency.0));
        simulator.fail_with(self.status);
        simulator.retry_after(self.retry_after);
        simulator.reset_connections(self.reset);
        simulator.fail_share(self.share);
        simulator.truncate(self.truncate);
        if let Some(quota) = self.quota {
            simulator.set_quota(EnforcedQuota::new(QuotaPolicy::Ip, quota, QuotaWindow::Sliding));
        }
        if self.refuse {
            simulator.shut_down().await;
        }
    }

    /// # Errors
    /// If the simulator cannot listen again.
    fn end(&self, simulator: &Simulator) -> io::Result<()> {
        simulator.delay(Duration::ZERO);
        simulator.fail_with(None);
        simulator.reset_connections(false);
        simulator.truncate(false);
        simulator.clear_quotas();
        if self.refuse { simulator.restart() } else { Ok(()) }
    }

    /// Such as `each response after 2s; 20% of the requests get 503`. Empty without faults.
    fn describe(&self) -> String {
        let of_all =
            self.share.map_or_else(|| "each request".to_owned(), |percent| format!("{percent}% of the requests"));
        let retry_after = self.retry_after.map(|seconds| format!(" with Retry-After: {seconds}")).unwrap_or_default();
        let all = [
            self.latency.map(|latency| format!("each response is sent after {latency}")),
            self.status.map(|status| format!("{of_all}: {status}{retry_after}")),
            self.reset.then(|| format!("{of_all}: the connection is closed")),
            self.refuse.then(|| "connections are refused".to_owned()),
            self.truncate.then(|| "lists are cut off".to_owned()),
            self.quota.map(|quota| format!("at most {} calls in {}", quota.calls, format_duration(quota.window))),
        ];
        all.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

/// Runs until a signal.
pub(super) fn run(simulation: &Simulation) -> ExitCode {
    block_on(async {
        let mut signals = match StopSignals::new() {
            Ok(signals) => signals,
            Err(error) => return failure(1, &format!("cannot handle signals: {error}")),
        };
        let address = simulation.listen.0;
        let simulator = match Simulator::start_on(address).await {
            Ok(simulator) => simulator,
            Err(error) => return failure(1, &format!("cannot listen on {address} (--listen): {error}")),
        };
        simulator.add_token(PROJECT, TOKEN);
        let key = IssuedKey { id: KEY_ID.to_owned(), secret: KEY_SECRET.to_owned(), security_token: None };
        simulator.add_access_key(PROJECT, &key);
        simulator.change_catalogue_every(&ChangeUnit::Catalogue, simulation.change_every.map(|mean| mean.0), 0);
        if simulation.faults.after.0.is_zero() {
            simulation.faults.begin(&simulator).await;
        }
        say(&instructions(&simulator));
        tokio::select! {
            () = signals.received() => ExitCode::SUCCESS,
            error = inject(&simulation.faults, &simulator) => failure(1, &format!("cannot listen again: {error}")),
            () = show_requests(&simulator) => ExitCode::SUCCESS,
        }
    })
}

/// Begins the faults if they are not for the start, ends them, and prints when. Ends only with an error.
async fn inject(faults: &Faults, simulator: &Simulator) -> io::Error {
    let described = faults.describe();
    if !faults.after.0.is_zero() {
        tokio::time::sleep(faults.after.0).await;
        faults.begin(simulator).await;
    }
    if !described.is_empty() {
        say(&format!("Faults: {described}"));
        if let Some(lasting) = faults.lasting {
            tokio::time::sleep(lasting.0).await;
            if let Err(error) = faults.end(simulator) {
                return error;
            }
            say("The faults have ended");
        }
    }
    std::future::pending().await
}

/// Prints each request when it has ended. Never ends.
async fn show_requests(simulator: &Simulator) {
    let start = Clock::System.timer_now();
    loop {
        let ended = simulator.ended_requests().await;
        // Nobody reads them, and each has a credential.
        simulator.forget_requests();
        let elapsed = Clock::System.timer_now().saturating_duration_since(start).as_secs_f64();
        let mut lines = String::new();
        for EndedRequest { method, target, status, duration } in ended {
            let target: String = target.escape_debug().take(MAX_SHOWN).collect();
            let status = status.map_or_else(|| "no response".to_owned(), |status| status.as_str().to_owned());
            let milliseconds = duration.as_secs_f64() * 1000.0;
            let _ = writeln!(lines, "{elapsed:8.1} s  {status} after {milliseconds:.1} ms  {method} {target}");
        }
        say(lines.trim_end());
    }
}

/// Prints lines. A closed output does not stop the simulator. One that is not read does.
fn say(lines: &str) {
    let _ = writeln!(io::stdout(), "{lines}");
}

/// How to use the simulator with a gateway on its default address.
fn instructions(simulator: &Simulator) -> String {
    // Not the address of a listener on all addresses.
    let url = simulator.url(Service::Workspace).replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:");
    let program =
        std::env::args().next().filter(|name| is_plain(name)).unwrap_or_else(|| "workspace-gateway".to_owned());
    format!(
        "\
Workspace and Workspace Application are simulated on {url}. Their lists are invented.

1. Start the gateway in another terminal:

  {program} serve --workspace-url {url} --appstream-url {url}

2. Send this request twice. The second response comes from memory: its Cache-Status has \"hit\".

  curl -i -H 'X-Auth-Token: {TOKEN}' 'http://127.0.0.1:8080/v2/{PROJECT}/products?limit=2'

For an SDK: endpoint http://127.0.0.1:8080, project {PROJECT}, access key {KEY_ID},
secret {KEY_SECRET}. The gateway must know the key. In step 1, set these variables, too:

  export WORKSPACE_GATEWAY_ACCESS_KEY_ID={KEY_ID} WORKSPACE_GATEWAY_ACCESS_KEY_SECRET={KEY_SECRET}

`{program} simulate --help` lists faults. Token and key stay valid if you stop the simulator and start it again.
Press Ctrl-C to stop. The calls of the gateway, when they have ended, with the time since the start:
"
    )
}

/// Whether a shell takes the text as one word.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_refused() {
        assert!(status("503").is_ok() && status("429").is_ok());
        assert!(["200", "399", "600", "x", ""].iter().all(|text| status(text).is_err()));
        assert!(percent("1%").is_ok() && percent("100%").is_ok());
        assert!(["0%", "101%", "20", "x%", ""].iter().all(|text| percent(text).is_err()));
        assert_eq!(quota("10/1m"), Ok(Quota { calls: 10, window: Duration::from_secs(60) }));
        assert!(["10", "0/1m", "x/1m", "10/0s", "10/1", "-1/1m", ""].iter().all(|text| quota(text).is_err()));
    }
}
