//! Operations that an operator has added. They are configured, routed, keyed and shared like the built-in ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::{Method, StatusCode};
use workspace_gateway::testing::catalogue::{Service, Sharing};
use workspace_gateway::testing::config::{Config, REFERENCE};
use workspace_gateway::testing::simulator::Simulator;

use crate::support::{PROJECT, World, config, within};

const EXAMPLE: &str = include_str!("../config/operations.toml");
const ZONES: &str = "/v2/PROJECT/availability-zones";
const VOLUMES: &str = "/v2/PROJECT/volume/products";

/// One operation, as in a configuration file.
fn operation(name: &str, path: &str, more: &str) -> String {
    let body = if more.contains("body = ") { "" } else { "body = \"field:availability_zones\"\n" };
    format!("[[operation]]\nname = {name:?}\npath = {path:?}\n{body}{more}\n")
}

/// A world with the operation of `ZONES`, with these settings.
async fn zones(more: &str) -> World {
    World::with(&operation("Zones", "/v2/{project_id}/availability-zones", more)).await
}

/// A world with an operation whose responses need no body, with these settings.
async fn world_with_echo(path: &str, more: &str) -> World {
    World::with(&operation("Echo", path, &format!("body = \"none\"\n{more}"))).await
}

fn load(text: &str) -> Result<Config, String> {
    Config::from_layers("test.toml", &format!("region = \"r\"\n{text}"), &[]).map_err(|error| error.to_string())
}

#[test]
fn errors_name_the_setting_the_value_and_what_is_allowed() {
    let zones = |more: &str| operation("Zones", "/v2/{project_id}/zones", more);
    let at = |path: &str| operation("Zones", path, "");
    for (text, expected) in [
        ("[operation.ListProducts]\nttl = \"5m\"".to_owned(), &["operation", "map", "[[operation]]", "a name"][..]),
        ("operation = 1".to_owned(), &["operation", "[[operation]]"]),
        ("[[operation]]\nttl = \"5m\"".to_owned(), &["operation[0]", "missing field `name`"]),
        (operation("a b", "/x", ""), &["name", "\"a b\"", "1 to 64 of A-Z"]),
        (operation("", "/x", ""), &["name", "1 to 64 of A-Z"]),
        (operation(&"n".repeat(65), "/x", ""), &["name", "1 to 64 of A-Z"]),
        (operation("none", "/x", ""), &["name", "\"none\"", "none of the words"]),
        (operation("own", "/x", ""), &["name", "\"own\"", "none of the words"]),
        (
            "[[operation]]\nname = \"ListDesktops\"".to_owned(),
            &["operation.ListDesktops.path", "not set", "ListProducts"],
        ),
        (format!("{}{}", zones(""), operation("Zones", "/v3/x", "")), &["operation.Zones", "twice"]),
        (zones("methods = [\"GET\"]"), &["operation.Zones", "unknown field `methods`", "`body`"]),
        (at("v2/x"), &["operation.Zones.path", "\"v2/x\"", "a path of up to 16 segments"]),
        (at("/v2//x"), &["operation.Zones.path", "\"/v2//x\""]),
        (at("/v2/x?a=b"), &["operation.Zones.path", "\"/v2/x?a=b\""]),
        (at("/v2/**"), &["operation.Zones.path", "\"/v2/**\""]),
        (at("/v2/{a}/{a}"), &["operation.Zones.path", "{name} that is there once"]),
        (at("/v2/{project_id}/{kind}"), &["operation.Zones.path", "ListProducts", "/v2/{project_id}/products"]),
        (format!("{}{}", zones(""), operation("Any", "/v2/{a}/{b}/{c}", "")), &["operation.Any.service", "not set"]),
        (
            format!("{}{}", zones(""), operation("Any", "/v2/{a}/zones", "")),
            &["operation.Any.path", "\"/v2/{a}/zones\"", "Zones", "/v2/{project_id}/zones"],
        ),
        (at("/v4/zones"), &["operation.Zones.service", "not set", "workspace or appstream"]),
        (zones("service = \"ecs\""), &["operation.Zones.service", "\"ecs\"", "workspace or appstream"]),
        (zones("service = \"own\""), &["operation.Zones.service", "\"own\"", "workspace or appstream"]),
        (zones("upstream = \"https://h/p\""), &["operation.Zones.upstream", "https://h/p", "no path"]),
        (
            zones("service = \"workspace\"\nupstream = \"https://h\""),
            &["operation.Zones.upstream", "https://h", "this or service, not both"],
        ),
        (zones("ttl = \"0s\""), &["operation.Zones.ttl", "0s", "1ms"]),
        (zones("stale_if_error = \"1\""), &["operation.Zones.stale_if_error", "\"1\"", "0s"]),
        (zones("stale_while_revalidate = \"x\""), &["operation.Zones.stale_while_revalidate", "\"x\"", "0s"]),
        (zones("sharing = \"all\""), &["operation.Zones.sharing", "\"all\"", "project or caller"]),
        (
            operation("Zones", "/v3/zones", "sharing = \"project\""),
            &["operation.Zones.sharing", "\"project\"", "expected caller", "no {project_id}"],
        ),
        (
            zones("sharing = \"project\"\nforward_headers = [\"traceparent\", \"x-a\"]"),
            &["operation.Zones.sharing", "\"project\"", "expected caller", "not in the key"],
        ),
        (
            zones("sharing = \"project\"\nforward_headers = \"*\""),
            &["operation.Zones.sharing", "\"project\"", "expected caller", "not in the key"],
        ),
        (zones("keyed_headers = [\"cookie\"]"), &["operation.Zones.keyed_headers[0]", "cookie", "no credential"]),
        (zones("keyed_headers = [\"x-a\", \"X-A\"]"), &["operation.Zones.keyed_headers", "x-a", "each once"]),
        (zones("forward_headers = \"all\""), &["operation.Zones.forward_headers", "\"all\"", "\"*\", or a list"]),
        (
            zones("forward_headers = [\"x-a\", \"Authorization\"]"),
            &["operation.Zones.forward_headers[1]", "Authorization", "no credential"],
        ),
        (zones("forward_headers = [\"x-new-token\"]"), &["operation.Zones.forward_headers[0]", "x-new-token"]),
        (zones("forward_headers = [\"x-a\", \"X-A\"]"), &["operation.Zones.forward_headers", "x-a", "each once"]),
        (zones("forward_headers = [\"x-language\"]"), &["operation.Zones.forward_headers", "keyed_headers"]),
        (
            "[[operation]]\nname = \"Zones\"\npath = \"/v2/{project_id}/zones\"".to_owned(),
            &["operation.Zones.body", "not set", "products, field:NAME, json or none"],
        ),
        (zones("body = \"zones\""), &["operation.Zones.body", "\"zones\"", "products, field:NAME, json or none"]),
        (zones("body = \"field:\""), &["operation.Zones.body", "\"field:\"", "field:NAME"]),
        (zones("defaults = { limit = 100 }"), &["operation.Zones.defaults.limit", "100", "string"]),
        (
            operation("ListProducts", "/v2/{project_id}/products", ""),
            &["operation.ListProducts.path", "/v2/{project_id}/products", "built-in"],
        ),
        (
            "[[operation]]\nname = \"ListProduct\"\nservice = \"workspace\"".to_owned(),
            &["operation.ListProduct.service", "workspace", "built-in"],
        ),
        (
            "[[operation]]\nname = \"ListProduct\"\nupstream = \"https://h\"".to_owned(),
            &["operation.ListProduct.upstream", "https://h", "built-in"],
        ),
        (
            "[[operation]]\nname = \"ListProduct\"\nsharing = \"project\"\nforward_headers = [\"x-a\"]".to_owned(),
            &["operation.ListProduct.sharing", "expected caller"],
        ),
        (
            (0..62).map(|index| operation(&format!("n{index}"), &format!("/v3/{index}"), "")).collect(),
            &["operation.n61", "at most 64 operations"],
        ),
    ] {
        let message = load(&text).unwrap_err();
        for part in expected {
            assert!(message.contains(part), "{text}: {message:?} lacks {part:?}");
        }
    }
}

#[test]
fn an_operation_inherits_the_settings_it_does_not_set() {
    let text = "[cache]\nttl = \"7m\"\nkeyed_headers = [\"x-a\"]\n".to_owned()
        + &operation("Jobs", "/v2/{project_id}/job/{id}", "ttl = \"1m\"\nstale_while_revalidate = \"0s\"")
        + &operation("Regions", "/v3/regions", "keyed_headers = []")
        + "[[operation]]\nname = \"ListProduct\"\nkeyed_headers = [\"x-b\"]\nforward_headers = [\"x-c\"]";
    let catalogue = load(&text).unwrap().catalogue;
    let summary = |name: &str| {
        let operation = catalogue.operations().iter().find(|operation| *operation.name == *name).unwrap();
        let keyed: Vec<_> = operation.keyed_headers.iter().map(ToString::to_string).collect();
        let seconds =
            [operation.ttl, operation.stale_while_revalidate, operation.stale_if_error].map(|time| time.as_secs());
        (operation.service, seconds, operation.sharing == Sharing::Project, keyed.join(" "))
    };
    assert_eq!(summary("Jobs"), (Service::AppStream, [60, 0, 3600], true, "x-a".to_owned()));
    assert_eq!(summary("Regions"), (Service::Workspace, [420, 600, 3600], false, String::new()));
    assert_eq!(summary("ListProduct"), (Service::AppStream, [420, 600, 3600], false, "x-b".to_owned()));
    assert_eq!(summary("ListProducts"), (Service::Workspace, [420, 600, 3600], true, "x-a".to_owned()));
}

#[test]
fn the_reference_file_shows_a_valid_operation_with_every_setting() {
    let lines = REFERENCE.lines().skip_while(|line| *line != "# [[operation]]").take_while(|line| !line.is_empty());
    let uncommented = lines.filter_map(|line| line.strip_prefix("# "));
    let entry: Vec<_> = uncommented.filter(|line| !line.starts_with('#')).collect();
    load(&entry.join("\n")).unwrap();
    let unknown = load(&operation("Zones", "/v3/zones", "unknown = 1")).unwrap_err();
    let (_, known) = unknown.split_once("expected one of ").unwrap();
    // Every other part is between backticks.
    let known: BTreeSet<_> = known.split('`').skip(1).step_by(2).collect();
    assert_eq!(known.len(), 13);
    let page = include_str!("../config/README.md");
    for name in known {
        assert!(REFERENCE.contains(&format!("{name} = ")), "{name}");
        assert!(page.contains(&format!("`operation.{name}`")), "{name}");
    }
}

#[tokio::test]
async fn the_example_operations_are_answered_from_memory() {
    let world = World::with(EXAMPLE).await;
    for (path, name, field, ttl) in [
        (ZONES, "ListAvailabilityZones", "availability_zones", 3600),
        ("/v2/PROJECT/volume/products?volume_type=SSD", "ListVolumeProductInfo", "volumes", 1800),
    ] {
        world.simulator.forget_requests();
        let first = world.get(path).await;
        assert!(first.cache_status().ends_with("fwd-status=200; stored; detail=proved"), "{first:?}");
        assert!(!first.json()[field].as_array().unwrap().is_empty(), "{first:?}");
        let second = world.get(path).await;
        assert!(second.is_hit() && second.body() == first.body(), "{second:?}");
        assert!(second.cache_status().contains(&format!("ttl={ttl}")), "{second:?}");
        assert_eq!(world.upstream_calls(), 1, "{path}");
        let seen = world.simulator.requests_seen().pop().unwrap();
        assert_eq!((seen.service, seen.target), (Service::Workspace, path.replace("PROJECT", PROJECT)));
        for (result, count) in [("miss", 1.0), ("hit", 1.0)] {
            let series =
                format!("workspace_gateway_requests_total{{operation=\"{name}\",result=\"{result}\",status=\"200\"}}");
            assert_eq!(world.metric(&series), count, "{series}");
        }
    }
    let head = world.http.send(Method::HEAD, &world.url(ZONES), &[("x-auth-token", &world.token)], "").await;
    assert!(head.is_hit() && head.body().is_empty(), "{head:?}");

    // Another caller needs a proof in each operation. After that it shares the entry.
    let other = world.simulator.token(PROJECT);
    let calls = world.upstream_calls();
    assert!(!world.get_as(&other, ZONES).await.is_hit());
    assert!(world.get_as(&other, ZONES).await.is_hit());
    assert!(!world.get_as(&other, VOLUMES).await.is_hit());
    assert_eq!(world.upstream_calls(), calls + 2);
    world.simulator.deny(&other);
    let stranger = world.simulator.token("another-project");
    world.get_as(&stranger, ZONES).await.assert_refused(StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn entries_are_purged_by_operation_name() {
    let world = World::with(EXAMPLE).await;
    let purge = async |query: &str| {
        let url = world.admin_url(&format!("/cache/purge?{query}"));
        world.http.send(Method::POST, &url, &[], "").await
    };
    for path in [ZONES, VOLUMES] {
        world.get(path).await;
    }
    let wrong = purge("operation=Zones").await;
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    assert!(wrong.text().contains("ListProduct, ListAvailabilityZones, ListVolumeProductInfo"), "{}", wrong.text());
    assert_eq!(purge("operation=ListAvailabilityZones").await.json()["purged"], 1);
    assert!(!world.get(ZONES).await.is_hit() && world.get(VOLUMES).await.is_hit());
    assert_eq!(purge("project=PROJECT").await.json()["purged"], 2);
}

#[tokio::test]
async fn each_captured_segment_is_part_of_the_key_and_of_the_scope() {
    let world = world_with_echo("/v2/{project_id}/desktops/{desktop_id}/disks/{disk_id}", "").await;
    let paths =
        ["d1/disks/1", "d2/disks/1", "d1/disks/2", "d1.1/disks/~"].map(|end| format!("/v2/PROJECT/desktops/{end}"));
    for (index, path) in paths.iter().enumerate() {
        assert!(!world.get(path).await.is_hit());
        assert!(world.get(path).await.is_hit());
        assert_eq!(world.upstream_calls(), index + 1);
        let target = world.simulator.requests_seen().pop().unwrap().target;
        assert_eq!(target, path.replace("PROJECT", PROJECT));
    }
    // A proof for one desktop is none for another.
    let other = world.simulator.token(PROJECT);
    for path in &paths {
        assert!(!world.get_as(&other, path).await.is_hit());
        assert!(world.get_as(&other, path).await.is_hit());
    }
    assert_eq!(world.upstream_calls(), 2 * paths.len());
}

#[tokio::test]
async fn an_ambiguous_segment_is_relayed_unchanged() {
    let world = world_with_echo("/v2/{project_id}/desktops/{desktop_id}", "").await;
    for (path, reason) in [
        ("/v2/PROJECT/desktops/%61", "path-segment"),
        ("/v2/PROJECT/desktops/a%2Fb", "path-segment"),
        ("/v2/PROJECT/desktops/a;b", "path-segment"),
        ("/v2/PROJECT/desktops/a+b", "path-segment"),
        ("/v2/PROJECT/desktops/..", "path-segment"),
        ("/v2/PROJECT/desktops/.", "path-segment"),
        (&format!("/v2/PROJECT/desktops/{}", "d".repeat(256)), "path-segment"),
        ("/v2/a.b/desktops/d", "project-id"),
    ] {
        for _ in 0..2 {
            let reply = world.get(path).await;
            assert_eq!(reply.cache_status(), format!("workspace-gateway; fwd=bypass; detail={reason}"), "{path}");
            let target = world.simulator.requests_seen().pop().unwrap().target;
            assert_eq!(target, path.replace("PROJECT", PROJECT), "relayed unchanged");
        }
    }
    let mismatch = world.get_with("/v2/PROJECT/desktops/d", &[("x-project-id", "another")]).await;
    assert!(mismatch.cache_status().ends_with("detail=project-mismatch"));
    assert_eq!(world.metric("workspace_gateway_entries"), 0.0);
}

#[tokio::test]
async fn without_a_project_in_the_path_entries_are_not_shared() {
    let world = world_with_echo("/v3/regions/{region_id}", "").await;
    let other = world.simulator.token("another-project");
    for token in [&world.token, &other] {
        assert!(!world.get_as(token, "/v3/regions/r").await.is_hit());
        assert!(world.get_as(token, "/v3/regions/r").await.is_hit());
    }
    assert_eq!((world.upstream_calls(), world.metric("workspace_gateway_entries")), (2, 2.0));
    // The header would not be sent upstream, and it might matter.
    let named = world.get_with("/v3/regions/r", &[("x-project-id", PROJECT)]).await;
    assert!(named.cache_status().ends_with("detail=project-mismatch"));
    let purged = world.http.send(Method::POST, &world.admin_url("/cache/purge?project=PROJECT"), &[], "").await;
    assert_eq!(purged.json()["purged"], 0);
}

#[tokio::test]
async fn configured_headers_are_forwarded_and_some_never_are() {
    let sent = [
        ("traceparent", "00-1-2-01"),
        ("x-team", "blue"),
        ("x-team", "green"),
        ("x-other", "1"),
        ("x-language", "en-us"),
        ("authorization", "SDK-HMAC-SHA256 SignedHeaders=accept"),
        ("cookie", "a=1"),
        ("x-security-token", "secret"),
        ("x-sdk-date", "20260101T000000Z"),
        ("user-agent", "theirs"),
        ("accept", "text/html"),
        ("accept-encoding", "gzip"),
        ("content-type", "text/html"),
        ("x-request-id", "theirs"),
        ("if-none-match", "\"1\""),
        ("via", "1.1 theirs"),
        ("x-hop", "1"),
        ("connection", "x-hop"),
    ];
    for (setting, forwarded) in [
        ("", &[][..]),
        ("forward_headers = []", &[]),
        ("forward_headers = [\"X-Team\"]", &["x-team"]),
        ("forward_headers = [\"tracestate\", \"traceparent\"]", &["traceparent"]),
        ("forward_headers = \"*\"", &["traceparent", "x-team", "x-other"]),
    ] {
        let world = zones(setting).await;
        let reply = world.get_with(ZONES, &sent).await;
        assert_eq!(reply.status(), StatusCode::OK);
        let seen = world.simulator.requests_seen().pop().unwrap().headers;
        let always = ["host", "x-auth-token", "accept", "content-type", "accept-encoding", "user-agent", "via"];
        let always = always.iter().chain(&["x-request-id", "x-language"]);
        let expected: BTreeSet<_> = always.chain(forwarded).copied().collect();
        assert_eq!(seen.keys().map(http::HeaderName::as_str).collect::<BTreeSet<_>>(), expected, "{setting}");
        assert!(seen.values().all(|value| !["theirs", "text/html", "gzip", "1.1 theirs"].iter().any(|it| value == it)));
        if forwarded.contains(&"x-team") {
            assert_eq!(seen.get_all("x-team").iter().collect::<Vec<_>>(), ["blue", "green"]);
        }
        // Forwarded headers are not part of the key.
        assert!(world.get_with(ZONES, &[("x-language", "en-us")]).await.is_hit());
        assert!(!world.get_with(ZONES, &[]).await.is_hit());
    }
}

#[tokio::test]
async fn forwarded_headers_prevent_sharing_unless_they_are_trace_headers() {
    for (setting, is_shared) in [
        ("forward_headers = [\"x-team\"]", false),
        ("forward_headers = \"*\"", false),
        ("forward_headers = [\"tracestate\"]", true),
    ] {
        let world = zones(setting).await;
        let other = world.simulator.token(PROJECT);
        world.get_as(&other, &ZONES.replace("zones", "zones?a=1")).await;
        world.get_with(ZONES, &[("x-team", "blue"), ("tracestate", "a=1")]).await;
        assert_eq!(world.get_as(&other, ZONES).await.is_hit(), is_shared, "{setting}");
    }
}

#[tokio::test]
async fn a_failure_caused_by_forwarded_headers_does_not_affect_waiters() {
    let world = Arc::new(zones("forward_headers = [\"traceparent\"]").await);
    let tokens = [0; 2].map(|_| world.simulator.token(PROJECT));
    for token in &tokens {
        world.get_as(token, "/v2/PROJECT/availability-zones?proof=1").await;
    }
    world.simulator.forget_requests();
    world.simulator.hold();
    let leader = tokio::spawn({
        let (world, token) = (Arc::clone(&world), tokens[0].clone());
        let headers =
            async move |headers: &[(&str, &str)]| world.http.send(Method::GET, &world.url(ZONES), headers, "").await;
        async move { headers(&[("x-auth-token", &token), ("traceparent", "odd")]).await }
    });
    within(world.simulator.wait_for_requests(1)).await;
    let waiter = world.begin_and_wait(&tokens[1], ZONES, 1).await;
    world.simulator.fail_token(&tokens[0], Some(StatusCode::BAD_REQUEST));
    world.simulator.release();
    assert_eq!(within(leader).await.unwrap().status(), StatusCode::BAD_REQUEST);
    let waiter = within(waiter).await.unwrap();
    assert_eq!(waiter.json()["total_count"], 3, "{waiter:?}");
}

#[tokio::test]
async fn each_operation_applies_its_own_body_check() {
    let (list, error) = (r#"{"availability_zones":[]}"#, r#"{"error_code":"WKS.1","availability_zones":[]}"#);
    for (check, body, not_stored) in [
        ("products", list, Some("not-products")),
        ("field:availability_zones", list, None),
        ("field:availability_zones", r#"{"availability_zones":null}"#, Some("not-products")),
        ("field:availability_zones", error, Some("not-products")),
        ("field:availability_zones", "[]", Some("not-json")),
        ("json", "[]", None),
        ("json", "{}", None),
        ("json", error, Some("not-products")),
        ("json", "<html>", Some("not-json")),
        ("json", "", Some("not-json")),
        ("none", "<html>", None),
        ("none", error, None),
        ("none", "", None),
    ] {
        let world = zones(&format!("body = {check:?}")).await;
        world.simulator.set_list_body(Some(body.into()));
        let first = world.get(ZONES).await;
        assert_eq!((first.status(), first.text()), (StatusCode::OK, body));
        let detail = not_stored.unwrap_or("stored; detail=proved");
        assert!(first.cache_status().ends_with(detail), "{check} {body}: {first:?}");
        let second = world.get(ZONES).await;
        assert_eq!((second.is_hit(), second.text()), (not_stored.is_none(), body), "{check}");
    }
}

#[tokio::test]
async fn each_operation_has_its_own_defaults_and_keyed_headers() {
    let settings =
        "keyed_headers = [\"x-tenant\"]\nempty_is_absent = [\"zone\"]\ndefaults = { limit = \"10\", zone = \"any\" }";
    let world = zones(settings).await;
    world.get(ZONES).await;
    for same in ["?limit=10", "?zone=&limit=10", "?zone=any", "?zone="] {
        assert!(world.get(&format!("{ZONES}{same}")).await.is_hit(), "{same}");
    }
    assert!(world.get_with(ZONES, &[("x-language", "zh-cn")]).await.is_hit());
    for other in ["?limit=100", "?offset=0", "?limit=", "?zone=z"] {
        assert!(!world.get(&format!("{ZONES}{other}")).await.is_hit(), "{other}");
    }
    assert!(!world.get_with(ZONES, &[("x-tenant", "t")]).await.is_hit());
    assert_eq!(world.simulator.requests_seen().pop().unwrap().headers["x-tenant"], "t");
    // A response may vary on keyed headers.
    world.simulator.add_header(http::header::VARY, http::HeaderValue::from_static("x-tenant"));
    assert!(world.get(&format!("{ZONES}?vary=1")).await.cache_status().contains("; stored"));
    let list = "/v2/PROJECT/products";
    assert!(world.get(&format!("{list}?limit=1")).await.cache_status().ends_with("detail=vary"));
    world.simulator.remove_headers();
    world.get(list).await;
    assert!(world.get_with(list, &[("x-tenant", "t")]).await.is_hit());
    assert!(!world.get_with(list, &[("x-language", "zh-cn")]).await.is_hit());

    // Configured defaults replace the documented ones.
    let world = World::with("[[operation]]\nname = \"ListProducts\"\ndefaults = { limit = \"10\" }").await;
    world.get(list).await;
    assert!(world.get(&format!("{list}?limit=10")).await.is_hit());
    assert!(!world.get(&format!("{list}?limit=100")).await.is_hit());
}

#[tokio::test]
async fn an_operation_may_have_an_upstream_of_its_own() {
    let own = Simulator::start().await.unwrap();
    let upstream = format!("upstream = {:?}\nbody = \"none\"", own.url(Service::Workspace));
    let world = World::with(&operation("Echo", "/v3/{project_id}/things", &upstream)).await;
    let token = own.token(PROJECT);
    let path = "/v3/PROJECT/things";
    assert!(!world.get_as(&token, path).await.is_hit());
    assert!(world.get_as(&token, path).await.is_hit());
    // Other methods and bypassed requests go to the same upstream.
    let posted = world.http.send(Method::POST, &world.url(path), &[("x-auth-token", &token)], "body").await;
    assert_eq!((posted.status(), posted.text()), (StatusCode::OK, "body"));
    assert!(world.get_as(&token, &format!("{path}?a=b+c")).await.cache_status().ends_with("detail=plus"));
    assert_eq!((own.request_count(), world.upstream_calls()), (3, 0));
    world.get("/v3/PROJECT/others").await;
    assert_eq!((own.request_count(), world.upstream_calls()), (3, 1));
    for (series, count) in [
        ("workspace_gateway_upstream_requests_total{service=\"own\",status=\"200\"}", 3.0),
        ("workspace_gateway_requests_total{operation=\"own\",result=\"pass-through\",status=\"200\"}", 1.0),
        ("workspace_gateway_requests_total{operation=\"Echo\",result=\"hit\",status=\"200\"}", 1.0),
    ] {
        assert_eq!(world.metric(series), count, "{series}");
    }
}

#[tokio::test]
async fn other_methods_on_an_operations_path_are_relayed() {
    let world = World::with(EXAMPLE).await;
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        let reply = world.http.send(method, &world.url(ZONES), &[("x-auth-token", &world.token)], "body").await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "body"));
        assert!(!reply.headers().contains_key("cache-status"));
    }
    assert_eq!(world.metric("workspace_gateway_entries"), 0.0);
}

#[tokio::test]
async fn explain_describes_added_operations() {
    let settings =
        operation("Disks", "/v2/{project_id}/desktops/{desktop_id}", "forward_headers = [\"x-team\"]\nbody = \"json\"");
    let world = World::with(&settings).await;
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("url", "/v2/p/desktops/d1"), ("header", "X-Auth-Token: t"), ("header", "X-Team: blue")])
        .finish();
    let explained = world.http.get(&world.admin_url(&format!("/explain?{query}"))).await.json();
    let operation = &explained["operation"];
    assert_eq!((&operation["name"], &operation["project_id"]), (&"Disks".into(), &"p".into()));
    assert_eq!(operation["segments"]["desktop_id"], "d1");
    assert_eq!(operation["template"], "/v2/{project_id}/desktops/{desktop_id}");
    let key = &operation["key"];
    assert_eq!((&key["forward_headers"], &key["body"]), (&"x-team".into(), &"json".into()));
    assert!(key["sharing"].as_str().unwrap().contains("because forward_headers sends"), "{key}");
    assert!(key["upstream_request"].as_array().unwrap().contains(&"x-team: blue".into()), "{key}");
    assert_eq!(operation["now"]["shared"], false);
}

#[test]
fn check_lists_the_operations_and_their_sharing() {
    let text = EXAMPLE.to_owned()
        + &operation("Regions", "/v9/regions", "upstream = \"https://r.example\"")
        + &operation("Sent", "/v2/{project_id}/sent", "forward_headers = \"*\"");
    let shown = config("https://w.example", "https://a.example", &text).to_toml();
    for line in [
        "# ListProducts: GET /v2/{project_id}/products of workspace, sharing = \"project\"",
        "# ListAvailabilityZones: GET /v2/{project_id}/availability-zones of workspace, sharing = \"project\"",
        "# Regions: GET /v9/regions of https://r.example, sharing = \"caller\", because its path has no {project_id}",
        "# Sent: GET /v2/{project_id}/sent of workspace, sharing = \"caller\", because forward_headers sends headers \
         that are not in the key (other than traceparent and tracestate)",
        "body = \"field:availability_zones\"",
        "forward_headers = \"*\"",
    ] {
        assert!(shown.lines().any(|shown_line| shown_line == line), "{line}: {shown}");
    }
    let again = Config::from_layers("again.toml", &shown, &[]).unwrap();
    assert_eq!(again.to_toml(), shown);
}
