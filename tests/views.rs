//! Sharing rests on one assumption: within a project, an answer depends on the question alone. Here it
//! is wrong. What can be seen before that is noticed is shown, and that nothing is after it.

use std::fmt;

use bytes::Bytes;
use http::Method;
use tokio::task::JoinHandle;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::raw::{RawUpstream, says};
use crate::support::{PROJECT, Reply, World, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const SHARER: &str = "/v2/PROJECT/products/sharer";

/// How many scopes are private.
const PRIVATE: &str = "workspace_gateway_private_scopes";

/// Entries expire long before grants do.
/// Answers are soon stale, and then waited for.
const SETTINGS: &str = "[cache]\nttl = \"1m\"\nstale_while_revalidate = \"0s\"\nstale_if_slow = \"60s\"\n";

/// What a caller is shown. Printed as its length, which differs by view.
#[derive(Clone, PartialEq)]
struct View(Bytes);

impl View {
    /// What one who asks will be shown.
    async fn of(asking: JoinHandle<Reply>) -> Self {
        Self(within(asking).await.unwrap().body().clone())
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A caller who is shown everything and one who is shown less, both proved in `LIST`'s scope and in
/// `SHARER`'s, and what upstream shows each of them of a question.
struct Pair {
    world: World,
    wide: String,
    narrow: String,
}

impl Pair {
    async fn new() -> Self {
        let world = World::with(SETTINGS).await;
        let [wide, narrow] = world.granted().await;
        world.simulator.views_differ(&narrow);
        for token in [&wide, &narrow] {
            world.get_as(token, "/v2/PROJECT/products/sharer?limit=0").await;
        }
        world.simulator.forget_requests();
        Self { world, wide, narrow }
    }

    /// What each of them is shown by upstream itself.
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

    /// What a caller is shown, and whether it was spared an upstream call.
    async fn shown(&self, token: &str, path: &str) -> (View, bool) {
        let reply = self.world.get_as(token, path).await;
        (View(reply.body().clone()), reply.is_hit())
    }

    fn expire(&self) {
        self.world.seconds_pass(60);
    }

    /// Has answers to `LIST` alternate: wide, narrow, wide.
    async fn alternate(&self) {
        for token in [&self.wide, &self.narrow, &self.wide] {
            self.expire();
            self.world.get_as(token, LIST).await;
        }
        assert_eq!(self.world.metric(PRIVATE), 0.0);
    }

    /// Has them alternate once more, which is one too many.
    async fn trip(&self) {
        self.alternate().await;
        self.expire();
        self.world.get_as(&self.narrow, LIST).await;
        assert_eq!(self.world.metric(PRIVATE), 1.0);
    }
}

#[tokio::test]
async fn what_is_seen_before_the_tripwire_and_that_nothing_is_after_it() {
    let pair = Pair::new().await;
    let (whole, part) = pair.views(LIST).await;
    let (wide, narrow) = (&pair.wide, &pair.narrow);
    let (spared, asked) = (true, false);

    // Before: whoever asks first shows both of them its own view, for as long as an answer is fresh.
    for (leader, follower, view) in [(wide, narrow, &whole), (narrow, wide, &part), (wide, narrow, &whole)] {
        pair.expire();
        assert_eq!(pair.shown(leader, LIST).await, (view.clone(), asked));
        assert_eq!(pair.shown(follower, LIST).await, (view.clone(), spared));
        assert_eq!(pair.world.metric(PRIVATE), 0.0);
    }
    assert_eq!(pair.world.upstream_calls(), 3);

    // The fourth answer is the one too many: it is its own caller's and no other's.
    pair.expire();
    assert_eq!(pair.shown(narrow, LIST).await, (part.clone(), asked));
    assert_eq!(pair.world.metric(PRIVATE), 1.0);
    assert_eq!(pair.shown(wide, LIST).await, (whole.clone(), asked));

    // After: each sees its own view, from its own memory, for good.
    for _ in 0..5 {
        assert_eq!(pair.shown(wide, LIST).await, (whole.clone(), spared));
        assert_eq!(pair.shown(narrow, LIST).await, (part.clone(), spared));
        pair.expire();
        assert_eq!(pair.shown(narrow, LIST).await, (part.clone(), asked));
        assert_eq!(pair.shown(wide, LIST).await, (whole.clone(), asked));
    }
    assert_eq!(pair.world.metric(PRIVATE), 1.0);
}

#[tokio::test]
async fn a_private_scope_is_private_for_every_question() {
    let pair = Pair::new().await;
    let (whole, part) = pair.views(OTHER).await;
    pair.alternate().await;
    pair.expire();
    // Shared a moment before the tripwire, and fresh after it.
    assert_eq!(pair.shown(&pair.wide, OTHER).await, (whole.clone(), false));
    assert_eq!(pair.shown(&pair.narrow, OTHER).await, (whole.clone(), true));
    pair.world.get_as(&pair.narrow, LIST).await;
    assert_eq!(pair.world.metric(PRIVATE), 1.0);
    assert_eq!(pair.shown(&pair.narrow, OTHER).await, (part, false));
    assert_eq!(pair.shown(&pair.wide, OTHER).await, (whole, false));
}

#[tokio::test]
async fn another_scope_is_shared_as_before() {
    let pair = Pair::new().await;
    let (whole, _) = pair.views(SHARER).await;
    pair.trip().await;
    assert_eq!(pair.shown(&pair.wide, SHARER).await, (whole.clone(), false));
    assert_eq!(pair.shown(&pair.narrow, SHARER).await, (whole, true));
}

#[tokio::test]
async fn callers_of_a_private_scope_do_not_share_a_flight() {
    let pair = Pair::new().await;
    pair.trip().await;
    pair.world.simulator.forget_requests();
    pair.world.simulator.hold();
    let wide = pair.world.begin_and_arrive(&pair.wide, OTHER, 1).await;
    let narrow = pair.world.begin_and_arrive(&pair.narrow, OTHER, 2).await;
    pair.world.simulator.release();
    assert_eq!((View::of(wide).await, View::of(narrow).await), pair.views(OTHER).await);
}

#[tokio::test]
async fn a_scope_that_turns_private_during_a_flight_is_private_for_who_waits() {
    let pair = Pair::new().await;
    let (whole, part) = pair.views(OTHER).await;
    pair.alternate().await;
    pair.expire();
    pair.world.simulator.forget_requests();
    let target = OTHER.replace("PROJECT", PROJECT);
    pair.world.simulator.hold_target(&target);
    let leading = pair.world.begin_and_arrive(&pair.wide, OTHER, 1).await;
    let following = pair.world.begin_and_wait(&pair.narrow, OTHER, 1).await;
    pair.world.get_as(&pair.narrow, LIST).await;
    assert_eq!(pair.world.metric(PRIVATE), 1.0);
    pair.world.simulator.release_target(&target);
    assert_eq!(View::of(leading).await, whole);
    assert_eq!(View::of(following).await, part, "it asks for itself");
    assert_eq!(pair.world.upstream_calls(), 3);
    // What the flight has brought is its leader's alone.
    assert_eq!(pair.shown(&pair.wide, OTHER).await, (whole, true));
    assert_eq!(pair.shown(&pair.narrow, OTHER).await, (part, true));
}

#[tokio::test]
async fn a_purge_of_the_scope_lifts_it() {
    let pair = Pair::new().await;
    pair.trip().await;
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
    assert_eq!(pair.shown(&pair.wide, LIST).await, (whole.clone(), false));
    assert_eq!(pair.shown(&pair.narrow, LIST).await, (whole, true), "they share again, as before");
}

/// An operation with as many scopes as there are volumes.
const VOLUMES: &str =
    "[[operation]]\nname = \"ShowVolume\"\npath = \"/v2/{project_id}/volumes/{volume_id}\"\nbody = \"none\"\n";

/// Two proved callers of a world in which upstream says of volumes that they vary on the token.
async fn before_varying_volumes() -> (World, [String; 2]) {
    let world = World::with(VOLUMES).await;
    let tokens = world.granted().await;
    world.get_as(&tokens[0], LIST).await;
    world.simulator.add_header("vary".parse().unwrap(), "X-Auth-Token".parse().unwrap());
    world.get_as(&tokens[0], "/v2/PROJECT/volumes/first").await;
    world.simulator.remove_headers();
    (world, tokens)
}

#[tokio::test]
async fn an_answer_that_varies_on_the_credential_makes_its_operation_private_and_no_other() {
    let (world, [one, two]) = before_varying_volumes().await;
    assert_eq!(world.metric(PRIVATE), 1.0);
    // Nothing is said of these, and both callers are proved there.
    let another = "/v2/PROJECT/volumes/another";
    for token in [&one, &two] {
        world.get_as(token, another).await;
    }
    world.server.gateway().purge(&PurgeSelection { project_id: Some(PROJECT.to_owned()), ..PurgeSelection::default() });
    for (token, is_hit) in [(&one, false), (&two, false), (&one, true), (&two, true)] {
        assert_eq!(world.get_as(token, another).await.is_hit(), is_hit, "each has an answer of its own");
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
async fn an_answer_that_varies_on_the_credential_does_so_whatever_else_forbids_to_keep_it() {
    for (name, value) in [("vary", "X-Auth-Token, Origin"), ("vary", "*, X-Auth-Token"), ("cache-control", "no-store")]
    {
        let world = World::with(VOLUMES).await;
        let [one] = world.granted().await;
        if name != "vary" {
            world.simulator.add_header("vary".parse().unwrap(), "Authorization".parse().unwrap());
        }
        world.simulator.add_header(name.parse().unwrap(), value.parse().unwrap());
        world.get_as(&one, "/v2/PROJECT/volumes/first").await;
        assert_eq!(world.metric(PRIVATE), 1.0, "{name}: {value}");
    }
}

#[tokio::test]
async fn only_a_purge_of_all_of_a_private_operation_makes_it_shared_again() {
    let (world, [one, two]) = before_varying_volumes().await;
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
        assert_eq!(world.get_as(token, path).await.is_hit(), is_hit, "they share again, until it says so again");
    }
}

/// Whether two callers that are proved in a path's scope share what is kept of it.
async fn share(world: &World, path: &str) -> bool {
    let [one, two] = ["alice", "bob"];
    for token in [one, two] {
        world.get_as(token, path).await;
    }
    world.seconds_pass(60);
    assert!(!world.get_as(one, path).await.is_hit(), "it has expired");
    world.get_as(two, path).await.is_hit()
}

#[tokio::test]
async fn more_private_scopes_than_an_operation_can_have_change_nothing_elsewhere() {
    /// One more than are remembered one by one.
    const SCOPES: usize = 129;
    let answer =
        |more: &str, body: &str| says(format!("HTTP/1.1 200 OK\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len()));
    let list = answer("", r#"{"products":[]}"#);
    // Answers that alternate by caller, and answers that say that they vary on it: those to one volume.
    let [wide, narrow] = [r#"{"volume":1}"#, "{}"].map(|body| answer("", body));
    let alternating = vec![wide.clone(), narrow.clone(), wide, narrow];
    let varying = vec![answer("Vary: X-Auth-Token\r\n", "{}")];
    for of_one_volume in [alternating, varying] {
        let calls = of_one_volume.len();
        let turns: Vec<_> = std::iter::repeat_n(of_one_volume, SCOPES).flatten().chain([list.clone()]).collect();
        let upstream = RawUpstream::start(turns).await;
        let settings = format!("{SETTINGS}{}", VOLUMES.replace("\"none\"", "\"json\""));
        let world = World::before(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), &settings).await;
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
            assert_eq!(share(&world, path).await, is_shared, "{path}");
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
                assert_eq!(share(&world, path).await, private == 0.0, "{path} after a purge of {selection}");
            }
        }
    }
}

#[tokio::test]
async fn a_catalogue_that_changes_is_no_difference_of_views() {
    for (callers, changes) in [(2, 1), (2, 6), (8, 6)] {
        let world = World::with(&format!("{SETTINGS}\n[grants]\ngrant_ttl = \"1h\"")).await;
        let tokens: [String; 8] = world.granted().await;
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
async fn answers_that_overlap_are_not_compared() {
    let world = World::with(SETTINGS).await;
    for _ in 0..6 {
        world.seconds_pass(60);
        world.simulator.forget_requests();
        let (wide, narrow) = (world.simulator.token(PROJECT), world.simulator.token(PROJECT));
        world.simulator.views_differ(&narrow);
        let mut asking = Vec::new();
        for (calls, token) in (1..).zip([&wide, &narrow]) {
            world.simulator.hold_token(token);
            asking.push(world.begin_and_arrive(token, LIST, calls).await);
            world.seconds_pass(1);
        }
        let mut views = Vec::new();
        for (token, asking) in [&wide, &narrow].into_iter().zip(asking) {
            world.simulator.release_token(token);
            views.push(View::of(asking).await);
        }
        assert_ne!(views[0], views[1]);
    }
    assert_eq!(world.metric(PRIVATE), 0.0);
}
