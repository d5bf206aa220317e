//! The admin listener: its endpoints and what each does. Access control is in `guard.rs`, and must come first.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Either, Limited};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::document::Document;
use super::guard::AccessDenied;
use super::{
    AdminBody, Endpoint, Page, READ, entries, explain, find, guard, history, json as json_page, purge, status, tail,
    text,
};
use crate::budget::{Account, ConnectionClass};
use crate::config::Mode;
use crate::config::enums::Level;
use crate::gateway::Gateway;
use crate::stream::BoxError;
use crate::telemetry::events::{Event, NewEvent};
use crate::telemetry::logs;

/// Bytes of a body. The longest value that can be set has six letters.
const MAX_VALUE: usize = 64;

/// Bytes of a form. A token has about 5 KiB.
const MAX_FORM: usize = 64 * 1024;

const READ_AND_PUT: &str = "GET, HEAD, PUT";

enum OperatorHandler {
    /// Answers at once, from the query.
    Immediate(fn(&Operator, &str) -> Page),
    /// Goes through all entries. One request at a time does, on a thread for blocking work.
    Blocking(fn(&Gateway, &str) -> Page),
    /// GET takes the parameters from the query. POST takes them from the body, where no log and no history keeps them.
    Form(fn(&Operator, &str) -> Page),
    /// Streams the live tail.
    Tail,
    /// GET shows a value, PUT sets it to the body.
    Value { show: fn(&Operator) -> Page, set: fn(&Operator, &str) -> Page },
}

use OperatorHandler::{Blocking, Form, Immediate, Tail, Value};

/// `deploy/operating.md` describes them.
const ENDPOINTS: [Endpoint<OperatorHandler>; 10] = [
    Endpoint {
        path: "/",
        allow: READ,
        help: "the status page",
        handler: Immediate(|operator, _| operator.document.page()),
    },
    Endpoint {
        path: "/status",
        allow: READ,
        help: "the figures and events of the status page, in JSON",
        handler: Immediate(|operator, _| status::page(&operator.gateway, operator.proxy)),
    },
    Endpoint {
        path: "/history",
        allow: READ,
        help: "samples of the last hour, for the charts of the status page, in JSON (?after=NUMBER)",
        handler: Immediate(|operator, query| history::page(&operator.gateway, query)),
    },
    Endpoint {
        path: "/cache/entries",
        allow: READ,
        help: "the entries of the cache, in JSON (?limit=NUMBER)",
        handler: Blocking(entries::page),
    },
    Endpoint {
        path: "/cache/purge",
        allow: "POST",
        help: "removes entries (?operation=NAME, with &query=QUERY for one cache key; ?project=ID; ?all=true)",
        handler: Blocking(purge::page),
    },
    Endpoint {
        path: "/config",
        allow: READ,
        help: "the settings in force, without secrets",
        handler: Immediate(|operator, _| operator.config()),
    },
    Endpoint {
        path: "/explain",
        allow: "GET, HEAD, POST",
        help: "what the gateway would do with a request (?url=URL&header=NAME: VALUE, or the same in the body of a POST)",
        handler: Form(|operator, parameters| explain::page(&operator.gateway, parameters)),
    },
    Endpoint {
        path: "/tail",
        allow: "GET",
        help: "requests as they end, as server-sent events (?operation=NAME&result=NAME&status=5xx&caller=ID&client=ADDRESS&slow=1s)",
        handler: Tail,
    },
    Endpoint {
        path: "/log-level",
        allow: READ_AND_PUT,
        help: "the log level; PUT sets it to its body: error, warn, info, debug or trace",
        handler: Value { show: |_| log_level(), set: Operator::set_log_level },
    },
    Endpoint {
        path: "/mode",
        allow: READ_AND_PUT,
        help: "whether the cache is used; PUT sets it to its body: cache or bypass",
        handler: Value { show: Operator::mode, set: Operator::set_mode },
    },
];

pub(crate) struct Operator {
    gateway: Arc<Gateway>,
    /// Where clients connect.
    proxy: SocketAddr,
    /// TOML comments on settings that are not in force as configured.
    remarks: String,
    document: Document,
    /// Held while a request goes through all entries.
    turn: Arc<Semaphore>,
    /// Becomes true when the process begins to stop.
    drain: watch::Receiver<bool>,
}

impl Operator {
    /// Clients of the gateway connect to `proxy`. `/config` shows the remarks after the settings.
    /// The tail ends when `drain` becomes true.
    pub(crate) fn new(gateway: Arc<Gateway>, proxy: SocketAddr, remarks: String, drain: watch::Receiver<bool>) -> Self {
        Self { gateway, proxy, remarks, document: Document::new(), turn: Arc::new(Semaphore::new(1)), drain }
    }

    /// Answers a request to the listener with the address `local`. The class of the connection rises to `Known` if the
    /// request has the token or needs none.
    pub(crate) async fn answer<B>(
        &self,
        request: Request<B>,
        local: SocketAddr,
        account: &Account,
    ) -> Response<AdminBody>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        account.raise(ConnectionClass::Unknown, None);
        let active = self.gateway.active();
        if let Err(denied) = guard::admit(&head, local, active.admin_token()) {
            // The page itself first sends a request without a token, to learn whether one is needed. That is no event.
            if denied != AccessDenied::Token || head.headers.contains_key(AUTHORIZATION) {
                self.gateway.observer().record_event(NewEvent::new(Event::AdminDenied, denied.describe()));
            }
            return denied.page().map(Either::Left);
        }
        // The page itself needs no token.
        if head.uri.path() != "/" || active.admin_token().is_none() {
            account.raise(ConnectionClass::Known, None);
        }
        drop(active);
        let query = head.uri.query().unwrap_or_default();
        let page = match find(&ENDPOINTS, head.uri.path(), &head.method) {
            Err(error) => *error,
            Ok(Tail) => match tail::stream(&self.gateway, query, &self.drain) {
                Ok(stream) => return stream,
                Err(error) => *error,
            },
            Ok(Immediate(page)) => page(self, query),
            Ok(Blocking(page)) => {
                let query = query.to_owned();
                self.run_blocking(move |gateway| page(gateway, &query)).await
            }
            Ok(Form(page)) if head.method == Method::POST => match self.read_body(body, MAX_FORM).await {
                Ok(Some(form)) => page(self, &form),
                Ok(None) => {
                    let message = format!("expected a body of at most {} KiB", MAX_FORM / 1024);
                    text(StatusCode::PAYLOAD_TOO_LARGE, message)
                }
                Err(error) => error,
            },
            Ok(Form(page)) => page(self, query),
            Ok(Value { set, .. }) if head.method == Method::PUT => match self.read_body(body, MAX_VALUE).await {
                Ok(value) => set(self, value.unwrap_or_default().trim()),
                Err(error) => error,
            },
            Ok(Value { show, .. }) => show(self),
        };
        page.map(Either::Left)
    }

    /// Runs something that takes long on a thread that answers no other requests.
    async fn run_blocking(&self, page: impl FnOnce(&Gateway) -> Page + Send + 'static) -> Page {
        let gateway = Arc::clone(&self.gateway);
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        let page = tokio::task::spawn_blocking(move || {
            // Held by the task, because it goes on when the client disconnects.
            let _turn = turn;
            page(&gateway)
        })
        .await;
        page.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal error: {error}")))
    }

    /// Reads a body. It must arrive within `limits.header_timeout`, because a few slow clients could otherwise keep
    /// everyone else out. `None` if it has more than `max` bytes, or is incomplete.
    async fn read_body<B>(&self, body: B, max: usize) -> Result<Option<String>, Page>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let limit = self.gateway.active().settings().limits.header_timeout.0;
        let body = timeout(limit, Limited::new(body, max).collect()).await;
        let body = body.map_err(|_| text(StatusCode::REQUEST_TIMEOUT, "refused: the body did not arrive in time"))?;
        Ok(body.ok().map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    }

    fn config(&self) -> Page {
        text(StatusCode::OK, (self.gateway.active().as_toml().to_owned() + &self.remarks).trim_end())
    }

    fn mode(&self) -> Page {
        json_page(StatusCode::OK, &json!({ "mode": self.gateway.mode() }))
    }

    fn set_mode(&self, value: &str) -> Page {
        match value.parse::<Mode>() {
            Err(message) => wrong_value(&message, "bypass http://ADDRESS/mode"),
            Ok(mode) => {
                self.gateway.set_mode(mode);
                self.record(Event::Mode, format!("mode set to {}", mode.into_str()));
                self.mode()
            }
        }
    }

    fn set_log_level(&self, value: &str) -> Page {
        match value.parse::<Level>() {
            Err(message) => wrong_value(&message, "debug http://ADDRESS/log-level"),
            Ok(level) if logs::set_level(level) => {
                self.record(Event::LogLevel, format!("log level set to {level}"));
                log_level()
            }
            Ok(_) => {
                text(StatusCode::CONFLICT, "cannot set the log level: this process does not use the gateway's log")
            }
        }
    }

    fn record(&self, event: Event, what: String) {
        self.gateway.observer().record_event(NewEvent::new(event, what));
    }
}

/// The response to a PUT with a wrong body. `example` is the end of a command.
fn wrong_value(message: &str, example: &str) -> Page {
    text(StatusCode::BAD_REQUEST, format!("{message}. The value is the body: curl -X PUT -d {example}"))
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

    #[test]
    fn deploy_operating_md_describes_every_endpoint() {
        let text = include_str!("../../deploy/operating.md");
        for endpoint in &ENDPOINTS {
            for method in endpoint.allow.split(", ").filter(|method| *method != "HEAD") {
                let call = format!("`{method} {}", endpoint.path);
                assert!(["`", "?"].iter().any(|end| text.contains(&(call.clone() + end))), "{call}");
            }
        }
    }

    #[tokio::test]
    async fn blocking_requests_run_one_after_the_other_even_if_a_client_disconnects() {
        let config = Config::from_layers("f", "region = \"r\"", &[]).unwrap();
        let gateway = Gateway::new(&config, Clock::System).unwrap();
        let operator = Operator::new(gateway, ([127, 0, 0, 1], 1).into(), String::new(), watch::channel(false).1);
        let ((begin, begun), (end, ended)) = (mpsc::channel(), mpsc::channel::<()>());
        let first = operator.run_blocking(move |_| {
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
        assert_eq!(operator.turn.available_permits(), 0, "the task goes on without its client");
        end.send(()).unwrap();
        assert_eq!(operator.run_blocking(|_| text(StatusCode::OK, "second")).await.status(), StatusCode::OK);
    }
}
