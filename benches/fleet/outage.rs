//! What gateways that were all restarted during an outage of upstream still answer, compared with one that was not.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, sleep, sleep_until};

use super::engine::Engine;
use super::limits::{Limits, tell};
use super::world::{Member, STORED, Services, now, tokens};

const GATEWAYS: usize = 3;
const CALLERS: usize = 60;
const LISTS: usize = 8;
/// Of the answers of the gateway that was not restarted, in percent.
const LEAST: f64 = 99.0;
/// So long after a start a gateway is not in sync.
const SETTLING: Duration = Duration::from_secs(2);

/// What has become of the entries and the grants when the gateways start.
struct Age {
    name: &'static str,
    settings: &'static str,
    pause: Duration,
}

const SHORT_TTL: &str = "[cache]\nttl = \"2s\"\nttl_jitter = \"0%\"\nstale_while_revalidate = \"0s\"\n";
/// Longer than the 5 s by which an entry of another gateway may be newer than it seems.
const SHORT_GRANTS: &str = "[cache]\nttl = \"2s\"\nttl_jitter = \"0%\"\nstale_while_revalidate = \"0s\"\n\
    [grants]\ngrant_ttl = \"7s\"\nrenew_ahead = \"0s\"\n";

const AGES: [Age; 3] = [
    Age { name: "fresh", settings: "", pause: Duration::ZERO },
    Age { name: "stale", settings: SHORT_TTL, pause: Duration::from_millis(2_200) },
    Age { name: "stale, grants lapsed", settings: SHORT_GRANTS, pause: Duration::from_millis(7_200) },
];

pub(crate) async fn measure(limits: &mut Limits) {
    println!("{GATEWAYS} gateways that are restarted during an outage, {CALLERS} callers, {LISTS} lists");
    for age in AGES {
        measure_age(limits, age).await;
    }
}

async fn measure_age(limits: &mut Limits, Age { name, settings, pause }: Age) {
    let engine = Engine::start().await;
    let settings = format!("{settings}{}", engine.settings());
    let services = Services::new(Duration::from_millis(5));
    let mut members = Member::fleet(&services, &settings, GATEWAYS + 1).await;
    let unrestarted = members.remove(0);
    let callers = tokens("caller", CALLERS);
    for (number, member) in members.iter().enumerate() {
        let own: Vec<String> = callers.iter().skip(number).step_by(GATEWAYS).cloned().collect();
        let before = member.metric(STORED);
        member.prove(&own, "0").await;
        for list in (0..LISTS).skip(number).step_by(GATEWAYS) {
            assert_eq!(member.ask(&own[0], &list.to_string()).await, Some(StatusCode::OK));
        }
        member.until(STORED, |stored| stored > before).await;
    }
    // It knows all of them, too.
    unrestarted.ask_all(&callers, "0").await;
    for (list, caller) in callers.iter().take(LISTS).enumerate() {
        unrestarted.ask(caller, &list.to_string()).await;
    }
    sleep(Duration::from_millis(100)).await;
    drop(members);
    services.fail();
    sleep(pause).await;

    let restarted: Vec<_> = (0..GATEWAYS).map(|_| Arc::new(Member::new(&services, &settings, true))).collect();
    let begun = now();
    let early = ask_both(&unrestarted, &restarted, &callers, begun).await;
    for member in &restarted {
        member.until_in_sync().await;
    }
    let late = ask_both(&unrestarted, &restarted, &callers, now()).await;
    let shown = |counts: [usize; 2]| format!("{} without restart, {} with", counts[0], counts[1]);
    tell(&format!("{name}: 200s of {} in the first 2 s", CALLERS * LISTS), &shown(early));
    tell(&format!("{name}: 200s of {} in sync", CALLERS * LISTS), &shown(late));
    limits.at_least("  without restart", late[0] as f64, 0.9 * (CALLERS * LISTS) as f64);
    limits.at_least("  answers after a restart, in sync (%)", 100.0 * late[1] as f64 / late[0].max(1) as f64, LEAST);
}

/// Each caller asks for each list, within about 2 s. Returns the number of 200s of the gateway that was not restarted, and of
/// the others.
async fn ask_both(unrestarted: &Member, restarted: &[Arc<Member>], callers: &[String], begun: Instant) -> [usize; 2] {
    let mut counts = [0; 2];
    for number in 0..CALLERS * LISTS {
        let share = number as f64 / (CALLERS * LISTS) as f64;
        sleep_until(begun + SETTLING.mul_f64(0.9 * share)).await;
        // Each caller at each gateway.
        let (caller, list) = (&callers[number % CALLERS], (number / CALLERS).to_string());
        let member = &restarted[(number + number / CALLERS) % GATEWAYS];
        let answers = tokio::join!(unrestarted.ask(caller, &list), member.ask(caller, &list));
        for (count, answer) in counts.iter_mut().zip([answers.0, answers.1]) {
            *count += usize::from(answer == Some(StatusCode::OK));
        }
    }
    counts
}
