//! The tasks that export spans and metrics, and how they end. A receiver that hangs or refuses delays nothing else, and
//! the end of the process by one second at most.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use strum::VariantArray;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep, timeout};

use super::connection::{ExportError, Receiver};
use super::metrics::Times;
use super::resource::Resource;
use super::{metrics, tls_config, traces};
use crate::clock::Clock;
use crate::config::otlp::{OtlpConfig, OtlpUrl};
use crate::machine::Machine;
use crate::telemetry::events::{Event, NewEvent};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::outcome::{ExportFault, Signal, SpanResult};
use crate::telemetry::traces::Span;

/// How long the end of the process waits for the last exports.
const LAST_EXPORTS: Duration = Duration::from_secs(1);

/// How long an export waits at first before it is repeated. Then the wait doubles each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);

const TRACE_SERVICE: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const METRICS_SERVICE: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// Where events go.
type OnEvent = Arc<dyn Fn(NewEvent<'static>) + Send + Sync>;

/// The running export.
pub(crate) struct Exporter {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// What both tasks need.
#[derive(Clone)]
struct Shared {
    config: Arc<OtlpConfig>,
    resource: Arc<Resource>,
    metrics: Arc<Metrics>,
    clock: Clock,
    on_event: OnEvent,
    stop: watch::Receiver<bool>,
}

impl Exporter {
    /// Starts the export. `listener` is the address for clients, and whether it has TLS. `instance` is a name of this
    /// process that no other has.
    ///
    /// # Errors
    /// If `otlp.ca_file` is unusable.
    pub(crate) fn start(
        config: &OtlpConfig,
        spans: Option<mpsc::Receiver<Span>>,
        (listener, has_tls): (SocketAddr, bool),
        instance: String,
        (metrics, machine): (Arc<Metrics>, &Machine),
        on_event: impl Fn(NewEvent<'static>) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let tls = tls_config(config)?;
        let (stop, stopped) = watch::channel(false);
        let shared = Shared {
            config: Arc::new(config.clone()),
            resource: Arc::new(Resource::new(config, listener, has_tls, instance)),
            metrics,
            clock: machine.clock.clone(),
            on_event: Arc::new(on_event),
            stop: stopped,
        };
        let exports = |signal, url: &OtlpUrl, method| {
            let OtlpConfig { protocol, headers, timeout, .. } = config;
            let receiver = Receiver::new(
                machine.network.clone(),
                url.clone(),
                (*protocol, method),
                headers.clone(),
                *timeout,
                tls.clone(),
            );
            Exports::new(signal, receiver, shared.clone())
        };
        let mut tasks = Vec::new();
        if let Some((url, spans)) = config.traces.as_ref().zip(spans) {
            tasks.push(tokio::spawn(export_spans(exports(Signal::Traces, url, TRACE_SERVICE), spans)));
        }
        if let Some(url) = &config.metrics {
            tasks.push(tokio::spawn(export_metrics(exports(Signal::Metrics, url, METRICS_SERVICE))));
        }
        Ok(Self { stop, tasks })
    }

    /// Exports what waits, for at most [`LAST_EXPORTS`].
    pub(crate) async fn end(self) {
        self.stop.send_replace(true);
        let tasks: Vec<AbortHandle> = self.tasks.iter().map(JoinHandle::abort_handle).collect();
        let ended = async {
            for task in self.tasks {
                let _ = task.await;
            }
        };
        if timeout(LAST_EXPORTS, ended).await.is_err() {
            tasks.iter().for_each(AbortHandle::abort);
        }
    }
}

/// The exports of one signal: each is counted, and an event says when they fail and when they succeed again.
struct Exports {
    signal: Signal,
    receiver: Receiver,
    shared: Shared,
    /// When exports began to fail, and how many have failed since.
    failing: Option<(Instant, u64)>,
}

impl Exports {
    fn new(signal: Signal, receiver: Receiver, shared: Shared) -> Self {
        let results = ExportFault::VARIANTS.iter().map(|fault| fault.into_str()).chain([EXPORTED]);
        for result in results {
            shared.metrics.otlp_exports.with_label_values(&[signal.into_str(), result]);
        }
        if signal == Signal::Traces {
            for result in SpanResult::VARIANTS {
                shared.metrics.otlp_spans.with_label_values(&[result.into_str()]);
            }
        }
        Self { signal, receiver, shared, failing: None }
    }

    async fn export(&mut self, message: &Bytes) -> Result<u64, ExportError> {
        let result = self.receiver.export(message).await;
        let (signal, now) = (self.signal.into_str(), self.shared.clock.timer_now());
        let label = result.as_ref().map_or_else(|error| error.fault.into_str(), |_| EXPORTED);
        self.shared.metrics.otlp_exports.with_label_values(&[signal, label]).inc();
        match &result {
            Ok(_) => {
                if let Some((since, failures)) = self.failing.take() {
                    let event = NewEvent::new(Event::Otlp, format!("the export of {signal} works again"));
                    (self.shared.on_event)(event.after(now.saturating_duration_since(since), failures));
                }
            }
            Err(error) => {
                self.failing.get_or_insert((now, 0)).1 += 1;
                let event = NewEvent::new(Event::OtlpFailed, format!("the export of {signal} fails ({label})"));
                (self.shared.on_event)(event.with_error(&error.details));
            }
        }
        result
    }

    /// Also if the exporter is gone.
    fn is_stopping(&self) -> bool {
        *self.shared.stop.borrow() || self.shared.stop.has_changed().is_err()
    }
}

/// The label of an export that has succeeded.
const EXPORTED: &str = "exported";

/// Resolves when the process ends.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error: the other end is gone, which is the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn export_spans(mut exports: Exports, mut queue: mpsc::Receiver<Span>) {
    let (max, delay) = (exports.shared.config.max_batch, exports.shared.config.batch_delay);
    let mut stop = exports.shared.stop.clone();
    let mut batch = Vec::new();
    while !exports.is_stopping() {
        tokio::select! {
            biased;
            count = queue.recv_many(&mut batch, max) => if count == 0 { return },
            () = stopped(&mut stop) => break,
        }
        let mut delayed = pin!(sleep(delay));
        while batch.len() < max {
            let room = max - batch.len();
            tokio::select! {
                biased;
                count = queue.recv_many(&mut batch, room) => if count == 0 { break },
                () = &mut delayed => break,
                () = stopped(&mut stop) => break,
            }
        }
        export_batch(&mut exports, &mut batch).await;
    }
    // The rest, each batch once.
    queue.close();
    while !batch.is_empty() || queue.recv_many(&mut batch, max).await > 0 {
        export_batch(&mut exports, &mut batch).await;
    }
}

/// Exports spans, and repeats that if it may succeed later.
async fn export_batch(exports: &mut Exports, batch: &mut Vec<Span>) {
    let message = Bytes::from(traces::request(batch, &exports.shared.resource));
    let spans = batch.len() as u64;
    batch.clear();
    let mut stop = exports.shared.stop.clone();
    let begun = exports.shared.clock.timer_now();
    let mut wait = FIRST_WAIT;
    let count = |exports: &Exports, result: SpanResult, number| {
        exports.shared.metrics.otlp_spans.with_label_values(&[result.into_str()]).inc_by(number);
    };
    loop {
        let error = match exports.export(&message).await {
            Ok(rejected) => {
                let rejected = rejected.min(spans);
                count(exports, SpanResult::Failed, rejected);
                return count(exports, SpanResult::Exported, spans - rejected);
            }
            Err(error) => error,
        };
        // A receiver that has not answered may have accepted the spans.
        let may_repeat = matches!(error.fault, ExportFault::Busy | ExportFault::Unreachable);
        let pause = wait.max(error.retry_after.unwrap_or_default());
        // Subtracted, because both may be as long as their numbers allow.
        let passed = exports.shared.clock.timer_now().saturating_duration_since(begun);
        let is_too_long = pause > exports.shared.config.retry_for.saturating_sub(passed);
        if !may_repeat || exports.is_stopping() || is_too_long {
            return count(exports, SpanResult::Failed, spans);
        }
        tokio::select! {
            biased;
            () = sleep(pause) => {}
            () = stopped(&mut stop) => {}
        }
        wait *= 2;
    }
}

async fn export_metrics(mut exports: Exports) {
    let started = exports.shared.clock.date();
    let mut stop = exports.shared.stop.clone();
    while !exports.is_stopping() {
        tokio::select! {
            biased;
            () = sleep(exports.shared.config.metrics_interval) => {}
            () = stopped(&mut stop) => {}
        }
        // Not repeated: the next one has the same sums.
        let message = metrics_message(&exports.shared, started);
        let _ = exports.export(&message).await;
    }
}

fn metrics_message(shared: &Shared, started: SystemTime) -> Bytes {
    // The wall clock may have been set back.
    let now = shared.clock.date();
    let times = Times { started: started.min(now), now };
    Bytes::from(metrics::request(&shared.metrics.gather(), times, &shared.resource))
}
