//! `/tail`: the live tail of completed requests, as server-sent events. It must not show a credential.
//!
//! The stream ends when the process shuts down, when the admin token changes, and after an hour, so that a reader that has
//! gone cannot keep its place. A reader that does not read is closed like any client that does not read its response.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::Either;
use strum::VariantArray;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use super::{AdminBody, Page, page, text};
use crate::catalogue::Catalogue;
use crate::config::secret::AdminToken;
use crate::gateway::Gateway;
use crate::telemetry::outcome::Outcome;
use crate::telemetry::tail::{MAX_READERS, StatusFilter, TailEvent, TailFilter, TailReader};

/// A comment is sent when nothing else was sent for this long. So whatever is between keeps the connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long one stream lasts.
const LONGEST: Duration = Duration::from_secs(3600);

/// Events that wait are sent together, up to about this number of bytes.
const PIECE: usize = 32 * 1024;

/// The stream with its headers.
///
/// # Errors
/// 400 for a wrong filter, 503 if there are too many readers.
pub(super) fn stream(
    gateway: &Arc<Gateway>,
    query: &str,
    drain: &watch::Receiver<bool>,
) -> Result<Response<AdminBody>, Box<Page>> {
    let active = gateway.active();
    let filter =
        filter(query, active.catalogue()).map_err(|message| Box::new(text(StatusCode::BAD_REQUEST, message)))?;
    let reader = gateway.observer().tail().read(filter).ok_or_else(|| {
        let message = format!("refused: {MAX_READERS} readers of the tail at most, and there are as many");
        Box::new(text(StatusCode::SERVICE_UNAVAILABLE, message))
    })?;
    let head = page(StatusCode::OK, "text/event-stream", Bytes::new());
    let (gateway, token) = (Arc::clone(gateway), active.admin_token().cloned());
    let state = State { reader, gateway, token, drain: drain.clone(), end: Box::pin(sleep(LONGEST)) };
    Ok(head.map(|_| Either::Right(Tail::new(state))))
}

/// What a request must be for the tail.
pub(super) fn filter(query: &str, catalogue: &Catalogue) -> Result<TailFilter, String> {
    let mut filter = TailFilter::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let wrong = |expected: &str| format!("{} = {value:?} is not allowed: expected {expected}", name.escape_debug());
        match name.as_ref() {
            "operation" => {
                let names = operations(catalogue);
                let known = |name: &str| names.iter().find(|known| **known == name).map(|&known| known.to_owned());
                let all = || wrong(&format!("some of {}, separated by commas", names.join(", ")));
                filter.operations.extend(members(&value, known).ok_or_else(all)?);
            }
            "result" => {
                let known = |name: &str| Outcome::VARIANTS.iter().copied().find(|outcome| outcome.into_str() == name);
                let names: Vec<_> = Outcome::VARIANTS.iter().map(|outcome| outcome.into_str()).collect();
                let all = || wrong(&format!("some of {}, separated by commas", names.join(", ")));
                filter.results.extend(members(&value, known).ok_or_else(all)?);
            }
            "status" => {
                let expected = || wrong("classes (5xx), numbers (404) or none, separated by commas");
                filter.statuses.extend(members(&value, status).ok_or_else(expected)?);
            }
            "caller" if filter.caller.is_none() => {
                let is_id = value.len() == 16 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
                let expected = || wrong("the 16 digits of a caller, as in the log and in /status");
                filter.caller = Some(is_id.then(|| value.to_ascii_lowercase()).ok_or_else(expected)?);
            }
            "client" if filter.client.is_none() => {
                let address = value.parse::<IpAddr>().map_err(|_| wrong("an IP address"))?;
                filter.client = Some(address);
            }
            "slow" if filter.slow.is_none() => {
                let slow = humantime::parse_duration(&value).map_err(|_| wrong("a duration, such as 500ms or 2s"))?;
                filter.slow = Some(slow);
            }
            _ => {
                return Err(wrong("operation, result or status any number of times, and caller, client and slow once"));
            }
        }
    }
    // Each request is compared with each member.
    let TailFilter { operations, results, statuses, .. } = &mut filter;
    operations.sort_unstable();
    operations.dedup();
    results.sort_unstable();
    results.dedup();
    statuses.sort_unstable();
    statuses.dedup();
    Ok(filter)
}

/// The values of the label `operation`.
fn operations(catalogue: &Catalogue) -> Vec<&str> {
    let mut names: Vec<&str> = catalogue.operations().iter().map(|operation| &*operation.name).collect();
    names.extend(catalogue.services().map(|service| -> &str { service.as_str() }));
    names.push("none");
    names
}

/// The members of a list that is separated by commas. `None` if one of them is unknown.
fn members<T>(list: &str, known: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    list.split(',').map(|member| known(member.trim())).collect()
}

fn status(text: &str) -> Option<StatusFilter> {
    match (text, text.strip_suffix("xx")) {
        ("none", _) => Some(StatusFilter::None),
        (_, Some(digit)) => digit.parse().ok().filter(|digit| (1..=5).contains(digit)).map(StatusFilter::Class),
        _ => text.parse().ok().filter(|status| (100..=599).contains(status)).map(StatusFilter::Is),
    }
}

/// The body: pieces of server-sent events.
pub(crate) struct Tail {
    /// Makes the next piece. `None` after the end.
    next: Option<NextPiece>,
}

/// Makes a piece, and returns what makes the one after it. `None` at the end.
type NextPiece = Pin<Box<dyn Future<Output = (Bytes, Option<State>)> + Send>>;

struct State {
    reader: TailReader,
    gateway: Arc<Gateway>,
    /// The token with which the stream was asked for.
    token: Option<AdminToken>,
    drain: watch::Receiver<bool>,
    end: Pin<Box<Sleep>>,
}

impl Tail {
    fn new(state: State) -> Self {
        // Shows at once that the stream has begun.
        let begin = async { (Bytes::from_static(b": requests follow as they end\n\n"), Some(state)) };
        Self { next: Some(Box::pin(begin)) }
    }
}

impl Body for Tail {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let Some(next) = &mut this.next else { return Poll::Ready(None) };
        let (piece, state) = ready!(next.as_mut().poll(context));
        this.next = state.map(|state| -> NextPiece { Box::pin(state.next()) });
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl State {
    /// The next piece, and what makes the one after it.
    async fn next(mut self) -> (Bytes, Option<Self>) {
        let mut text = String::new();
        let event = tokio::select! {
            biased;
            // If the sender is gone, the process ends, too.
            _ = self.drain.wait_for(|draining| *draining) => return (end("the gateway is stopping"), None),
            () = self.end.as_mut() => return (end("an hour is over"), None),
            event = self.reader.next() => Some(event),
            () = sleep(KEEP_ALIVE) => None,
        };
        if self.gateway.active().admin_token() != self.token.as_ref() {
            return (end("the admin token has changed"), None);
        }
        match event {
            None => text += ": keep-alive\n\n",
            Some(event) => add(&mut text, event),
        }
        while text.len() < PIECE
            && let Some(event) = self.reader.try_next()
        {
            add(&mut text, event);
        }
        (text.into(), Some(self))
    }
}

fn add(text: &mut String, event: TailEvent) {
    *text += &match event {
        TailEvent::Request(json) => format!("data: {json}\n\n"),
        TailEvent::Dropped(dropped) => format!("event: dropped\ndata: {{\"dropped\":{dropped}}}\n\n"),
    };
}

fn end(why: &str) -> Bytes {
    format!("event: end\ndata: {{\"why\":\"{why}\"}}\n\n").into()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;

    #[tokio::test(start_paused = true)]
    async fn an_idle_tail_is_kept_open_for_an_hour() {
        let config = Config::from_layers("f", "region = \"r\"", &[]).unwrap();
        let gateway = Gateway::new(&config, Clock::System).unwrap();
        let (_sender, drain) = watch::channel(false);
        let mut body = stream(&gateway, "", &drain).ok().unwrap().into_body();
        let begun = Clock::System.timer_now();
        let mut comments = 0;
        let last = loop {
            let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
            match piece.strip_prefix(b": ") {
                Some(_) => comments += 1,
                None => break piece,
            }
        };
        assert_eq!((Clock::System.timer_now() - begun, comments), (LONGEST, 240));
        assert_eq!(last, "event: end\ndata: {\"why\":\"an hour is over\"}\n\n");
        assert!(body.frame().await.is_none());
        // Its place is free.
        let places = [(); MAX_READERS].map(|()| stream(&gateway, "", &drain).ok().unwrap());
        assert_eq!(stream(&gateway, "", &drain).err().unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(places);
    }
}
