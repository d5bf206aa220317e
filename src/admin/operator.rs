//! The operator's listener: what there is on it, and what is done where. Who may ask at all is in `guard.rs`.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde_json::json;
use tokio::sync::Semaphore;

use super::document::Document;
use super::{Page, entries, explain, guard, json as json_page, not_allowed, not_found, purge, status, text};
use crate::config::Mode;
use crate::config::units::Level;
use crate::gateway::Gateway;
use crate::stream::BoxError;
use crate::telemetry::events::Event;
use crate::telemetry::logs;

/// The longest word that can be set has six letters.
const LONGEST_WORD: usize = 64;

/// What the operator can do.
pub struct Operator {
    gateway: Arc<Gateway>,
    document: Document,
    /// Going through all entries takes its time: one does at a time, and never a thread that answers requests.
    turn: Semaphore,
}

impl Operator {
    /// To this gateway.
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway, document: Document::new(), turn: Semaphore::new(1) }
    }

    /// Answers a request that came in by the address `local`.
    pub async fn answer<B>(&self, request: Request<B>, local: SocketAddr) -> Page
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        if let Err(refused) = guard::admit(&head, local, self.gateway.live().admin_token()) {
            return refused.page();
        }
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
            "/status" => status::page(&self.gateway),
            "/cache/entries" => self.aside(move |gateway| entries::page(gateway, &query)).await,
            "/cache/purge" => self.aside(move |gateway| purge::page(gateway, &query)).await,
            "/config" => text(StatusCode::OK, self.gateway.live().in_words().trim_end()),
            "/explain" => explain::page(&self.gateway, &query),
            "/mode" if is_read => self.mode(),
            "/mode" => match word::<Mode, _>(body).await {
                Ok(mode) => self.set_mode(mode),
                Err(message) => text(StatusCode::BAD_REQUEST, message),
            },
            _ if is_read => log_level(),
            _ => match word::<Level, _>(body).await {
                Ok(level) => self.set_log_level(level),
                Err(message) => text(StatusCode::BAD_REQUEST, message),
            },
        }
    }

    /// Does something that takes its time.
    async fn aside(&self, page: impl FnOnce(&Gateway) -> Page + Send + 'static) -> Page {
        let gateway = Arc::clone(&self.gateway);
        let turn = self.turn.acquire().await;
        let page = tokio::task::spawn_blocking(move || page(&gateway)).await;
        drop(turn);
        page.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("this went wrong: {error}")))
    }

    fn mode(&self) -> Page {
        json_page(StatusCode::OK, &json!({ "mode": self.gateway.mode() }))
    }

    fn set_mode(&self, mode: Mode) -> Page {
        self.gateway.set_mode(mode);
        tracing::info!(mode = mode.as_str(), "mode set");
        self.gateway.notable(Event::Mode, format!("mode set to {}", mode.as_str()), None);
        self.mode()
    }

    fn set_log_level(&self, level: Level) -> Page {
        if !logs::set_level(level) {
            return text(StatusCode::CONFLICT, "the log of this process is not the gateway's, and stays as it is");
        }
        tracing::info!(level = %level, "log level set");
        self.gateway.notable(Event::LogLevel, format!("log level set to {level}"), None);
        log_level()
    }
}

fn log_level() -> Page {
    json_page(StatusCode::OK, &json!({ "log_level": logs::level().map(|level| level.to_string()) }))
}

/// A word that a body consists of.
async fn word<T, B>(body: B) -> Result<T, String>
where
    T: std::str::FromStr<Err = String>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let body = Limited::new(body, LONGEST_WORD).collect().await.map(http_body_util::Collected::to_bytes);
    let given = body.ok().map(|body| String::from_utf8_lossy(&body).trim().to_owned()).unwrap_or_default();
    given.parse()
}
