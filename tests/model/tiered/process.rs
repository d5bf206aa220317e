//! The process of a gateway: the gateway, its clients, its upstream, its link to the engine, and what is known of it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use workspace_gateway::testing::cache::second_tier::SecondTier;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::gateway::{Connection, Gateway};

use super::super::domain::{CacheRequest, CallerId, KeyId, Ms, RequestId};
use super::super::driver::{ClientResponse, send};
use super::super::property::Property;
use super::super::scripted_upstream::{ScriptedUpstream, random};
use super::super::settings::Settings;
use super::Selection;
use super::engine::Engine;
use super::link::Link;

/// The secret of the fleet.
const SECRET: [u8; 32] = [7; 32];

pub(super) struct Process {
    /// No two processes have the same.
    pub(super) number: usize,
    pub(super) gateway: Arc<Gateway>,
    connection: Arc<Connection>,
    pub(super) upstream: Arc<ScriptedUpstream>,
    pub(super) link: Arc<Link>,
    pub(super) property: Property,
    /// The number of its next request.
    pub(super) next: RequestId,
    clients: Vec<AbortHandle>,
    pub(super) responses: Arc<Mutex<Vec<ClientResponse>>>,
    /// Requests without a response.
    pub(super) waiting: Vec<RequestId>,
    /// Requests that got a list.
    pub(super) listed: Vec<RequestId>,
    /// The calls in flight. Not relayed requests.
    pub(super) calls: Vec<Call>,
    /// What has become void and was not told to the engine yet.
    pub(super) to_tell: Vec<Selection>,
    /// The requests by number, when they arrived, by timers, and how far clocks had jumped by then.
    pub(super) requests: Vec<(CacheRequest, Ms, Ms)>,
    /// Since when it has had requests without a call anywhere, by timers.
    pub(super) idle_since: Option<Ms>,
}

/// A call in flight.
pub(super) struct Call {
    pub(super) id: RequestId,
    /// When it was sent, by timers, and by the time that has really passed.
    pub(super) sent: Ms,
    pub(super) real_sent: Ms,
    pub(super) caller: CallerId,
    pub(super) key: KeyId,
    /// Whether it is one for all gateways: the client asked for nothing special, and whether its caller had a grant.
    pub(super) is_plain: bool,
    pub(super) is_granted: bool,
}

impl Process {
    /// A gateway with an empty memory, and with a snapshot if there is a path for it.
    pub(super) fn start(
        number: usize,
        snapshot: Option<&Path>,
        (settings, config): (Settings, &Config),
        engine: &Arc<Engine>,
        clock: &ManualClock,
        activity: &Arc<Notify>,
    ) -> Self {
        let upstream = Arc::new(ScriptedUpstream::new(Arc::clone(activity)));
        let link = Link::new(engine, number, clock);
        let (called, tier) = (Arc::clone(&upstream), Arc::clone(&link) as Arc<dyn SecondTier>);
        let clock = Clock::Manual(clock.clone());
        let tier = (tier, SECRET);
        let gateway = match snapshot {
            Some(path) => Gateway::with_second_tier_and_snapshot(called, tier, path, config, clock, random()),
            None => Gateway::with_second_tier(called, tier, config, clock, random()),
        };
        let gateway = gateway.unwrap();
        let connection = Arc::new(gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into()));
        Self {
            number,
            gateway,
            connection,
            upstream,
            link,
            property: Property::new(settings),
            next: 0,
            clients: Vec::new(),
            responses: Arc::default(),
            waiting: Vec::new(),
            listed: Vec::new(),
            calls: Vec::new(),
            to_tell: Vec::new(),
            requests: Vec::new(),
            idle_since: None,
        }
    }

    /// A client sends a request, and its response is added to `responses`. `start` and `arrived` are as in [`send`].
    pub(super) fn send(
        &mut self,
        request: CacheRequest,
        start: Instant,
        (arrived, jumped): (Ms, Ms),
        activity: &Arc<Notify>,
    ) {
        self.next += 1;
        self.waiting.push(request.id);
        self.requests.push((request, arrived, jumped));
        let (responses, activity) = (Arc::clone(&self.responses), Arc::clone(activity));
        let deliver = move |response| {
            responses.lock().unwrap().push(response);
            activity.notify_one();
        };
        self.clients.push(send((&self.gateway, &self.connection), request, start, arrived, deliver));
    }

    /// It ends without a word, and its clients are disconnected.
    pub(super) fn kill(&self) {
        self.link.kill();
        self.clients.iter().for_each(AbortHandle::abort);
    }
}

/// A folder for the snapshots of a sequence. It is removed at the end.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("workspace-gateway-model-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
