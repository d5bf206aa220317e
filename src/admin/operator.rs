//! The operator's listener: what there is on it, and what is done where. Who may ask at all is in `guard.rs`.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Collected, Limited};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::document::Document;
use super::guard::AccessDenied;
use super::{Page, entries, explain, guard, json as json_page, not_allowed, not_found, purge, status, text};
use crate::budget::{Account, ConnectionClass};
use crate::config::Mode;
use crate::config::choices::Level;
use crate::gateway::Gateway;
use crate::stream::BoxError;
use crate::telemetry::events::{Event, NewEvent};
use crate::telemetry::logs;

/// The longest word that can be set has six letters.
const LONGEST_WORD: usize = 64;

/// What the operator can do.
pub(crate) struct Operator {
    gateway: Arc<Gateway>,
    /// Where clients connect.
    proxy: SocketAddr,
    /// Comments on the settings: what is in force in place of what they say.
    remarks: String,
    document: Document,
    /// Going through all entries takes its time: one does at a time, and never a thread that answers requests.
    turn: Arc<Semaphore>,
}

impl Operator {
    /// To this gateway, whose clients connect to the address `proxy`. The remarks are shown with its settings.
    pub(crate) fn new(gateway: Arc<Gateway>, proxy: SocketAddr, remarks: String) -> Self {
        Self { gateway, proxy, remarks, document: Document::new(), turn: Arc::new(Semaphore::new(1)) }
    }

    /// Answers a request that came in by the address `local`. The class of its connection rises to that of an operator if
    /// the request shows the token, or may be made without one.
    pub(crate) async fn answer<B>(&self, request: Request<B>, local: SocketAddr, account: &Account) -> Page
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        account.raise(ConnectionClass::Unknown, None);
        let active = self.gateway.active();
        if let Err(refused) = guard::admit(&head, local, active.admin_token()) {
            // Counted there, where the log could be flooded. The page asks without a token to see whether it takes one.
            if refused != AccessDenied::Token || head.headers.contains_key(AUTHORIZATION) {
                self.gateway.observer().record_event(NewEvent::new(Event::AdminDenied, refused.in_words()));
            }
            return refused.page();
        }
        // The page itself is for everyone.
        if head.uri.path() != "/" || active.admin_token().is_none() {
            account.raise(ConnectionClass::Known, None);
        }
        drop(active);
        let query = head.uri.query().unwrap_or_default().to_owned();
        let is_read = head.method == Method::GET || head.method == Method::HEAD;
        let (allowed, is_allowed) = match head.uri.path() {
            "/" | "/status" | "/cache/entries" | "/config" | "/explain" => ("GET, HEAD", is_read),
            "/cache/purge" => ("POST", head.method == Method::POST),
            "/mode" | "/log-level" => ("GET, HEAD, PUT", is_read || head.method == Method::PUT),
            _ => {
                return not_found("/, /status, /cache/entries, /cache/purge, /config, /explain, /log-level or /mode");
            }
        };
        if !is_allowed {
            return not_allowed(allowed);
        }
        match head.uri.path() {
            "/" => self.document.page(),
            "/status" => status::page(&self.gateway, self.proxy),
            "/cache/entries" => self.aside(move |gateway| entries::page(gateway, &query)).await,
            "/cache/purge" => self.aside(move |gateway| purge::page(gateway, &query)).await,
            "/config" => text(StatusCode::OK, (self.gateway.active().in_words().to_owned() + &self.remarks).trim_end()),
            "/explain" => explain::page(&self.gateway, &query),
            "/mode" if is_read => self.mode(),
            "/mode" => self.word(body).await.map_or_else(|refused| refused, |mode| self.set_mode(mode)),
            _ if is_read => log_level(),
            _ => self.word(body).await.map_or_else(|refused| refused, |level| self.set_log_level(level)),
        }
    }

    /// Does something that takes its time.
    async fn aside(&self, page: impl FnOnce(&Gateway) -> Page + Send + 'static) -> Page {
        let gateway = Arc::clone(&self.gateway);
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        let page = tokio::task::spawn_blocking(move || {
            // Here, for the client may hang up, and this goes on.
            let _turn = turn;
            page(&gateway)
        })
        .await;
        page.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("this went wrong: {error}")))
    }

    /// A word that a body consists of. Who doesn't send it has no longer than for a head, or a few of them would keep
    /// everyone out.
    async fn word<T, B>(&self, body: B) -> Result<T, Page>
    where
        T: FromStr<Err = String>,
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let limit = self.gateway.active().settings().limits.header_timeout.0;
        let body = timeout(limit, Limited::new(body, LONGEST_WORD).collect()).await;
        let body = body.map_err(|_| text(StatusCode::REQUEST_TIMEOUT, "refused: the body has not come in time"))?;
        let body = body.map(Collected::to_bytes).unwrap_or_default();
        let given = String::from_utf8_lossy(&body);
        given.trim().parse().map_err(|message| text(StatusCode::BAD_REQUEST, message))
    }

    fn mode(&self) -> Page {
        json_page(StatusCode::OK, &json!({ "mode": self.gateway.mode() }))
    }

    fn set_mode(&self, mode: Mode) -> Page {
        self.gateway.set_mode(mode);
        self.gateway.observer().record_event(NewEvent::new(Event::Mode, format!("mode set to {}", mode.into_str())));
        self.mode()
    }

    fn set_log_level(&self, level: Level) -> Page {
        if !logs::set_level(level) {
            return text(StatusCode::CONFLICT, "the log of this process is not the gateway's, and stays as it is");
        }
        self.gateway.observer().record_event(NewEvent::new(Event::LogLevel, format!("log level set to {level}")));
        log_level()
    }
}

fn log_level() -> Page {
    json_page(StatusCode::OK, &json!({ "log_level": logs::level().map(|level| level.to_string()) }))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;

    #[tokio::test]
    async fn what_takes_its_time_is_done_one_after_the_other_whoever_hangs_up() {
        let config = Config::from_layers("f", "region = \"r\"", &[]).unwrap();
        let gateway = Gateway::new(&config, Clock::System).unwrap();
        let operator = Operator::new(gateway, ([127, 0, 0, 1], 1).into(), String::new());
        let ((begin, begun), (end, ended)) = (mpsc::channel(), mpsc::channel::<()>());
        let first = operator.aside(move |_| {
            begin.send(()).unwrap();
            ended.recv().unwrap();
            text(StatusCode::OK, "first")
        });
        {
            let mut first = Box::pin(first);
            while begun.try_recv().is_err() {
                assert!(timeout(Duration::from_millis(1), first.as_mut()).await.is_err());
            }
        }
        assert_eq!(operator.turn.available_permits(), 0, "though nobody waits for it any more");
        end.send(()).unwrap();
        assert_eq!(operator.aside(|_| text(StatusCode::OK, "second")).await.status(), StatusCode::OK);
    }
}
