//! Upstream is dead for hours, in each of the ways in which it can be, while callers go on asking every few
//! seconds or minutes. Whoever it has proved is given what was there for just as long as is promised, then
//! just the failure, and everything is well again when upstream is.
//!
//! Hours pass at once, on the runtime's own clock, so that every answer's moment is exact.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use tokio::task::JoinSet;
use tokio::time::sleep;
use workspace_gateway::testing::budget::Account;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::stream::StreamBody;
use workspace_gateway::testing::upstream::client::FetchContext;
use workspace_gateway::testing::upstream::{PendingResponse, Upstream, UpstreamError, UpstreamResponse};

use crate::support::{PROJECT, Reply, ask, config};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

const TTL: Duration = Duration::from_secs(300);
const ERROR_TTL: Duration = Duration::from_secs(5);
const PATIENCE: Duration = SECOND;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);
/// How long upstream asks to be left alone, where it does.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// How long it takes when it is well.
const LATENCY: Duration = Duration::from_millis(200);

/// What is asked, by turns. Two are questions of one operation, for which one proof does.
const KEYS: [&str; 4] = [
    "/v2/PROJECT/products?os_type=Linux",
    "/v2/PROJECT/products?os_type=Windows",
    "/v2/PROJECT/products/sharer",
    "/v1/PROJECT/product",
];

/// How often callers ask. The slowest lets its grants lapse in good times, too.
const PACES: [Duration; 6] = [
    SECOND,
    Duration::from_secs(2),
    Duration::from_secs(7),
    Duration::from_secs(20),
    Duration::from_secs(61),
    Duration::from_secs(290),
];
/// One who is there only when upstream is dead.
const STRANGER: usize = PACES.len();

/// How upstream is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    /// Nobody can connect.
    Unreachable,
    /// 503, and when to come again.
    Unavailable,
    /// 429, and when to come again.
    Throttling,
    /// It never answers.
    Silent,
}

impl Mood {
    /// For how long it is left alone after a failure.
    fn pause(self) -> Duration {
        match self {
            Self::Unavailable | Self::Throttling => RETRY_AFTER,
            Self::Well | Self::Unreachable | Self::Silent => ERROR_TTL,
        }
    }

    /// How long a call fails for.
    fn takes(self) -> Duration {
        if self == Self::Silent { ANSWER_TIMEOUT } else { Duration::ZERO }
    }

    /// What those are told who can't be given anything: status, code, and how its words begin.
    fn failure(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Well => (StatusCode::OK, "", ""),
            Self::Unreachable => (
                StatusCode::BAD_GATEWAY,
                "APIGW.0201",
                "workspace-gateway: Backend unavailable: cannot connect to upstream.test: refused",
            ),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "WKS.00050902", "The service is unavailable"),
            Self::Throttling => {
                (StatusCode::TOO_MANY_REQUESTS, "APIGW.0308", "The throttling threshold has been reached")
            }
            Self::Silent => (
                StatusCode::GATEWAY_TIMEOUT,
                "APIGW.0201",
                "workspace-gateway: Backend timeout: no whole answer in time",
            ),
        }
    }
}

/// A call that upstream was asked.
#[derive(Clone, Copy, Debug)]
struct Call {
    caller: usize,
    key: usize,
    sent: Instant,
    is_good: bool,
}

/// Both services.
struct Services {
    mood: Mutex<Mood>,
    calls: Mutex<Vec<Call>>,
}

impl Upstream for Services {
    fn ask<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        _: &'a Account,
    ) -> PendingResponse<'a, UpstreamResponse> {
        let mood = *self.mood.lock().unwrap();
        let caller = context.credential.token().unwrap().to_str().unwrap().parse().unwrap();
        let key = KEYS.iter().position(|target| is_of(key, target)).unwrap();
        let call = Call { caller, key, sent: Clock::System.now(), is_good: mood == Mood::Well };
        self.calls.lock().unwrap().push(call);
        Box::pin(async move {
            let (status, code, words) = mood.failure();
            let mut refusal = Response::new(Bytes::from(format!(r#"{{"error_code":"{code}","error_msg":"{words}"}}"#)));
            *refusal.status_mut() = status;
            match mood {
                Mood::Well => {
                    sleep(LATENCY).await;
                    Ok(UpstreamResponse::read(Response::new(list(key))))
                }
                Mood::Unreachable => Err(UpstreamError::Connect("upstream.test: refused".to_owned())),
                Mood::Unavailable | Mood::Throttling => {
                    refusal.headers_mut().insert("retry-after", HeaderValue::from(RETRY_AFTER.as_secs()));
                    Ok(UpstreamResponse::read(refusal))
                }
                Mood::Silent => {
                    sleep(ANSWER_TIMEOUT).await;
                    Err(UpstreamError::Timeout)
                }
            }
        })
    }

    fn relay<'a>(
        &'a self,
        _: Service,
        _: &'a Origin,
        _: &'a Parts,
        _: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        panic!("nothing is to be relayed")
    }
}

fn is_of(key: &RequestKey, target: &str) -> bool {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    key.scope().path() == path.replace("PROJECT", PROJECT) && key.query() == query
}

fn list(key: usize) -> Bytes {
    format!(r#"{{"products":["of {key}"]}}"#).into()
}

/// Two questions share one.
fn scope(key: usize) -> &'static str {
    KEYS[key].split('?').next().unwrap()
}

/// What a caller was answered.
#[derive(Debug)]
struct Answer {
    caller: usize,
    key: usize,
    begun: Instant,
    ended: Instant,
    reply: Reply,
}

/// An outage: how long what may be given.
#[derive(Clone, Copy)]
struct Outage {
    mood: Mood,
    stale_if_error: Duration,
    grant_ttl: Duration,
    outage_grace: Duration,
    dead_for: Duration,
}

/// The same with an upstream that is well, dead and well again.
struct History {
    outage: Outage,
    died: Instant,
    revived: Instant,
    calls: Vec<Call>,
    /// Those of them that were answered well.
    good: Vec<Call>,
    answers: Vec<Answer>,
}

impl Outage {
    /// With the defaults.
    fn by_default(mood: Mood) -> Self {
        Self { mood, stale_if_error: HOUR, grant_ttl: 5 * MINUTE, outage_grace: HOUR, dead_for: 2 * HOUR }
    }

    async fn happens(self) -> History {
        let settings = format!(
            "[cache]\nttl_jitter = \"0%\"\nstale_if_error = \"{}s\"\n[grants]\n\
             grant_ttl = \"{}s\"\noutage_grace = \"{}s\"\n",
            self.stale_if_error.as_secs(),
            self.grant_ttl.as_secs(),
            self.outage_grace.as_secs()
        );
        let services = Arc::new(Services { mood: Mutex::new(Mood::Well), calls: Mutex::default() });
        let upstream = Arc::clone(&services);
        let config = config("http://upstream.test", "http://upstream.test", &settings);
        let gateway = Gateway::before(upstream, &config, Clock::System, Random::System).unwrap();
        let answers = Arc::new(Mutex::new(Vec::new()));
        let mut asking = JoinSet::new();
        for (caller, pace) in PACES.into_iter().enumerate() {
            asking.spawn(go_on_asking(Arc::clone(&gateway), caller, pace, Arc::clone(&answers)));
        }
        // Not by the second, or everything would happen at once.
        sleep(40 * MINUTE + SECOND / 2).await;
        *services.mood.lock().unwrap() = self.mood;
        let died = Clock::System.now();
        asking.spawn(go_on_asking(gateway, STRANGER, MINUTE, Arc::clone(&answers)));
        sleep(self.dead_for).await;
        *services.mood.lock().unwrap() = Mood::Well;
        let revived = Clock::System.now();
        sleep(30 * MINUTE).await;
        asking.shutdown().await;
        let calls = services.calls.lock().unwrap().clone();
        let good = calls.iter().filter(|call| call.is_good).copied().collect();
        let answers = std::mem::take(&mut *answers.lock().unwrap());
        History { outage: self, died, revived, calls, good, answers }
    }
}

async fn go_on_asking(gateway: Arc<Gateway>, caller: usize, pace: Duration, answers: Arc<Mutex<Vec<Answer>>>) {
    for key in (0..KEYS.len()).cycle() {
        let begun = Clock::System.now();
        let reply = ask(&gateway, &caller.to_string(), KEYS[key]).await;
        answers.lock().unwrap().push(Answer { caller, key, begun, ended: Clock::System.now(), reply });
        sleep(pace.saturating_sub(Clock::System.now() - begun)).await;
    }
}

impl History {
    /// When the call of the latest proof was sent that a caller had by then, in the operation of a key.
    fn proved(&self, caller: usize, key: usize, by: Instant) -> Option<Instant> {
        self.latest(by, |call| call.caller == caller && scope(call.key) == scope(key))
    }

    /// When the call was sent by which the answer was kept that was there by then.
    fn kept(&self, key: usize, by: Instant) -> Option<Instant> {
        self.latest(by, |call| call.key == key)
    }

    fn latest(&self, by: Instant, like: impl Fn(&Call) -> bool) -> Option<Instant> {
        let landed = self.good.partition_point(|call| call.sent + LATENCY <= by);
        self.good[..landed].iter().rfind(|call| like(call)).map(|call| call.sent)
    }

    /// Until when a caller is given something without fail, as things are at a moment. A grant that has ended shows nothing
    /// that was asked for after its end.
    fn promised_until(&self, caller: usize, key: usize, now: Instant) -> Option<Instant> {
        let (kept, proved) = (self.kept(key, now)?, self.proved(caller, key, now)?);
        let ended = proved + self.outage.grant_ttl;
        let until = (kept + TTL + self.outage.stale_if_error).min(proved + self.outage.outage_grace);
        (now < ended || kept <= ended).then_some(until)
    }

    fn is_granted(&self, caller: usize, key: usize, now: Instant) -> bool {
        self.proved(caller, key, now).is_some_and(|proved| now < proved + self.outage.grant_ttl)
    }

    /// Those that were asked while upstream was dead.
    fn in_the_outage(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter().filter(|answer| self.died <= answer.begun && answer.ended < self.revived)
    }

    /// What was promised, and nothing more.
    fn assert_as_promised(&self) {
        let mut counts = HashMap::<_, usize>::new();
        for answer in self.in_the_outage() {
            let promised = self.promised_until(answer.caller, answer.key, answer.ended);
            let is_promised = promised.is_some_and(|until| answer.ended < until);
            let after = answer.ended - self.died;
            if is_promised {
                assert_eq!(
                    (answer.reply.status(), answer.reply.body()),
                    (StatusCode::OK, &list(answer.key)),
                    "{after:?}: {answer:?}"
                );
            } else {
                self.assert_failure(answer, after);
            }
            *counts.entry((answer.caller == STRANGER, is_promised)).or_default() += 1;
        }
        assert_eq!(counts.get(&(true, true)), None, "nothing is promised to a stranger");
        for some in [(false, true), (false, false), (true, false)] {
            assert!(counts[&some] > 50, "{counts:?}");
        }
    }

    fn assert_failure(&self, answer: &Answer, after: Duration) {
        let (status, code, words) = self.outage.mood.failure();
        assert_eq!(answer.reply.status(), status, "{after:?}: {answer:?}");
        let body: serde_json::Value = answer.reply.json();
        assert_eq!(body["error_code"], code, "{after:?}: {answer:?}");
        assert!(body["error_msg"].as_str().unwrap().starts_with(words), "{after:?}: {answer:?}");
    }

    /// Nobody with something to be given waits longer than its patience; without, a second longer than a call may take.
    fn assert_patience(&self) {
        for answer in self.in_the_outage() {
            let is_granted = self.is_granted(answer.caller, answer.key, answer.begun + PATIENCE);
            let promised = self.promised_until(answer.caller, answer.key, answer.begun);
            let is_promised = promised.is_some_and(|until| answer.begun + PATIENCE < until);
            let limit = if is_granted && is_promised { PATIENCE } else { ANSWER_TIMEOUT + SECOND };
            assert!(answer.ended - answer.begun <= limit, "{:?}: {answer:?}", answer.ended - self.died);
        }
    }

    /// While there is something to be given, upstream is left alone between one failure and the next call.
    fn assert_few_calls(&self) {
        let Outage { mood, .. } = self.outage;
        let is_promised = |call: &&Call| {
            let until = self.promised_until(call.caller, call.key, call.sent);
            (self.died..self.revived).contains(&call.sent) && until.is_some_and(|until| call.sent < until)
        };
        let calls: Vec<_> = self.calls.iter().filter(is_promised).collect();
        // A grant's end is not the pause's: each has one more call then.
        let (granted, lapsed): (Vec<&Call>, Vec<&Call>) =
            calls.iter().partition(|call| self.is_granted(call.caller, call.key, call.sent));
        let gap = |before: &Call, after: &Call| after.sent - (before.sent + mood.takes());
        for (n, call) in lapsed.iter().enumerate() {
            if let Some(before) = lapsed[..n].iter().rfind(|one| (one.caller, one.key) == (call.caller, call.key)) {
                assert!(gap(before, call) >= mood.pause(), "{before:?}, {call:?}");
            }
        }
        for (n, call) in granted.iter().enumerate() {
            let before = &granted[..n];
            match mood {
                // Other callers go on until a second one has been told the same.
                Mood::Throttling | Mood::Unavailable => {
                    let mut lately =
                        before.iter().filter(|one| scope(one.key) == scope(call.key) && gap(one, call) < mood.pause());
                    assert!(lately.all(|one| one.caller != call.caller), "{call:?}");
                    assert!(lately.count() < 2, "{call:?}");
                }
                _ => {
                    let mut lately = before.iter().filter(|one| one.key == call.key && gap(one, call) < mood.pause());
                    assert!(lately.all(|one| one.caller != call.caller), "{call:?}");
                    assert!(lately.count() < 2, "{call:?}");
                }
            }
        }
        let promised_answers = self.in_the_outage().filter(|answer| answer.reply.status() == StatusCode::OK).count();
        println!("{mood:?}: {promised_answers} answers cost {} + {} calls", granted.len(), lapsed.len());
        assert!(calls.len() < promised_answers);
    }

    /// Nobody sees an error when upstream is back or, but for the last pause, an answer from before.
    fn assert_back_to_normal(&self) {
        // A call that was sent before may still be silent.
        let back = self.revived + self.outage.mood.takes();
        let normal = back + self.outage.mood.pause();
        let mut counted = 0;
        for answer in self.answers.iter().filter(|answer| answer.begun >= back) {
            let after = answer.ended - self.revived;
            assert_eq!(
                (answer.reply.status(), answer.reply.body()),
                (StatusCode::OK, &list(answer.key)),
                "{after:?}: {answer:?}"
            );
            if answer.begun >= normal {
                let age = answer.reply.headers().get("age").map(|age| age.to_str().unwrap().parse::<u64>().unwrap());
                assert!(age.is_none_or(|age| age <= after.as_secs()), "{after:?}: {answer:?}");
                counted += 1;
            }
        }
        assert!(counted > 100);
    }
}

async fn assert_all(outage: Outage) {
    let history = outage.happens().await;
    history.assert_as_promised();
    history.assert_patience();
    history.assert_few_calls();
    history.assert_back_to_normal();
}

#[tokio::test(start_paused = true)]
async fn nobody_can_connect_for_hours() {
    assert_all(Outage::by_default(Mood::Unreachable)).await;
}

#[tokio::test(start_paused = true)]
async fn upstream_says_for_hours_that_it_is_unavailable() {
    assert_all(Outage::by_default(Mood::Unavailable)).await;
}

#[tokio::test(start_paused = true)]
async fn upstream_throttles_everyone_for_hours() {
    assert_all(Outage::by_default(Mood::Throttling)).await;
}

#[tokio::test(start_paused = true)]
async fn upstream_is_silent_for_hours() {
    assert_all(Outage::by_default(Mood::Silent)).await;
}

#[tokio::test(start_paused = true)]
async fn half_an_hour_is_noticed_by_nobody_whose_grant_stood() {
    for mood in [Mood::Unreachable, Mood::Unavailable, Mood::Throttling, Mood::Silent] {
        let history = Outage { dead_for: HOUR / 2, ..Outage::by_default(mood) }.happens().await;
        let stood = |answer: &&Answer| history.is_granted(answer.caller, answer.key, history.died);
        for answer in history.in_the_outage().filter(stood) {
            assert_eq!(
                (answer.reply.status(), answer.reply.body()),
                (StatusCode::OK, &list(answer.key)),
                "{mood:?}: {answer:?}"
            );
        }
        history.assert_few_calls();
        history.assert_back_to_normal();
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_a_long_grant_does_not_wait_for_the_dead() {
    assert_all(Outage { grant_ttl: HOUR, ..Outage::by_default(Mood::Silent) }).await;
}

#[tokio::test(start_paused = true)]
async fn answers_are_too_old_before_grants_are() {
    let lives = Outage { stale_if_error: HOUR / 2, outage_grace: 2 * HOUR, ..Outage::by_default(Mood::Unreachable) };
    assert_all(lives).await;
}

#[tokio::test(start_paused = true)]
async fn grants_are_too_old_before_answers_are() {
    let lives = Outage { stale_if_error: 3 * HOUR, outage_grace: HOUR / 2, ..Outage::by_default(Mood::Silent) };
    assert_all(lives).await;
}
