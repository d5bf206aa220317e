//! Divergence: upstream shows different responses to the callers of one project. Sharing assumes that it does not.
//! These tests show what callers see until the gateway detects it. After that, no caller may see the response of
//! another.

use std::fmt;

use bytes::Bytes;
use http::Method;
use tokio::task::JoinHandle;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::raw_upstream::{RawUpstream, sends};
use crate::support::{PROJECT, Reply, World, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const SHARER: &str = "/v2/PROJECT/products/sharer";

/// The number of private scopes.
const PRIVATE: &str = "workspace_gateway_private_scopes";

/// Entries expire long before grants. A request for an expired entry waits for upstream.
const SETTINGS: &str = "[cache]\nttl = \"1m\"\nstale_while_revalidate = \"0s\"\nstale_if_slow = \"60s\"\n";

/// The body that a caller gets. Its `Debug` output is the length, which differs between callers.
#[derive(Clone, PartialEq)]
struct View(Bytes);

impl View {
    async fn of(pending: JoinHandle<Reply>) -> Self {
        Self(within(pending).await.unwrap().body().clone())
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A caller that gets all products and one that gets fewer. Both have grants in the scopes of `LIST` and `SHARER`.
struct Pair {
    world: World,
    wide: String,
    narrow: String,
}

impl Pair {
    async fn new() -> Self {
        let world = World::with(SETTINGS).await;
        let [wide, narrow] = world.granted_tokens().await;
        world.simulator.restrict_view(&narrow);
        for token in [&wide, &narrow] {
            world.get_as(token, "/v2/PROJECT/products/sharer?limit=0").await;
        }
        world.simulator.forget_requests();
        Self { world, wide, narrow }
    }

    /// The bodies that upstream itself sends to the two callers.
    async fn views(&self, path: &str) -> (View, View) {
        let url = self.world.simulator.url(Service::Workspace) + &path.replace("PROJECT", PROJECT);
        let mut views = Vec::new();
        for token in [&self.wide, &self.narrow] {
            let token = [("x-auth-token", token.as_str())];
            let reply = self.world.http.send(Method::GET, &url, &token, "").await;
            views.push(View(reply.body().clone()));
        }
        self.world.simulator.forget_requests();
        assert_ne!(views[0], views[1]);
        (views[0].clone(), views[1].clone())
    }

    /// The body that a caller gets, and whether it was a hit.
    async fn get(&self, token: &str, path: &str) -> (View, bool) {
        let reply = self.world.get_as(token, path).await;
        (View(reply.body().clone()), reply.is_hit())
    }

    fn expire(&self) {
        self.world.seconds_pass(60);
    }

    /// Makes the responses to `LIST` alternate: wide, narrow, wide.
    async fn alternate(&self) {
        for token in [&self.wide, &self.narrow, &self.wide] {
            self.expire();
            self.world.get_as(token, LIST).await;
        }
        assert_eq!(self.world.metric(PRIVATE), 0.0);
    }

    /// Alternates once more. The fourth response makes the scope private.
    async fn make_private(&self) {
        self.alternate().await;
        self.expire();
        self.world.get_as(&self.narrow, LIST).await;
        assert_eq!(self.world.metric(PRIVATE), 1.0);
    }
}

#[tokio::test]
async fn the_fourth_diverging_response_makes_the_scope_private() {
    let pair = Pair::new().await;
    let (whole, part) = pair.views(LIST).await;
    let (wide, narrow) = (&pair.wide, &pair.narrow);
    let (hit, miss) = (true, false);

    // Before: while an entry is fresh, both callers get the response of the one that led the fetch.
    for (leader, follower, view) in [(wide, narrow, &whole), (narrow, wide, &part), (wide, narrow, &whole)] {
        pair.expire();
        assert_eq!(pair.get(leader, LIST).await, (view.clone(), miss));
        assert_eq!(pair.get(follower, LIST).await, (view.clone(), hit));
        assert_eq!(pair.world.metric(PRIVATE), 0.0);
    }
    assert_eq!(pair.world.upstream_calls(), 3);

    // The fourth response makes the scope private. Only its own caller gets it.
    pair.expire();
    assert_eq!(pair.get(narrow, LIST).await, (part.clone(), miss));
    assert_eq!(pair.world.metric(PRIVATE), 1.0);
    assert_eq!(pair.get(wide, LIST).await, (whole.clone(), miss));

    // After: each caller gets its own response, from its own entry.
    for _ in 0..5 {
        assert_eq!(pair.get(wide, LIST).await, (whole.clone(), hit));
        assert_eq!(pair.get(narrow, LIST).await, (part.clone(), hit));
        pair.expire();
        assert_eq!(pair.get(narrow, LIST).await, (part.clone(), miss));
        assert_eq!(pair.get(wide, LIST).await, (whole.clone(), miss));
    }
    assert_eq!(pair.world.metric(PRIVATE), 1.0);
}

#[tokio::test]
async fn a_private_scope_is_private_for_every_request() {
    let pair = Pair::new().await;
    let (whole, part) = pair.views(OTHER).await;
    pair.alternate().await;
    pair.expire();
    // The entry was shared before the scope turned private, and it is still fresh.
    assert_eq!(pair.get(&pair.wide, OTHER).await, (whole.clone(), false));
    assert_eq!(pair.get(&pair.narrow, OTHER).await, (whole.clone(), true));
    pair.world.get_as(&pair.narrow, LIST).await;
    assert_eq!(pair.world.metric(PRIVATE), 1.0);
    assert_eq!(pair.get(&pair.narrow, OTHER).await, (part, false));
    assert_eq!(pair.get(&pair.wide, OTHER).await, (whole, false));
}

#[tokio::test]
async fn other_scopes_stay_shared() {
    let pair = Pair::new().await;
    let (whole, _) = pair.views(SHARER).await;
    pair.make_private().await;
    assert_eq!(pair.get(&pair.wide, SHARER).await, (whole.clone(), false));
    assert_eq!(pair.get(&pair.narrow, SHARER).await, (whole, true));
}

#[tokio::test]
async fn callers_of_a_private_scope_do_not_share_a_flight() {
    let pair = Pair::new().await;
    pair.make_private().await;
    pair.world.simulator.forget_requests();
    pair.world.simulator.hold();
    let wide = pair.world.begin_and_reach_upstream(&pair.wide, OTHER, 1).await;
    let narrow = pair.world.begin_and_reach_upstream(&pair.narrow, OTHER, 2).await;
    pair.world.simulator.release();
    assert_eq!((View::of(wide).await, View::of(narrow).await), pair.views(OTHER).await);
}

#[tokio::test]
async fn a_scope_that_turns_private_during_a_flight_is_private_for_waiters() {
    let pair = Pair::new().await;
    let (whole, part) = pair.views(OTHER).await;
    pair.alternate().await;
    pair.expire();
    pair.world.simulator.forget_requests();
    let target = OTHER.replace("PROJECT", PROJECT);
    pair.world.simulator.hold_target(&target);
    let leading = pair.world.begin_and_reach_upstream(&pair.wide, OTHER, 1).await;
    let following = pair.world.begin_and_wait(&pair.narrow, OTHER, 1).await;
    pair.world.get_as(&pair.narrow, LIST).await;
    assert_eq!(pair.world.metric(PRIVATE), 1.0);
    pair.world.simulator.release_target(&target);
    assert_eq!(View::of(leading).await, whole);
    assert_eq!(View::of(following).await, part, "the waiter sends its own request");
    assert_eq!(pair.world.upstream_calls(), 3);
    // Only the leader gets the response of the flight.
    assert_eq!(pair.get(&pair.wide, OTHER).await, (whole, true));
    assert_eq!(pair.get(&pair.narrow, OTHER).await, (part, true));
}

#[tokio::test]
async fn a_purge_of_a_private_scope_makes_it_shared_again() {
    let pair = Pair::new().await;
    pair.make_private().await;
    let gateway = pair.world.server.gateway();
    for (operation, project_id, private) in [
        (Some("ListSharerProducts"), None, 1.0),
        (Some("ListProducts"), Some("another"), 1.0),
        (Some("ListProducts"), Some(PROJECT), 0.0),
    ] {
        let own = |name: Option<&str>| name.map(str::to_owned);
        gateway.purge(&PurgeSelection { operation: own(operation), project_id: own(project_id), query: None });
        assert_eq!(pair.world.metric(PRIVATE), private, "{operation:?} {project_id:?}");
    }
    let (whole, _) = pair.views(LIST).await;
    assert_eq!(pair.get(&pair.wide, LIST).await, (whole.clone(), false));
    assert_eq!(pair.get(&pair.narrow, LIST).await, (whole, true), "the callers share again");
}

/// An operation with as many scopes as there are volumes.
const VOLUMES: &str =
    "[[operation]]\nname = \"ShowVolume\"\npath = \"/v2/{project_id}/volumes/{volume_id}\"\nbody = \"none\"\n";

/// Two callers with grants. A response with `Vary: X-Auth-Token` has made the operation private.
async fn world_with_private_volumes() -> (World, [String; 2]) {
    let world = World::with(VOLUMES).await;
    let tokens = world.granted_tokens().await;
    world.get_as(&tokens[0], LIST).await;
    world.simulator.add_header("vary".parse().unwrap(), "X-Auth-Token".parse().unwrap());
    world.get_as(&tokens[0], "/v2/PROJECT/volumes/first").await;
    world.simulator.remove_headers();
    (world, tokens)
}

#[tokio::test]
async fn vary_on_the_credential_makes_only_that_operation_private() {
    let (world, [one, two]) = world_with_private_volumes().await;
    assert_eq!(world.metric(PRIVATE), 1.0);
    // These responses have no Vary, and both callers have grants there.
    let another = "/v2/PROJECT/volumes/another";
    for token in [&one, &two] {
        world.get_as(token, another).await;
    }
    world.server.gateway().purge(&PurgeSelection { project_id: Some(PROJECT.to_owned()), ..PurgeSelection::default() });
    for (token, is_hit) in [(&one, false), (&two, false), (&one, true), (&two, true)] {
        assert_eq!(world.get_as(token, another).await.is_hit(), is_hit, "each caller has its own entry");
    }
    for volume in 0..1_100 {
        world.simulator.add_header("vary".parse().unwrap(), "X-Auth-Token".parse().unwrap());
        world.get_as(&one, &format!("/v2/PROJECT/volumes/{volume}")).await;
        world.simulator.remove_headers();
    }
    assert_eq!(world.metric(PRIVATE), 1.0, "one operation, however many scopes it has");
    world.get_as(&one, LIST).await;
    assert!(world.get_as(&two, LIST).await.is_hit());
}

#[tokio::test]
async fn vary_on_the_credential_counts_in_responses_that_are_not_stored() {
    for (name, value) in [("vary", "X-Auth-Token, Origin"), ("vary", "*, X-Auth-Token"), ("cache-control", "no-store")]
    {
        let world = World::with(VOLUMES).await;
        let [one] = world.granted_tokens().await;
        if name != "vary" {
            world.simulator.add_header("vary".parse().unwrap(), "Authorization".parse().unwrap());
        }
        world.simulator.add_header(name.parse().unwrap(), value.parse().unwrap());
        world.get_as(&one, "/v2/PROJECT/volumes/first").await;
        assert_eq!(world.metric(PRIVATE), 1.0, "{name}: {value}");
    }
}

#[tokio::test]
async fn only_a_purge_of_a_whole_private_operation_makes_it_shared_again() {
    let (world, [one, two]) = world_with_private_volumes().await;
    let gateway = world.server.gateway();
    for (operation, project_id, private) in [
        (Some("ListProducts"), None, 1.0),
        (None, Some(PROJECT), 1.0),
        (Some("ShowVolume"), Some(PROJECT), 1.0),
        (Some("ShowVolume"), None, 0.0),
    ] {
        let own = |name: Option<&str>| name.map(str::to_owned);
        gateway.purge(&PurgeSelection { operation: own(operation), project_id: own(project_id), query: None });
        assert_eq!(world.metric(PRIVATE), private, "{operation:?} {project_id:?}");
    }
    for (token, is_hit) in [(&one, false), (&two, false), (&two, true), (&one, true)] {
        let path = "/v2/PROJECT/volumes/first";
        assert_eq!(world.get_as(token, path).await.is_hit(), is_hit, "the callers share again until the next Vary");
    }
}

/// Whether two callers with grants in the scope of a path share its entries.
async fn callers_share(world: &World, path: &str) -> bool {
    let [one, two] = ["alice", "bob"];
    for token in [one, two] {
        world.get_as(token, path).await;
    }
    world.seconds_pass(60);
    assert!(!world.get_as(one, path).await.is_hit(), "it has expired");
    world.get_as(two, path).await.is_hit()
}

#[tokio::test]
async fn too_many_private_scopes_make_only_their_operation_private() {
    /// One more than the limit of separately stored private scopes.
    const SCOPES: usize = 129;
    let response = |more: &str, body: &str| {
        sends(format!("HTTP/1.1 200 OK\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len()))
    };
    let list = response("", r#"{"products":[]}"#);
    // The responses for one volume: alternating by caller, or with Vary on the credential.
    let [wide, narrow] = [r#"{"volume":1}"#, "{}"].map(|body| response("", body));
    let alternating = vec![wide.clone(), narrow.clone(), wide, narrow];
    let varying = vec![response("Vary: X-Auth-Token\r\n", "{}")];
    for of_one_volume in [alternating, varying] {
        let calls = of_one_volume.len();
        let reactions: Vec<_> = std::iter::repeat_n(of_one_volume, SCOPES).flatten().chain([list.clone()]).collect();
        let upstream = RawUpstream::start(reactions).await;
        let settings = format!("{SETTINGS}{}", VOLUMES.replace("\"none\"", "\"json\""));
        let world =
            World::with_upstreams(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), &settings).await;
        for volume in 0..SCOPES {
            for token in ["mallory", "trudy"].iter().cycle().take(calls) {
                world.seconds_pass(1);
                let headers = [("x-auth-token", *token), ("cache-control", "no-cache")];
                let url = world.url(&format!("/v2/PROJECT/volumes/{volume}"));
                assert_eq!(world.http.send(Method::GET, &url, &headers, "").await.status(), 200);
            }
            let private = if calls == 1 || volume == SCOPES - 1 { 1 } else { volume + 1 };
            assert_eq!(world.metric(PRIVATE), private as f64);
        }
        assert_eq!(upstream.requests(), SCOPES * calls);

        let volumes = ["/v2/PROJECT/volumes/another", "/v2/another/volumes/0"];
        for (path, is_shared) in [
            (volumes[0], false),
            (volumes[1], false),
            ("/v2/PROJECT/products", true),
            (SHARER, true),
            ("/v2/another/products", true),
            ("/v1/PROJECT/product", true),
        ] {
            assert_eq!(callers_share(&world, path).await, is_shared, "{path}");
        }

        for (selection, private) in [
            (format!("project={PROJECT}"), 1.0),
            (format!("operation=ShowVolume&project={PROJECT}"), 1.0),
            ("operation=ListProducts".to_owned(), 1.0),
            ("operation=ShowVolume".to_owned(), 0.0),
        ] {
            let url = world.admin_url(&format!("/cache/purge?{selection}"));
            assert_eq!(world.http.send(Method::POST, &url, &[], "").await.status(), 200, "{selection}");
            assert_eq!(world.metric(PRIVATE), private, "{selection}");
            for path in volumes {
                assert_eq!(callers_share(&world, path).await, private == 0.0, "{path} after a purge of {selection}");
            }
        }
    }
}

#[tokio::test]
async fn a_changed_catalogue_is_not_a_divergence() {
    for (callers, changes) in [(2, 1), (2, 6), (8, 6)] {
        let world = World::with(&format!("{SETTINGS}\n[grants]\ngrant_ttl = \"1h\"")).await;
        let tokens: [String; 8] = world.granted_tokens().await;
        for round in 0..8 {
            world.seconds_pass(60);
            let led = world.get_as(&tokens[round % callers], LIST).await;
            let followed = world.get_as(&tokens[(round + 1) % callers], LIST).await;
            assert!(!led.is_hit() && followed.is_hit(), "{round}");
            assert_eq!(led.body(), followed.body());
            if round < changes {
                world.simulator.change_catalogue();
            }
        }
        assert_eq!((world.metric(PRIVATE), world.upstream_calls()), (0.0, 8));
    }
}

#[tokio::test]
async fn overlapping_responses_are_not_compared() {
    let world = World::with(SETTINGS).await;
    for _ in 0..6 {
        world.seconds_pass(60);
        world.simulator.forget_requests();
        let (wide, narrow) = (world.simulator.token(PROJECT), world.simulator.token(PROJECT));
        world.simulator.restrict_view(&narrow);
        let mut pending = Vec::new();
        for (calls, token) in (1..).zip([&wide, &narrow]) {
            world.simulator.hold_token(token);
            pending.push(world.begin_and_reach_upstream(token, LIST, calls).await);
            world.seconds_pass(1);
        }
        let mut views = Vec::new();
        for (token, pending) in [&wide, &narrow].into_iter().zip(pending) {
            world.simulator.release_token(token);
            views.push(View::of(pending).await);
        }
        assert_ne!(views[0], views[1]);
    }
    assert_eq!(world.metric(PRIVATE), 0.0);
}
