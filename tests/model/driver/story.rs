//! What happened, as it is told and as it had to be.

use std::fmt;

use super::super::rules::{How, Reply};
use super::super::script::Begun;
use super::super::settings::Settings;
use super::super::steps::Step;
use super::super::world::{CacheRequest, Ms, RequestDirectives, RequestId, Said, is_list};

/// A request that was answered.
#[derive(Clone, Debug)]
pub struct Done {
    pub request: CacheRequest,
    /// How long it took, as timers count.
    pub waited: Ms,
    /// When it was answered, by the time of rules.
    pub at: Ms,
    pub status: u16,
    pub body: String,
    pub(super) cache_status: String,
    pub(super) has_cookie: bool,
}

impl Done {
    /// The list that was given: sent, or said to be the one the client has.
    pub fn list(&self) -> Option<String> {
        match self.status {
            200 => Some(&self.body).filter(|body| is_list(body)).cloned(),
            304 => self.request.has.map(|has| has.list(self.request.key)),
            _ => None,
        }
    }

    fn says(&self, word: &str) -> bool {
        self.cache_status.contains(word)
    }

    /// Whether it came from memory, for aught it says.
    pub fn is_hit(&self) -> bool {
        self.says("; hit")
    }

    /// For how many seconds it is fresh, it says.
    fn ttl(&self) -> Option<i64> {
        self.parameter("ttl=")?.parse().ok()
    }

    /// What else it says.
    pub fn detail(&self) -> Option<&str> {
        self.parameter("detail=")
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.cache_status.split("; ").find_map(|parameter| parameter.strip_prefix(name))
    }
}

/// What happened, to be told if something goes wrong.
pub(super) enum Event {
    Step(Step),
    Lookup(CacheRequest),
    Landed(RequestId, Said),
    /// The head of a refusal.
    HeadLanded(RequestId, Said),
    HungUp(RequestId),
    Began(Begun),
    Relayed(Begun),
    Done(Done),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step) => write!(f, "{step:?}"),
            Self::Lookup(question @ CacheRequest { id, caller, key, is_plain, is_unsafe, spelling, .. }) => {
                let way = match (is_plain, is_unsafe) {
                    (_, true) => ", with an unsafe method",
                    (true, false) => "",
                    (false, false) => ", by another gateway",
                };
                write!(f, "    #{id} (caller {caller}, key {key}{way}, {spelling:?}) comes in")?;
                question.headers().try_for_each(|(name, value)| write!(f, ", {name}: {value}"))
            }
            Self::Landed(id, said) => write!(f, "    the call of #{id} lands: {said:?}"),
            Self::HeadLanded(id, said) => write!(f, "    the head of the call of #{id} lands: {said:?}"),
            Self::HungUp(id) => write!(f, "    #{id} hangs up"),
            Self::Began(Begun { id, asked, .. }) => {
                write!(f, "    #{id} begins a call")?;
                asked.map_or(Ok(()), |version| write!(f, ", and asks about {}", version.to_tag()))
            }
            Self::Relayed(Begun { id, .. }) => write!(f, "    #{id} is relayed"),
            Self::Done(done) => {
                let Done { request, status, body, cache_status, .. } = done;
                write!(
                    f,
                    "    #{} (caller {}) is answered: {status} {body} [{cache_status}]",
                    request.id, request.caller
                )
            }
        }
    }
}

/// Whether an answer is what it had to be.
pub(super) fn agree(done: &Done, reply: &Reply) -> Result<(), &'static str> {
    if done.status != reply.status {
        return Err("wrong status");
    }
    match &reply.body {
        Some(body) if *body != done.body => return Err("wrong body"),
        None if !done.body.contains(r#""error_msg":"workspace-gateway: "#) => return Err("not the gateway's words"),
        _ => {}
    }
    // What is streamed takes as long as it takes.
    let is_streamed = matches!(reply.how, How::Relayed | How::PassedThrough);
    if done.waited > Settings::DEADLINE && !is_streamed {
        return Err("too late");
    }
    if done.has_cookie && !is_streamed && reply.how != How::Led {
        return Err("with a cookie that was not for it");
    }
    let is_hit =
        matches!(reply.how, How::Hit(_) | How::Negative(_) | How::Backoff(_) | How::Revalidating(_) | How::Refused);
    if done.is_hit() != is_hit {
        return Err("wrong word on whether it was a hit");
    }
    if let How::Hit(left) | How::Negative(left) | How::Backoff(left) | How::Revalidating(left) = reply.how
        && done.ttl().is_none_or(|ttl| (ttl >= 0) != (left > 0) || (ttl * 1000 - left).abs() > 1000)
    {
        return Err("wrong word on how long it is fresh");
    }
    let is_told_right = match reply.how {
        How::Hit(_) => done.detail().is_none(),
        How::Negative(_) => done.detail() == Some("negative"),
        How::Backoff(_) => done.detail() == Some("backoff"),
        How::Revalidating(_) => done.detail() == Some("revalidating"),
        How::StaleIfSlow => done.says("; fwd=stale") && done.detail() == Some("stale-if-slow"),
        How::Stale => {
            (done.says("; fwd=stale") || done.says("; fwd=request")) && done.detail() != Some("stale-if-slow")
        }
        How::Followed => done.says("; collapsed"),
        How::PassedThrough => done.cache_status.is_empty(),
        How::Relayed if done.request.wish == RequestDirectives::NoStore => done.detail() == Some("client-no-store"),
        How::Relayed => done.says("; fwd=bypass"),
        How::Led => !done.says("; collapsed"),
        How::Refused | How::TimedOut | How::NotCached | How::Ambiguous => true,
    };
    if is_told_right { Ok(()) } else { Err("wrong word on how it was answered") }
}
