//! The limits of upstream that a sequence can meet: how upstream names them, and how they are configured.

use super::domain::{CallerId, ExtraHeader, Ms, SECOND, UpstreamResult};
use super::settings::Settings;

/// What upstream counts together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// The calls of one caller.
    User,
    /// All calls, because they come from one address.
    Ip,
    /// The calls of an operation. Here each service has one operation.
    Api,
}

impl Policy {
    pub fn is_shared(self) -> bool {
        self != Self::User
    }

    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Ip => "ip",
            Self::Api => "api",
        }
    }
}

/// So many calls are accepted in each window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    pub policy: Policy,
    pub calls: usize,
    pub window: Ms,
}

const fn limit(policy: Policy, calls: usize, seconds: Ms) -> Limit {
    Limit { policy, calls, window: seconds * SECOND }
}

/// Limits that hold calls back for a moment, and limits that hold them back beyond their deadline. There are several of
/// each policy, so that upstream changes them.
pub const LIMITS: [Limit; 9] = [
    limit(Policy::User, 1, 4),
    limit(Policy::User, 2, 10),
    limit(Policy::User, 1, 50),
    limit(Policy::Ip, 1, 2),
    limit(Policy::Ip, 3, 10),
    limit(Policy::Ip, 4, 60),
    limit(Policy::Api, 2, 6),
    limit(Policy::Api, 1, 50),
    limit(Policy::Api, 5, 20),
];

impl Limit {
    /// The text of a refusal.
    fn text(self) -> String {
        let Self { policy, calls, window } = self;
        let policy = policy.name();
        format!("policy {policy} over ratelimit,limit:{calls},time:{} second", window / SECOND)
    }

    /// The 429 that names this limit.
    pub fn refusal(self, caller: CallerId) -> UpstreamResult {
        let text = format!("The throttling threshold has been reached: {}", self.text());
        UpstreamResult::complete(
            429,
            format!(r#"{{"error_code":"APIGW.0308","error_msg":"{text}","caller":{caller}}}"#),
        )
    }

    /// The limit that a response names.
    pub fn named_in(result: &UpstreamResult) -> Option<Self> {
        let UpstreamResult::Complete { status: 429, body, .. } = result else { return None };
        LIMITS.into_iter().find(|limit| body.contains(&format!("{}\"", limit.text())))
    }
}

/// How long a 429 asks to wait, if it names no limit and a request can wait so long.
pub fn asked_wait(result: &UpstreamResult) -> Option<Ms> {
    let UpstreamResult::Complete { status: 429, extra_header: ExtraHeader::RetryAfter(after), .. } = result else {
        return None;
    };
    after.filter(|after| *after < Settings::ANSWER_TIMEOUT)
}

/// Whether limits of upstream hold calls back in a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pacing {
    /// Upstream names no limit. Each call starts as soon as the rules want it.
    None,
    /// Upstream names limits in its 429s.
    Learnt,
    /// The same, and one limit is configured.
    Configured(Limit),
}

impl Pacing {
    pub fn is_active(self) -> bool {
        self != Self::None
    }

    pub fn configured(self) -> Option<Limit> {
        match self {
            Self::Configured(limit) => Some(limit),
            Self::None | Self::Learnt => None,
        }
    }

    /// The limit in the format of the configuration file, for both services.
    pub fn to_toml(self) -> String {
        let quota = |service: &str| {
            self.configured().map_or_else(String::new, |Limit { policy, calls, window }| {
                format!(
                    "[[quota]]\nservice = \"{service}\"\npolicy = \"{}\"\nlimit = {calls}\nwindow = \"{}s\"\n",
                    policy.name(),
                    window / SECOND
                )
            })
        };
        quota("workspace") + &quota("appstream")
    }
}
