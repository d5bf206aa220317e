//! What is read, of nearly right and of hostile responses.

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;

const USER: Option<QuotaPolicy> = Some(QuotaPolicy::User);
const API: Option<QuotaPolicy> = Some(QuotaPolicy::Api);

fn limit(policy: Option<QuotaPolicy>, calls: u32, seconds: u64) -> ToldLimit {
    let quota = Some(Quota { calls, window: Duration::from_secs(seconds) });
    ToldLimit { has_refused: false, policy, quota, remaining: None, reset: None }
}

fn without_quota(policy: Option<QuotaPolicy>) -> ToldLimit {
    ToldLimit { has_refused: false, policy, quota: None, remaining: None, reset: None }
}

/// As the text of a refusal names it.
fn named(limit: ToldLimit) -> ToldLimit {
    ToldLimit { has_refused: true, ..limit }
}

fn left(remaining: u32, limit: ToldLimit) -> ToldLimit {
    ToldLimit { remaining: Some(remaining), ..limit }
}

fn left_for(remaining: u32, seconds: u64, limit: ToldLimit) -> ToldLimit {
    ToldLimit { reset: Some(Duration::from_secs(seconds)), ..left(remaining, limit) }
}

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&str, &str)| -> (HeaderName, HeaderValue) {
        (name.parse().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    fields.iter().map(field).collect()
}

fn refusal(code: &str, text: &str) -> Vec<u8> {
    serde_json::json!({ "error_code": code, "error_msg": text, "request_id": "r" }).to_string().into_bytes()
}

#[test]
fn the_text_of_a_refusal_names_its_policy_and_quota() {
    for (text, expected) in [
        ("policy user over ratelimit,limit:200,time:5 minute", vec![limit(USER, 200, 300)]),
        ("policy api over ratelimit,limit:2000,time:1 minute", vec![limit(API, 2000, 60)]),
        ("policy app over ratelimit,limit:7,time:2 hours", vec![limit(Some(QuotaPolicy::App), 7, 7200)]),
        ("policy ip over ratelimit,limit:5,time:1 second.", vec![limit(Some(QuotaPolicy::Ip), 5, 1)]),
        ("policy  user  over ratelimit , limit : 200 , time : 5minutes", vec![limit(USER, 200, 300)]),
        ("policy user over ratelimit,time:1 days,limit:3", vec![limit(USER, 3, 86400)]),
        ("policy tenant over ratelimit,limit:3,time:3 seconds", vec![limit(None, 3, 3)]),
        (
            "policy user over ratelimit,limit:2,time:1 day; policy ip over ratelimit,limit:5,time:1 second",
            vec![limit(USER, 2, 86400), limit(Some(QuotaPolicy::Ip), 5, 1)],
        ),
        // The policy is known, and its quota is not.
        ("policy user over ratelimit", vec![without_quota(USER)]),
        ("policy user over ratelimit,limit:0,time:5 minute", vec![without_quota(USER)]),
        ("policy user over ratelimit,limit:200,time:0 minute", vec![without_quota(USER)]),
        ("policy user over ratelimit,limit:200,time:5 fortnights", vec![without_quota(USER)]),
        ("policy user over ratelimit,limit:200,time:1.5 minute", vec![without_quota(USER)]),
        ("policy user over ratelimit,limit:200", vec![without_quota(USER)]),
        ("policy user over ratelimit,limit:-1,time:5 minute", vec![without_quota(USER)]),
        ("policy user over ratelimit,limit:2e3,time:5 minute", vec![without_quota(USER)]),
        ("policy user over ratelimit,limit:4294967296,time:5 minute", vec![without_quota(USER)]),
        ("policy user over ratelimit,limit:1,time:99999999999999999999 days", vec![without_quota(USER)]),
        ("policy user over ratelimit,limit:٣,time:٣ minute", vec![without_quota(USER)]),
        // Absurd, but a quota.
        (
            "policy user over ratelimit,limit:4294967295,time:4294967295 days",
            vec![limit(USER, u32::MAX, u64::from(u32::MAX) * 86400)],
        ),
        ("policy user", Vec::new()),
        ("limit:200,time:5 minute", Vec::new()),
        ("", Vec::new()),
    ] {
        let text = format!("The throttling threshold has been reached: {text}");
        let expected: Vec<_> = expected.into_iter().map(named).collect();
        assert_eq!(told_limits(&HeaderMap::new(), &refusal("APIGW.0308", &text)), expected, "{text}");
    }
}

#[test]
fn a_body_that_is_not_a_refusal_for_a_limit_is_not_read() {
    let text = "policy user over ratelimit,limit:200,time:5 minute";
    for body in [
        refusal("APIGW.0301", text),
        refusal("WKS.00211302", text),
        refusal("apigw.0308", text),
        refusal("APIGW.0308", &format!("{text}{}", " ".repeat(MAX_LENGTH))),
        text.into(),
        format!(r#"["APIGW.0308","{text}"]"#).into_bytes(),
        format!(r#"{{"error_code":"APIGW.0308","error_msg":["{text}"]}}"#).into_bytes(),
        format!(r#"{{"error_code":"APIGW.0308","error_msg":"","error_msg":"{text}"}}"#).into_bytes(),
        b"[".repeat(MAX_LENGTH),
        Vec::new(),
    ] {
        assert_eq!(told_limits(&HeaderMap::new(), &body), [], "{}", String::from_utf8_lossy(&body));
    }
}

#[test]
fn the_fields_of_the_api_gateway_name_what_remains() {
    let told = told_limits(
        &headers(&[
            ("X-Apig-RateLimit-api", "remain:9,limit:10,time:10 second"),
            ("X-Apig-RateLimit-user", "remain: 0, limit: 200, time: 5 minute"),
            ("X-Apig-RateLimit-app", "limit:3,time:1 second"),
            ("X-Apig-RateLimit-ip", "remain:4,limit:5"),
            ("X-Apig-RateLimit-api-allenv", "remain:7,limit:0,time:1 day"),
        ]),
        b"",
    );
    let expected = [
        left(9, limit(API, 10, 10)),
        left(0, limit(USER, 200, 300)),
        limit(Some(QuotaPolicy::App), 3, 1),
        left(4, without_quota(Some(QuotaPolicy::Ip))),
        left(7, without_quota(API)),
    ];
    assert_eq!(told, expected);
    for value in ["", "unlimited", "time:1 day", "9", ":", ",,,", "\u{e9}"] {
        assert_eq!(told_limits(&headers(&[("X-Apig-RateLimit-api", value)]), b""), [], "{value}");
    }
}

#[test]
fn the_ietf_fields_are_joined_by_name() {
    for (policies, current, expected) in [
        (r#""burst";q=100;w=60"#, r#""burst";r=50;t=30"#, vec![left_for(50, 30, limit(None, 100, 60))]),
        (r#""user";q=100;w=60"#, r#""api";r=50"#, vec![limit(USER, 100, 60), left(50, without_quota(API))]),
        (
            r#""user";q=1;w=2;pk=:cHsdsRa894==:;x="a,b;q=7", "ip";q=5;w=1"#,
            r#""ip";r=0;t=1,"user";r=1"#,
            vec![left(1, limit(USER, 1, 2)), left_for(0, 1, limit(Some(QuotaPolicy::Ip), 5, 1))],
        ),
        (r#""user";q=5"#, "", vec![without_quota(USER)]),
        (r#""user";q=0;w=60"#, "", vec![without_quota(USER)]),
        (r#""user";q=5;w=0"#, "", vec![without_quota(USER)]),
        (r#""user";q=-5;w=60"#, "", vec![without_quota(USER)]),
        (r#""user";q=4294967296;w=60"#, r#""user";r=4294967296;t=-1"#, vec![without_quota(USER)]),
        (r#""user";q=5;w=86400;q=6"#, "", vec![limit(USER, 6, 86400)]),
        // What does not count calls.
        (
            r#""user";q=5;w=1;qu="content-bytes", "ip";q=5;w=1;qu="requests""#,
            r#""user";r=5"#,
            vec![limit(Some(QuotaPolicy::Ip), 5, 1)],
        ),
        // The first of two items with one name.
        (r#""user";q=5;w=1, "user";q=6;w=1"#, r#""user";r=4, "user";r=3"#, vec![left(4, limit(USER, 5, 1))]),
        // Items without a name or a required parameter, and malformed lists.
        (r#"user;q=5;w=1, ("user");q=5;w=1, 5;q=5;w=1, "user";w=1, "user";q="5";w=1"#, r#""user";t=5"#, vec![]),
        (r#""user";q=5;w=1,"#, r#""user";r=5;t="#, vec![]),
        (r#""user";q=5;w=1;"#, r#""user;r=5"#, vec![]),
        (r#""user";q=9999999999999999;w=1"#, "limit=100, remaining=50, reset=5", vec![]),
    ] {
        let told = told_limits(&headers(&[("RateLimit-Policy", policies), ("RateLimit", current)]), b"");
        assert_eq!(told, expected, "{policies} {current}");
    }
}

#[test]
fn an_ietf_field_may_have_several_lines() {
    let lines = [("RateLimit-Policy", r#""user";q=5;w=1"#), ("RateLimit-Policy", r#""ip";q=6;w=1"#)];
    let expected = [limit(USER, 5, 1), limit(Some(QuotaPolicy::Ip), 6, 1)];
    assert_eq!(told_limits(&headers(&lines), b""), expected);
    let malformed = [lines[0], ("RateLimit-Policy", "?")];
    assert_eq!(told_limits(&headers(&malformed), b""), []);
}

#[test]
fn what_remains_is_not_read_of_a_response_from_a_cache() {
    for (age, expected) in [("0", left(4, limit(USER, 5, 1))), ("1", limit(USER, 5, 1)), ("x", limit(USER, 5, 1))] {
        let fields = [("RateLimit-Policy", r#""user";q=5;w=1"#), ("RateLimit", r#""user";r=4"#), ("Age", age)];
        assert_eq!(told_limits(&headers(&fields), b""), [expected], "{age}");
    }
}

#[test]
fn a_field_that_is_too_long_is_not_read_with_fewer_digits() {
    for (name, value) in [
        ("RateLimit-Policy", format!(r#"{}"user";w=60;q=100"#, r#""x";q=1, "#.repeat(500))),
        ("X-Apig-RateLimit-user", format!("{}limit:10,time:1 day", "a:1,".repeat(1100))),
    ] {
        for length in MAX_LENGTH + 1..=value.len() {
            assert_eq!(told_limits(&headers(&[(name, &value[value.len() - length..])]), b""), [], "{name} {length}");
        }
    }
}

#[test]
fn at_most_eight_limits_are_read() {
    let text = "policy user over ratelimit,limit:1,time:1 day;".repeat(20);
    let items = |prefix: &str, parameters: &str| {
        (0..20).map(|index| format!(r#""{prefix}{index}";{parameters}"#)).collect::<Vec<_>>().join(",")
    };
    let (policies, current) = (items("", "q=1;w=1"), items("x", "r=1;t=1"));
    let apig = [("X-Apig-RateLimit-ip", "limit:1,time:1 day"); 20];
    for (fields, body) in [
        (headers(&[]), refusal("APIGW.0308", &text)),
        (headers(&apig), Vec::new()),
        (headers(&[("RateLimit-Policy", &policies), ("RateLimit", &current)]), Vec::new()),
        (headers(&[&apig[..], &[("RateLimit-Policy", &policies)]].concat()), refusal("APIGW.0308", &text)),
    ] {
        assert_eq!(told_limits(&fields, &body).len(), MAX_LIMITS, "{fields:?}");
    }
}

/// What upstream says of a limit, with odd numbers, and often with something odd before or behind.
fn text() -> impl Strategy<Value = String> {
    const FORMS: &[&str] = &[
        "policy user over ratelimit,limit:N,time:M minute",
        "remain:N,limit:M,time:N day",
        "\"ip\";q=N;w=M",
        "\"ip\";r=N;t=M",
    ];
    const NUMBERS: &[&str] = &["0", "1", "4294967295", "4294967296", "99999999999999999999", "-1", "1.5", "", "é"];
    const ODD: &[&str] = &["", "", "", "policy ", " over ratelimit", ",", ";", "limit:", "\"", "(", ")", "é", ",\"a\""];
    let [form, n, m, before, behind] = [FORMS, NUMBERS, NUMBERS, ODD, ODD].map(prop::sample::select);
    (form, n, m, before, behind)
        .prop_map(|(form, n, m, before, behind)| format!("{before}{}{behind}", form.replace('N', n).replace('M', m)))
}

proptest! {
    #[test]
    fn a_quota_has_at_least_one_call_and_a_window(
        message in text(),
        fields in prop::collection::vec((0..9usize, text()), 0..12),
        body in prop::option::of(prop::collection::vec(any::<u8>(), 0..64)),
    ) {
        let names = APIG_FIELDS.map(|(name, _)| name).into_iter().chain(["ratelimit", "ratelimit-policy", "age", "other"]);
        let names: Vec<&str> = names.collect();
        let fields: Vec<_> = fields.iter().map(|(name, value)| (names[*name], value.as_str())).collect();
        let limits = told_limits(&headers(&fields), &body.unwrap_or_else(|| refusal("APIGW.0308", &message)));
        prop_assert!(limits.len() <= MAX_LIMITS);
        for quota in limits.iter().filter_map(|limit| limit.quota) {
            prop_assert!(quota.calls > 0 && !quota.window.is_zero());
        }
    }
}
