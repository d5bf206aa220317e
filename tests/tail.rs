//! The live tail of requests on the admin listener.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::{Process, folder};
use crate::support::raw_client::RawClient;
use crate::support::{Http, PROJECT, World, within};

const LIST: &str = "/v2/PROJECT/products";

/// A reader of the tail. In HTTP/1.0 the response has no chunks.
struct Reader {
    stream: TcpStream,
    text: String,
}

impl Reader {
    async fn begin(admin: SocketAddr, query: &str, header: &str) -> Self {
        Self::on(TcpStream::connect(admin).await.unwrap(), query, header).await
    }

    /// Returns when the gateway has answered, and so when it has begun or refused the tail.
    async fn on(stream: TcpStream, query: &str, header: &str) -> Self {
        let mut reader = Self { stream, text: String::new() };
        let head = format!("GET /tail{query} HTTP/1.0\r\nHost: localhost\r\n{header}\r\n");
        reader.stream.write_all(head.as_bytes()).await.unwrap();
        reader.until("\r\n\r\n").await;
        reader
    }

    async fn of(world: &World, query: &str) -> Self {
        let mut reader = Self::begin(world.server.admin_address(), query, "").await;
        reader.until(": requests follow").await;
        reader
    }

    /// Reads on. Returns false at the end.
    async fn read(&mut self) -> bool {
        let mut piece = vec![0; 64 * 1024];
        let read = within(self.stream.read(&mut piece)).await.unwrap_or(0);
        self.text += std::str::from_utf8(&piece[..read]).unwrap();
        read > 0
    }

    async fn until(&mut self, text: &str) {
        let mut begin = 0;
        while !self.text[begin..].contains(text) {
            begin = self.text.len().saturating_sub(text.len());
            assert!(self.read().await, "{text} did not come: {}", self.text);
        }
    }

    async fn read_to_end(&mut self) {
        while self.read().await {}
    }

    fn status(&self) -> &str {
        self.text.split(' ').nth(1).unwrap()
    }

    /// The requests so far.
    fn requests(&self) -> Vec<Map<String, Value>> {
        let events = self.text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        events.map(|json| serde_json::from_str(json).unwrap()).collect()
    }

    /// The values of a field, when as many requests have come.
    async fn field(&mut self, count: usize, name: &str) -> Vec<String> {
        while self.requests().len() < count {
            assert!(self.read().await, "{}", self.text);
        }
        self.requests().iter().map(|event| event.get(name).cloned().unwrap_or_default().to_string()).collect()
    }
}

#[tokio::test]
async fn each_request_is_an_event_with_the_fields_of_its_log_line() {
    let simulator = Simulator::start().await.unwrap();
    let file = folder("tail").join("config.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    let process = Process::start(&simulator, &file).await;
    let admin = process.admin.strip_prefix("http://").unwrap().parse().unwrap();
    let (http, token) = (Http::new(), simulator.token(PROJECT));
    let get = async |target: &str, headers: &[(&str, &str)]| {
        let url = format!("{}{}", process.proxy, target.replace("PROJECT", PROJECT));
        within(http.send(Method::GET, &url, headers, "")).await.status()
    };
    let same = [("x-auth-token", token.as_str()), ("user-agent", "same/1")];
    // The fast path knows this head before somebody reads.
    for _ in 0..3 {
        get(LIST, &same).await;
    }
    let mut reader = Reader::begin(admin, "", "").await;
    let hostile = "<img src=x onerror=alert(1)>\t\u{e9}\u{2028}";
    for (target, headers) in [
        (LIST, &same[..]),
        (LIST, &same),
        ("/v2/PROJECT/products?limit=1", &[("x-auth-token", &*token), ("user-agent", hostile)]),
        (
            "/v2/PROJECT/a%0a%0adata:%20x",
            &[("x-auth-token", &*token), ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")],
        ),
        ("/nowhere", &[]),
        (LIST, &[("x-auth-token", "invented")]),
    ] {
        get(target, headers).await;
    }
    reader.until("\"status\":401").await;
    drop(http);
    let (_, log) = process.terminate().await;
    let lines = log.lines().map(|line| serde_json::from_str::<Map<String, Value>>(line).unwrap());
    let mut lines: Vec<_> = lines.filter(|line| line["message"] == "request").skip(3).collect();
    for line in &mut lines {
        ["timestamp", "level", "target", "message"].into_iter().for_each(|name| drop(line.remove(name)));
    }
    // The record of the last hit may end after its response has come.
    let mut events = reader.requests();
    events.drain(..events.len() - lines.len());
    assert!(
        events.iter_mut().all(|event| event.remove("time_ms").is_some_and(|ms| ms.as_u64() > Some(1_600_000_000_000)))
    );
    assert_eq!(events, lines);
    assert_eq!(events.len(), 6);
    let named = |index: usize, name: &str| events[index].get(name).and_then(Value::as_str).unwrap_or_default();
    assert_eq!(
        (named(1, "result"), named(2, "user_agent")),
        ("hit", "<img src=x onerror=alert(1)>\\t\\xc3\\xa9\\xe2\\x80\\xa8")
    );
    assert_eq!(named(3, "path"), "/v2/00000000000000000000000000000001/a%0a%0adata:%20x");
    assert!(!reader.text.contains(&token) && !reader.text.contains("invented"), "{}", reader.text);
}

#[tokio::test]
async fn filters_select_requests() {
    let world = World::with("[log]\naccess = \"off\"").await;
    let query = |caller: &str| format!("?caller={caller}");
    let mut all = Reader::of(&world, "").await;
    let other = world.simulator.token(PROJECT);
    world.get(LIST).await;
    let ids = all.field(1, "caller").await;
    let mine = ids[0].trim_matches('"');
    let mut readers = Vec::new();
    for (query, expected) in [
        (query(mine), 2),
        ("?result=hit,miss&status=200".to_owned(), 3),
        ("?status=4xx&status=none&client=::ffff:127.0.0.1".to_owned(), 2),
    ] {
        readers.push((Reader::of(&world, &query).await, expected));
    }
    world.get(LIST).await;
    world.get_as(&other, LIST).await;
    world.get("/v2/PROJECT/desktops").await;
    world.get("/nowhere").await;
    world.get_as("invented", LIST).await;
    // What is not to come would have come before this: readers get requests in their order.
    world.get_as(&other, "/v2/PROJECT/products/sharer").await;
    assert_eq!(all.field(7, "status").await, ["200", "200", "200", "200", "404", "401", "200"]);
    let mut seen = Vec::new();
    for (mut reader, expected) in readers {
        seen.push(reader.field(expected, "operation").await);
    }
    let words = |names: &[&str]| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>();
    assert_eq!(seen[0], words(&["ListProducts", "workspace"]));
    assert_eq!(seen[1], words(&["ListProducts", "ListProducts", "ListSharerProducts"]));
    assert_eq!(seen[2], words(&["none", "ListProducts"]));
}

#[tokio::test]
async fn slow_requests_of_an_operation_can_be_selected() {
    let world = World::new().await;
    let mut slow = Reader::of(&world, "?operation=ListProducts,workspace&slow=1s").await;
    let mut none = Reader::of(&world, "?operation=ListSharerProducts").await;
    world.get(LIST).await;
    world.simulator.hold();
    let pending = world.begin_and_reach_upstream(&world.token, "/v2/PROJECT/products?limit=1", 2).await;
    let other = world.begin_and_reach_upstream(&world.token, "/v2/PROJECT/products/sharer", 3).await;
    world.clock.advance(Duration::from_secs(2));
    world.simulator.release();
    for pending in [pending, other] {
        within(pending).await.unwrap();
    }
    assert_eq!(none.field(1, "operation").await, ["\"ListSharerProducts\""]);
    assert_eq!(slow.field(1, "operation").await, ["\"ListProducts\""]);
    let took = slow.requests()[0]["total_ms"].as_f64().unwrap();
    assert!((took - 2_000.0).abs() < 1.0, "{took}");
}

#[tokio::test]
async fn a_wrong_filter_gets_a_400_that_names_what_is_allowed() {
    let world = World::new().await;
    for (query, expected) in [
        ("reslt=hit", "expected operation, result or status any number of times, and caller, client and slow once"),
        ("result=hits", "expected some of hit, miss, expired, "),
        ("result=", "expected some of hit, "),
        (
            "operation=ListProduct%1b",
            "expected some of ListProducts, ListSharerProducts, ListProduct, workspace, appstream, none",
        ),
        ("status=6xx", "expected classes (5xx), numbers (404) or none"),
        ("status=99", "expected classes"),
        ("caller=abc", "expected the 16 digits of a caller"),
        ("client=host", "expected an IP address"),
        ("slow=2", "expected a duration, such as 500ms or 2s"),
        ("slow=1s&slow=2s", "expected operation, result or status any"),
    ] {
        let reply = world.http.get(&world.admin_url(&format!("/tail?{query}"))).await;
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST, "{query}");
        assert!(reply.text().contains(expected), "{query}: {}", reply.text());
        assert!(!reply.text().trim_end().contains(char::is_control), "{query}");
    }
    // None of them has taken a place.
    let mut readers = Vec::new();
    for _ in 0..4 {
        readers.push(Reader::of(&world, "").await);
    }
}

#[tokio::test]
async fn a_fifth_reader_gets_a_503_until_another_one_has_gone() {
    let world = World::new().await;
    let admin = world.server.admin_address();
    let mut readers = Vec::new();
    for _ in 0..4 {
        readers.push(Reader::of(&world, "").await);
    }
    let fifth = Reader::begin(admin, "", "").await;
    assert_eq!(fifth.status(), "503");
    // The status page is not affected.
    assert_eq!(world.http.get(&world.admin_url("/status")).await.status(), StatusCode::OK);
    drop(readers.pop());
    within(async { while Reader::begin(admin, "", "").await.status() != "200" {} }).await;
    for reader in &mut readers {
        world.get("/nowhere").await;
        reader.field(1, "status").await;
    }
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_told_how_much_was_dropped() {
    let world = World::new().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut slow = Reader::on(socket.connect(world.server.admin_address()).await.unwrap(), "", "").await;
    let mut other = Reader::of(&world, "?status=401").await;
    let long = format!("GET /{} HTTP/1.1\r\nhost: gateway\r\n\r\n", "a".repeat(300));
    let mut client = RawClient::connect(&world).await;
    let sent = 12_000;
    for _ in 0..sent {
        client.exchange(&long).await;
    }
    world.get_as("invented", LIST).await;
    // Requests and other readers do not wait for it.
    assert_eq!(other.field(1, "status").await, ["401"]);
    slow.until("event: dropped\ndata: {\"dropped\":").await;
    world.get_as("invented", LIST).await;
    slow.until("\"status\":401").await;
    let dropped: Vec<u64> = slow
        .text
        .split("event: dropped\ndata: ")
        .skip(1)
        .map(|rest| serde_json::from_str::<Value>(rest.lines().next().unwrap()).unwrap()["dropped"].as_u64().unwrap())
        .collect();
    let got = slow.requests().iter().filter(|event| event["status"] == 404).count() as u64;
    // Each request is there, or is counted; so is the first 401.
    let total = got + dropped.iter().sum::<u64>();
    assert!(total == sent || total == sent + 1, "{got} and {dropped:?}");
}

#[tokio::test]
async fn only_the_operator_reads_the_tail_and_a_new_token_ends_it() {
    let token = |token: &str| format!("[listen]\nadmin_token = \"{token}\"");
    let world = World::with(&token("0123456789abcdef")).await;
    let admin = world.server.admin_address();
    assert_eq!(Reader::begin(admin, "", "").await.status(), "401");
    let header = "Authorization: Bearer 0123456789abcdef\r\n";
    assert_eq!(Reader::begin(admin, "", &format!("{header}Origin: http://evil.example\r\n")).await.status(), "403");
    let mut reader = Reader::begin(admin, "", header).await;
    assert_eq!(reader.status(), "200");
    assert!(reader.text.contains("content-type: text/event-stream\r\n") && reader.text.contains("no-store"));
    world.get("/nowhere").await;
    reader.field(1, "status").await;
    world.reload(&token("fedcba9876543210")).unwrap();
    world.get("/nowhere").await;
    reader.read_to_end().await;
    assert!(
        reader.text.ends_with("event: end\ndata: {\"why\":\"the admin token has changed\"}\n\n"),
        "{}",
        reader.text
    );
    assert_eq!(reader.requests().len(), 1);
}

#[tokio::test]
async fn shutdown_ends_the_tail_at_once() {
    let world = World::new().await;
    let mut reader = Reader::of(&world, "").await;
    // A request in progress keeps the process open.
    world.simulator.hold();
    let pending = world.begin_and_reach_upstream(&world.token, LIST, 1).await;
    let World { simulator, server, .. } = world;
    let stopping = tokio::spawn(server.stop());
    reader.read_to_end().await;
    assert!(reader.text.ends_with("event: end\ndata: {\"why\":\"the gateway is stopping\"}\n\n"), "{}", reader.text);
    simulator.release();
    within(pending).await.unwrap();
    within(stopping).await.unwrap();
}
