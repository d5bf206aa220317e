//! The gateway under a supervisor such as systemd: inherited sockets, notifications and the watchdog.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::process::Output;

use http::StatusCode;
use tokio::net::UnixDatagram;
use workspace_gateway::testing::simulator::Simulator;

use crate::commands::{code, stderr};
use crate::support::process::{Process, folder, serve_inheriting};
use crate::support::raw_client::RawClient;
use crate::support::{Http, PROJECT, World, within};

const LOG: &str = "[log]\nformat = \"json\"\n";

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn url(socket: &TcpListener) -> String {
    format!("http://{}", socket.local_addr().unwrap())
}

fn settings_file(name: &str) -> std::path::PathBuf {
    let file = folder(name).join("config.toml");
    std::fs::write(&file, LOG).unwrap();
    file
}

#[tokio::test]
async fn the_gateway_listens_on_inherited_sockets() {
    let simulator = Simulator::start().await.unwrap();
    let (file, [proxy, metrics, admin]) = (settings_file("handed-down"), [(); 3].map(|()| listener()));
    // With names, the order does not matter.
    let sockets = [("admin", &admin), ("proxy", &proxy), ("metrics", &metrics)];
    let mut process = Process::start_on_sockets(&sockets, &simulator, &file, &[]).await;
    assert_eq!([&process.proxy, &process.metrics, &process.admin], [&url(&proxy), &url(&metrics), &url(&admin)]);
    let http = Http::new();
    for page in [format!("{}/readyz", url(&metrics)), format!("{}/mode", url(&admin))] {
        assert_eq!(http.get(&page).await.status(), StatusCode::OK, "{page}");
    }
    let (token, page) = (simulator.token(PROJECT), format!("{}/v2/{PROJECT}/products", url(&proxy)));
    for is_hit in [false, true] {
        let reply = http.send(http::Method::GET, &page, &[("x-auth-token", &token)], "").await;
        assert_eq!((reply.status(), reply.is_hit()), (StatusCode::OK, is_hit));
    }
    drop(http);
    process.signal("TERM");
    process.wait_for_log("stopped").await;
    let (code, log) = process.terminate().await;
    assert_eq!((code, log.matches("listening on an inherited socket").count()), (Some(0), 3), "{log}");
    assert!(!log.contains("WARN"), "{log}");
}

#[tokio::test]
async fn unnamed_sockets_are_assigned_in_order_and_missing_ones_are_bound() {
    let simulator = Simulator::start().await.unwrap();
    let (file, [proxy, metrics]) = (settings_file("handed-down-unnamed"), [(); 2].map(|()| listener()));
    let sockets = [("", &proxy), ("", &metrics)];
    let process = Process::start_on_sockets(&sockets, &simulator, &file, &[("LISTEN_FDNAMES", "")]).await;
    assert_eq!([&process.proxy, &process.metrics], [&url(&proxy), &url(&metrics)]);
    assert_eq!(Http::new().get(&format!("{}/mode", process.admin)).await.status(), StatusCode::OK);
    process.terminate().await;
}

#[tokio::test]
async fn sockets_for_another_process_are_ignored() {
    let simulator = Simulator::start().await.unwrap();
    let file = settings_file("handed-down-else");
    let [workspace, appstream] =
        workspace_gateway::testing::catalogue::Service::ALL.map(|service| simulator.url(service));
    let environment = [("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "nobody"), ("LISTEN_PID", "1")];
    let process = Process::start_with_upstreams(&workspace, &appstream, &file, &environment).await;
    assert_eq!(process.terminate().await.0, Some(0));
}

/// A connection that is made while no gateway runs waits for the next one.
#[tokio::test]
async fn clients_that_connect_during_a_restart_are_answered() {
    let simulator = Simulator::start().await.unwrap();
    let (file, proxy) = (settings_file("handed-down-wait"), listener());
    for _ in 0..2 {
        let mut early = RawClient::connect_to(proxy.local_addr().unwrap()).await;
        let head = format!("GET /v2/{PROJECT}/products?limit=1 HTTP/1.1\r\nhost: x\r\nx-auth-token: x\r\n\r\n");
        early.send(head).await;
        let process = Process::start_on_sockets(&[("proxy", &proxy)], &simulator, &file, &[]).await;
        assert_eq!(early.read_response().await.status(), 401);
        assert_eq!(process.terminate().await.0, Some(0));
    }
}

/// Runs `serve` with sockets or other files that it must reject.
async fn serve_output(files: Vec<(&str, OwnedFd)>, environment: &[(&str, &str)]) -> Output {
    let mut command = serve_inheriting(&files);
    command.args(["--region", "cn-north-4"]).envs(environment.iter().copied());
    within(command.kill_on_drop(true).output()).await.unwrap()
}

#[tokio::test]
async fn unusable_sockets_are_usage_errors() {
    let tcp = || OwnedFd::from(listener());
    let udp = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let open = || OwnedFd::from(TcpListener::bind("0.0.0.0:0").unwrap());
    let connected = OwnedFd::from(std::net::TcpStream::connect(listener().local_addr().unwrap()).unwrap());
    let file = OwnedFd::from(std::fs::File::open("Cargo.toml").unwrap());
    for (files, environment, expected) in [
        (
            vec![("http", tcp())],
            &[][..],
            "LISTEN_FDNAMES: \"http\" is not allowed: expected names from proxy, metrics, admin",
        ),
        (vec![("proxy", tcp()), ("proxy", tcp())], &[], "expected each name once"),
        (vec![("proxy", tcp())], &[("LISTEN_FDNAMES", "proxy:admin")], "expected one name for each of 1 sockets"),
        (
            vec![("", tcp()), ("", tcp()), ("", tcp()), ("", tcp())],
            &[("LISTEN_FDNAMES", "")],
            "LISTEN_FDS: 4 sockets without names in LISTEN_FDNAMES: expected at most proxy, metrics, admin",
        ),
        (vec![], &[("LISTEN_FDS", "many")], "LISTEN_FDS: \"many\" is not allowed: expected a number"),
        (vec![("proxy", file)], &[], "LISTEN_FDS: proxy: fd 3 is not a socket"),
        (vec![("proxy", tcp()), ("metrics", udp)], &[], "LISTEN_FDS: metrics: fd 4 is not a valid tcp socket"),
        (vec![("proxy", connected)], &[], "LISTEN_FDS: the socket for \"proxy\" does not listen"),
        (vec![], &[("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "admin")], "LISTEN_FDS: admin: fd 3 is not a socket"),
        (vec![("admin", open())], &[], "listen.admin: \"0.0.0.0:"),
        // The address of the socket counts, not the setting listen.proxy.
        (vec![("proxy", open())], &[], "listen.proxy: \"0.0.0.0:"),
    ] {
        let output = serve_output(files, environment).await;
        assert!(stderr(&output).contains(expected), "{expected}: {}", stderr(&output));
        assert_eq!(code(&output), 2, "{expected}");
    }
}

/// Both gateways run in this process, so that the test knows which one answers. The second starts before the first
/// stops.
#[tokio::test]
async fn probes_and_operator_requests_go_to_the_gateway_that_stays() {
    let sockets = [(); 3].map(|()| listener());
    let inherited = || {
        let mut inherited = workspace_gateway::testing::server::Inherited::default();
        for (name, socket) in workspace_gateway::testing::server::NAMES.iter().zip(&sockets) {
            inherited.add(name, socket.try_clone().unwrap()).unwrap();
        }
        inherited
    };
    let first = World::on_sockets(inherited()).await;
    let [mut probe, mut operator] = [
        RawClient::connect_to(first.server.metrics_address()).await,
        RawClient::connect_to(first.server.admin_address()).await,
    ];
    let request_for = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", first.server.admin_address());
    assert_eq!(probe.exchange(request_for("/readyz")).await.status(), 200);
    assert_eq!(operator.exchange(request_for("/mode")).await.status(), 200);
    // A request in flight delays the shutdown.
    first.simulator.hold();
    let pending = first.begin(&first.token, "/v2/PROJECT/products");
    within(first.simulator.wait_for_requests(1)).await;

    let second = World::on_sockets(inherited()).await;
    let (requests, simulator) = ([request_for("/readyz"), request_for("/mode")], first.simulator);
    let stopping = tokio::spawn(first.server.stop());
    for (client, request, status) in [(&mut probe, &requests[0], 503), (&mut operator, &requests[1], 200)] {
        // The shutdown may not have begun when the first requests arrive.
        let response = within(async {
            loop {
                let response = client.exchange(request).await;
                if !response.all("connection").is_empty() {
                    break response;
                }
            }
        })
        .await;
        assert_eq!((response.header("connection"), response.status()), ("close", status));
    }
    assert!(!stopping.is_finished());
    for _ in 0..20 {
        assert_eq!(Http::new().get(&second.metrics_url("/readyz")).await.status(), StatusCode::OK);
        assert_eq!(Http::new().get(&second.admin_url("/mode")).await.status(), StatusCode::OK);
    }
    simulator.release();
    assert_eq!(within(pending).await.unwrap().status(), StatusCode::OK);
    within(stopping).await.unwrap();
}

const STOPPING: &str = "STOPPING=1\nSTATUS=waiting for requests in progress\n";

/// The messages that a supervisor receives.
pub struct Notifications(UnixDatagram);

impl Notifications {
    pub fn on(socket: StdDatagram) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self(UnixDatagram::from_std(socket).unwrap())
    }

    pub async fn next(&self) -> String {
        let mut text = [0; 4096];
        let length = within(self.0.recv(&mut text)).await.unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    }

    /// Panics unless the next message announces a reload. Returns the message after it.
    async fn next_reload(&self) -> String {
        let announcement = self.next().await;
        let microseconds =
            announcement.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|rest| rest.strip_suffix('\n'));
        assert!(microseconds.unwrap_or_else(|| panic!("{announcement:?}")).parse::<u64>().unwrap() > 0);
        self.next().await
    }
}

#[tokio::test]
async fn the_supervisor_is_notified_of_start_reload_and_stop() {
    let simulator = Simulator::start().await.unwrap();
    let file = settings_file("notified");
    let path = file.with_file_name("notify");
    let notifications = Notifications::on(StdDatagram::bind(&path).unwrap());
    let proxy = listener();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let mut process = Process::start_on_sockets(&[("proxy", &proxy)], &simulator, &file, &environment).await;
    let ready = format!("READY=1\nSTATUS=clients connect to {}\n", proxy.local_addr().unwrap());
    assert_eq!(notifications.next().await, ready);

    process.signal("HUP");
    assert_eq!(notifications.next_reload().await, "READY=1\nSTATUS=configuration read again: no changes\n");
    for (text, expected) in [
        (format!("mode = \"bypass\"\n{LOG}"), "READY=1\nSTATUS=configuration reloaded\n"),
        (format!("mode = \"on\"\n{LOG}"), "READY=1\nSTATUS=configuration reload failed: see the log\n"),
    ] {
        // The file is replaced atomically, so that it is read once. No signal is needed.
        let new = file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &file).unwrap();
        let outcome = notifications.next_reload().await;
        assert!(outcome.starts_with(expected) && outcome.matches('\n').count() == 2, "{outcome:?}");
    }
    process.wait_for_log("configuration reload failed").await;
    assert_eq!(process.terminate().await.0, Some(0));
    assert_eq!(notifications.next().await, STOPPING);
    assert!(notifications.0.try_recv(&mut [0]).is_err(), "there are no more messages");
}

#[tokio::test]
async fn an_abstract_notify_socket_is_supported() {
    let simulator = Simulator::start().await.unwrap();
    let name = format!("workspace-gateway-test-{}", std::process::id());
    let socket = StdDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let (notifications, environment) = (Notifications::on(socket), [("NOTIFY_SOCKET", &*format!("@{name}"))]);
    let process = Process::start_on_sockets(&[], &simulator, &settings_file("notified-name"), &environment).await;
    assert!(notifications.next().await.starts_with("READY=1\n"));
    assert_eq!(process.terminate().await.0, Some(0));
    assert_eq!(notifications.next().await, STOPPING);
}

#[tokio::test]
async fn an_unusable_notify_socket_does_not_stop_the_gateway() {
    let simulator = Simulator::start().await.unwrap();
    let file = settings_file("notified-nobody");
    for (name, expected) in [("", 0), ("/nobody/is/here", 2), ("here", 1)] {
        let process = Process::start_on_sockets(&[], &simulator, &file, &[("NOTIFY_SOCKET", name)]).await;
        let (code, log) = process.terminate().await;
        assert_eq!((code, log.matches("sd_notify").count()), (Some(0), expected), "{log}");
    }
}

const ALIVE: &str = "WATCHDOG=1\n";

#[tokio::test]
async fn the_watchdog_is_notified_while_requests_are_answered() {
    let simulator = Simulator::start().await.unwrap();
    let file = settings_file("watchdog");
    let path = file.with_file_name("notify");
    let notifications = Notifications::on(StdDatagram::bind(&path).unwrap());
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "300000")];
    let mut process = Process::start_on_sockets(&[], &simulator, &file, &environment).await;
    assert!(notifications.next().await.starts_with("READY=1\n"));
    for _ in 0..3 {
        assert_eq!(notifications.next().await, ALIVE);
    }

    // The gateway cannot accept connections.
    process.limit_open_files(3);
    let skipped = "watchdog notification skipped";
    process.wait_for_log(skipped).await;
    while notifications.0.try_recv(&mut [0; 100]).is_ok() {}
    for _ in 0..3 {
        process.wait_for_log(skipped).await;
    }
    assert!(
        notifications.0.try_recv(&mut [0; 100]).is_err(),
        "the watchdog was notified while no request could be answered"
    );

    process.limit_open_files(1024);
    assert_eq!(notifications.next().await, ALIVE);
    assert_eq!(process.terminate().await.0, Some(0));
}

#[tokio::test]
async fn a_disabled_watchdog_or_one_of_another_process_is_not_notified() {
    let simulator = Simulator::start().await.unwrap();
    let file = settings_file("no-watchdog");
    let path = file.with_file_name("notify");
    let notifications = Notifications::on(StdDatagram::bind(&path).unwrap());
    let notify = ("NOTIFY_SOCKET", path.to_str().unwrap());
    for watchdog in [vec![("WATCHDOG_USEC", "0")], vec![("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")]] {
        let environment = [&[notify][..], &watchdog].concat();
        let process = Process::start_on_sockets(&[], &simulator, &file, &environment).await;
        assert!(notifications.next().await.starts_with("READY=1\n"));
        assert_eq!(process.terminate().await.0, Some(0));
        assert_eq!(notifications.next().await, STOPPING);
    }
}
