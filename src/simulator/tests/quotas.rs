//! Tests of the simulator's quotas over real sockets, on a clock that stands still.

use http::Uri;
use http::header::HOST;

use super::*;
use crate::catalogue::{Quota, QuotaPolicy};
use crate::signing::{AccessKey, Payload, Projects};
use crate::simulator::{DebugHeaders, EnforcedQuota, QuotaAnswers, QuotaWindow};

const SECOND: Duration = Duration::from_secs(1);

fn sliding(policy: QuotaPolicy, calls: u32, window: Duration) -> EnforcedQuota {
    EnforcedQuota::new(policy, Quota { calls, window }, QuotaWindow::Sliding)
}

impl Bench {
    /// The statuses of three requests in a row.
    async fn three(&self, token: &str, service: Service, target: &str) -> [u16; 3] {
        let mut statuses = [0; 3];
        for status in &mut statuses {
            *status = self.get_as(token, service, target).await.status().as_u16();
        }
        statuses
    }
}

#[tokio::test]
async fn a_request_over_a_quota_gets_429_until_the_window_has_passed() {
    let (bench, clock) = Bench::with_clock().await;
    let now = Clock::Manual(clock.clone()).now();
    let quota = Quota { calls: 2, window: 5 * MINUTE };
    for window in [QuotaWindow::Sliding, QuotaWindow::Fixed { origin: now }] {
        bench.simulator.set_quota(EnforcedQuota::new(QuotaPolicy::User, quota, window));
        assert_eq!(bench.three(&bench.token, Workspace, PRODUCTS).await, [200, 200, 429]);
        clock.advance(5 * MINUTE - TICK);
        let refused = bench.get(Workspace, PRODUCTS).await;
        assert_eq!(error(&refused), (429, "APIGW.0308".into()));
        let text = "The throttling threshold has been reached: policy user over ratelimit,limit:2,time:5 minute";
        assert_eq!(serde_json::from_slice::<Value>(refused.body()).unwrap()["error_msg"], text);
        clock.advance(TICK);
        assert_eq!(bench.three(&bench.token, Workspace, PRODUCTS).await, [200, 200, 429], "{window:?}");
        let record = bench.simulator.quota_record(None, QuotaPolicy::User).unwrap();
        assert_eq!((record.accepted, record.refused), (4, 3));
        bench.simulator.clear_quotas();
        assert_eq!(bench.three(&bench.token, Workspace, PRODUCTS).await, [200, 200, 200]);
    }
}

#[tokio::test]
async fn each_policy_counts_other_requests() {
    let (bench, _clock) = Bench::with_clock().await;
    let (same_user, other) = (bench.simulator.token("p"), bench.simulator.token("p"));
    for token in [&bench.token, &same_user] {
        bench.simulator.set_user(token, "u");
    }
    let requests = [
        (&bench.token, Workspace, PRODUCTS),
        (&same_user, Workspace, "/v2/p/products?os_type=Linux"),
        (&other, Workspace, PRODUCTS),
        (&bench.token, Workspace, SHARER),
        (&bench.token, Workspace, "/v2/p/desktops/1"),
        (&bench.token, Workspace, "/v2/p/desktops/2"),
        (&bench.token, AppStream, V1),
    ];
    for (policy, service, expected) in [
        (QuotaPolicy::Api, None, [200, 429, 429, 200, 200, 429, 200]),
        (QuotaPolicy::User, None, [200, 429, 200, 429, 429, 429, 429]),
        (QuotaPolicy::App, None, [200, 200, 200, 429, 429, 429, 429]),
        (QuotaPolicy::Ip, None, [200, 429, 429, 429, 429, 429, 429]),
        (QuotaPolicy::Ip, Some(AppStream), [200, 200, 200, 200, 200, 200, 200]),
        (QuotaPolicy::Ip, Some(Workspace), [200, 429, 429, 429, 429, 429, 200]),
    ] {
        bench.simulator.clear_quotas();
        bench.simulator.set_quota(EnforcedQuota { service, ..sliding(policy, 1, MINUTE) });
        let mut statuses = Vec::new();
        for (token, service, target) in requests {
            statuses.push(bench.get_as(token, service, target).await.status().as_u16());
        }
        assert_eq!(statuses, expected, "{policy:?} of {service:?}");
    }
}

#[tokio::test]
async fn rejected_credentials_count_for_the_address_and_the_api_only() {
    let (bench, _clock) = Bench::with_clock().await;
    for (policy, expected) in [
        (QuotaPolicy::Api, [200, 429, 429]),
        (QuotaPolicy::User, [200, 200, 200]),
        (QuotaPolicy::App, [200, 200, 200]),
        (QuotaPolicy::Ip, [200, 429, 429]),
    ] {
        bench.simulator.clear_quotas();
        bench.simulator.set_quota(EnforcedQuota {
            answers: QuotaAnswers { retry_after: true, ..QuotaAnswers::default() },
            ..sliding(policy, 4, MINUTE)
        });
        assert_eq!(bench.three("invented", Workspace, PRODUCTS).await, [401; 3]);
        assert_eq!(bench.three(&bench.token, Workspace, PRODUCTS).await, expected, "{policy:?}");
        let rejected = bench.get_as("invented", Workspace, PRODUCTS).await;
        assert_eq!(rejected.status(), StatusCode::UNAUTHORIZED, "over the limit");
        assert!(!rejected.headers().contains_key("retry-after"));
    }
}

#[tokio::test]
async fn injected_failures_and_unknown_paths_do_not_count() {
    let (bench, _clock) = Bench::with_clock().await;
    bench.simulator.set_quota(sliding(QuotaPolicy::Ip, 2, MINUTE));
    bench.simulator.fail_with(Some(StatusCode::BAD_GATEWAY));
    assert_eq!(bench.three(&bench.token, Workspace, PRODUCTS).await, [502; 3]);
    bench.simulator.fail_with(None);
    assert_eq!(bench.three(&bench.token, Workspace, V1).await, [404; 3]);
    // The service rejects the query after the API gateway has counted the request.
    assert_eq!(bench.three(&bench.token, Workspace, "/v2/p/products?limit=101").await, [400, 400, 429]);
}

#[tokio::test]
async fn a_signed_request_counts_for_the_user_of_its_access_key() {
    let (bench, clock) = Bench::with_clock().await;
    let issued = bench.simulator.access_key("p");
    let key = AccessKey::new(issued.id.clone(), issued.secret.as_bytes(), None, Projects::Any);
    let uri: Uri = (bench.simulator.url(Workspace) + PRODUCTS).parse().unwrap();
    let mut signed = HeaderMap::new();
    signed.insert(HOST, HeaderValue::try_from(uri.authority().unwrap().as_str()).unwrap());
    let date = Clock::Manual(clock).date();
    key.sign(&Method::GET, (&uri).into(), &mut signed, [], &Payload::of(b""), date).unwrap();
    let status = async |headers| bench.send(Workspace, Method::GET, PRODUCTS, headers).await.status().as_u16();

    bench.simulator.set_quota(sliding(QuotaPolicy::User, 2, MINUTE));
    bench.simulator.use_quota(Workspace, QuotaPolicy::User, &issued.id, 1);
    assert_eq!([status(&signed).await, status(&signed).await], [200, 429]);
    bench.simulator.set_user(&issued.id, "u");
    bench.simulator.set_user(&bench.token, "u");
    assert_eq!(
        [status(&signed).await, status(&with_token(&bench.token)).await, status(&signed).await],
        [200, 200, 429]
    );
}

#[tokio::test]
async fn limits_can_change_and_others_can_use_them() {
    let (bench, clock) = Bench::with_clock().await;
    bench.simulator.set_quota(sliding(QuotaPolicy::Ip, 5, SECOND));
    bench.simulator.use_quota(AppStream, QuotaPolicy::Ip, "", 3);
    assert_eq!(bench.three(&bench.token, Workspace, PRODUCTS).await, [200, 200, 429]);
    bench.simulator.set_quota(sliding(QuotaPolicy::Ip, 6, SECOND));
    assert_eq!(bench.three(&bench.token, Workspace, PRODUCTS).await, [200, 429, 429]);
    clock.advance(SECOND);
    bench.simulator.use_quota(Workspace, QuotaPolicy::Ip, "", 1_000);
    assert_eq!(bench.three(&bench.token, Workspace, PRODUCTS).await, [429; 3]);
    let record = bench.simulator.quota_record(None, QuotaPolicy::Ip).unwrap();
    assert_eq!((record.accepted, record.refused, record.elsewhere), (3, 6, 3 + 6));
}

#[tokio::test]
async fn limits_are_shown_in_headers_if_the_quota_says_so() {
    let (bench, _clock) = Bench::with_clock().await;
    let answers =
        QuotaAnswers { debug: DebugHeaders::IfAsked, rate_limit: true, retry_after: true, ..QuotaAnswers::default() };
    bench.simulator.set_quota(EnforcedQuota { answers, ..sliding(QuotaPolicy::User, 3, 10 * SECOND) });
    let mut asked = with_token(&bench.token);
    asked.insert("x-apig-mode", HeaderValue::from_static("debug"));

    let accepted = bench.send(Workspace, Method::GET, PRODUCTS, &asked).await;
    assert_eq!(accepted.headers()["x-apig-ratelimit-user"], "remain:2,limit:3,time:10 second");
    assert_eq!(accepted.headers()["ratelimit-policy"], r#""user";q=3;w=10"#);
    assert_eq!(accepted.headers()["ratelimit"], r#""user";r=2;t=10"#);
    assert!(!accepted.headers().contains_key("retry-after"));
    let echoed = bench.get(Workspace, "/v2/p/desktops").await;
    assert!(!echoed.headers().contains_key("x-apig-ratelimit-user"), "not asked");
    assert_eq!(echoed.headers()["ratelimit"], r#""user";r=1;t=10"#);
    bench.get(Workspace, PRODUCTS).await;

    let refused = bench.send(Workspace, Method::GET, PRODUCTS, &asked).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["x-apig-ratelimit-user"], "remain:0,limit:3,time:10 second");
    assert_eq!(refused.headers()["retry-after"], "10");
}
