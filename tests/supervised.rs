//! The gateway under a supervisor: what it is handed down, and what it tells.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::process::Output;

use http::StatusCode;
use tokio::net::UnixDatagram;
use workspace_gateway::testing::simulator::Simulator;

use crate::commands::{code, stderr};
use crate::support::line::Line;
use crate::support::process::{Process, folder, handed_down};
use crate::support::{Http, PROJECT, World, within};

const LOG: &str = "[log]\nformat = \"json\"\n";

fn listening() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn url(socket: &TcpListener) -> String {
    format!("http://{}", socket.local_addr().unwrap())
}

/// A file of settings for the test of this name.
fn settings(name: &str) -> std::path::PathBuf {
    let file = folder(name).join("config.toml");
    std::fs::write(&file, LOG).unwrap();
    file
}

#[tokio::test]
async fn it_listens_on_what_it_is_handed_down() {
    let simulator = Simulator::start().await.unwrap();
    let (file, [proxy, metrics, admin]) = (settings("handed-down"), [(); 3].map(|()| listening()));
    // In any order, if they have names.
    let sockets = [("admin", &admin), ("proxy", &proxy), ("metrics", &metrics)];
    let mut process = Process::start_on(&sockets, &simulator, &file, &[]).await;
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
    process.says("stopped").await;
    let (code, log) = process.terminate().await;
    assert_eq!((code, log.matches("handed down").count()), (Some(0), 3), "{log}");
    assert!(!log.contains("WARN"), "{log}");
}

#[tokio::test]
async fn sockets_without_names_stand_in_order_and_the_others_are_bound() {
    let simulator = Simulator::start().await.unwrap();
    let (file, [proxy, metrics]) = (settings("handed-down-unnamed"), [(); 2].map(|()| listening()));
    let sockets = [("", &proxy), ("", &metrics)];
    let process = Process::start_on(&sockets, &simulator, &file, &[("LISTEN_FDNAMES", "")]).await;
    assert_eq!([&process.proxy, &process.metrics], [&url(&proxy), &url(&metrics)]);
    assert_eq!(Http::new().get(&format!("{}/mode", process.admin)).await.status(), StatusCode::OK);
    process.terminate().await;
}

#[tokio::test]
async fn what_is_meant_for_another_process_is_left_alone() {
    let simulator = Simulator::start().await.unwrap();
    let file = settings("handed-down-else");
    let [workspace, appstream] =
        workspace_gateway::testing::catalogue::Service::ALL.map(|service| simulator.url(service));
    let environment = [("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "nobody"), ("LISTEN_PID", "1")];
    let process = Process::start_before(&workspace, &appstream, &file, &environment).await;
    assert_eq!(process.terminate().await.0, Some(0));
}

/// Who connects while there is no gateway waits for the next one, and nobody is refused.
#[tokio::test]
async fn while_it_is_restarted_clients_wait() {
    let simulator = Simulator::start().await.unwrap();
    let (file, proxy) = (settings("handed-down-wait"), listening());
    for _ in 0..2 {
        let mut early = Line::at(proxy.local_addr().unwrap()).await;
        let head = format!("GET /v2/{PROJECT}/products?limit=1 HTTP/1.1\r\nhost: x\r\nx-auth-token: x\r\n\r\n");
        early.says(head).await;
        let process = Process::start_on(&[("proxy", &proxy)], &simulator, &file, &[]).await;
        assert_eq!(early.hears().await.status(), 401);
        assert_eq!(process.terminate().await.0, Some(0));
    }
}

/// Starts it on these, which it is to refuse.
async fn refused(files: Vec<(&str, OwnedFd)>, environment: &[(&str, &str)]) -> Output {
    let mut command = handed_down(&files);
    command.args(["--region", "cn-north-4"]).envs(environment.iter().copied());
    within(command.kill_on_drop(true).output()).await.unwrap()
}

#[tokio::test]
async fn what_it_cannot_use_is_told_and_it_exits_2() {
    let tcp = || OwnedFd::from(listening());
    let udp = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let open = || OwnedFd::from(TcpListener::bind("0.0.0.0:0").unwrap());
    let connected = OwnedFd::from(std::net::TcpStream::connect(listening().local_addr().unwrap()).unwrap());
    let file = OwnedFd::from(std::fs::File::open("Cargo.toml").unwrap());
    for (files, environment, expected) in [
        (vec![("http", tcp())], &[][..], "LISTEN_FDNAMES: \"http\" is not allowed: expected of proxy, metrics, admin"),
        (vec![("proxy", tcp()), ("proxy", tcp())], &[], "expected each once"),
        (vec![("proxy", tcp())], &[("LISTEN_FDNAMES", "proxy:admin")], "expected a name for each of 1 sockets"),
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
        // Whatever listen.proxy says: it is here that tokens would travel.
        (vec![("proxy", open())], &[], "listen.proxy: \"0.0.0.0:"),
    ] {
        let output = refused(files, environment).await;
        assert!(stderr(&output).contains(expected), "{expected}: {}", stderr(&output));
        assert_eq!(code(&output), 2, "{expected}");
    }
}

/// In one process, so that it is certain who is asked: the second gateway is there before the first one goes.
#[tokio::test]
async fn probes_and_the_operator_are_left_to_who_goes_on() {
    let sockets = [(); 3].map(|()| listening());
    let inherited = || {
        let mut inherited = workspace_gateway::testing::server::Inherited::default();
        for (name, socket) in workspace_gateway::testing::server::NAMES.iter().zip(&sockets) {
            inherited.add(name, socket.try_clone().unwrap()).unwrap();
        }
        inherited
    };
    let first = World::on(inherited()).await;
    let [mut probe, mut operator] =
        [Line::at(first.server.metrics_address()).await, Line::at(first.server.admin_address()).await];
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", first.server.admin_address());
    assert_eq!(probe.asks(ask("/readyz")).await.status(), 200);
    assert_eq!(operator.asks(ask("/mode")).await.status(), 200);
    // Something in flight, so that it isn't over at once.
    first.simulator.hold();
    let asking = first.begin(&first.token, "/v2/PROJECT/products");
    within(first.simulator.arrived(1)).await;

    let second = World::on(inherited()).await;
    let (questions, simulator) = ([ask("/readyz"), ask("/mode")], first.simulator);
    let stopping = tokio::spawn(first.server.stop());
    for (line, question, status) in [(&mut probe, &questions[0], 503), (&mut operator, &questions[1], 200)] {
        // It may not have heard of it yet; then it has nothing to say of it.
        let told = within(async {
            loop {
                let heard = line.asks(question).await;
                if !heard.all("connection").is_empty() {
                    break heard;
                }
            }
        })
        .await;
        assert_eq!((told.header("connection"), told.status()), ("close", status));
    }
    assert!(!stopping.is_finished());
    for _ in 0..20 {
        assert_eq!(Http::new().get(&second.metrics_url("/readyz")).await.status(), StatusCode::OK);
        assert_eq!(Http::new().get(&second.admin_url("/mode")).await.status(), StatusCode::OK);
    }
    simulator.release();
    assert_eq!(within(asking).await.unwrap().status(), StatusCode::OK);
    within(stopping).await.unwrap();
}

const STOPPING: &str = "STOPPING=1\nSTATUS=finishing what is in flight\n";

/// What a supervisor is told, message by message.
pub struct Told(UnixDatagram);

impl Told {
    pub fn at(socket: StdDatagram) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self(UnixDatagram::from_std(socket).unwrap())
    }

    pub async fn next(&self) -> String {
        let mut text = [0; 4096];
        let length = within(self.0.recv(&mut text)).await.unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    }

    /// It is told that settings are read, and then what came of it.
    async fn reload(&self) -> String {
        let begun = self.next().await;
        let moment = begun.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|rest| rest.strip_suffix('\n'));
        assert!(moment.unwrap_or_else(|| panic!("{begun:?}")).parse::<u64>().unwrap() > 0);
        self.next().await
    }
}

#[tokio::test]
async fn a_supervisor_is_told_how_it_goes() {
    let simulator = Simulator::start().await.unwrap();
    let file = settings("notified");
    let path = file.with_file_name("notify");
    let told = Told::at(StdDatagram::bind(&path).unwrap());
    let proxy = listening();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let mut process = Process::start_on(&[("proxy", &proxy)], &simulator, &file, &environment).await;
    let ready = format!("READY=1\nSTATUS=clients connect to {}\n", proxy.local_addr().unwrap());
    assert_eq!(told.next().await, ready);

    process.signal("HUP");
    assert_eq!(told.reload().await, "READY=1\nSTATUS=settings read again: nothing to apply\n");
    for (text, expected) in [
        (format!("mode = \"bypass\"\n{LOG}"), "READY=1\nSTATUS=settings reloaded\n"),
        (
            format!("mode = \"on\"\n{LOG}"),
            "READY=1\nSTATUS=settings not reloaded, for they have a mistake: the log tells which\n",
        ),
    ] {
        // At once and as a whole, so that it is read once; it is noticed without a signal.
        let new = file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &file).unwrap();
        let outcome = told.reload().await;
        assert!(outcome.starts_with(expected) && outcome.matches('\n').count() == 2, "{outcome:?}");
    }
    process.says("settings not reloaded").await;
    assert_eq!(process.terminate().await.0, Some(0));
    assert_eq!(told.next().await, STOPPING);
    assert!(told.0.try_recv(&mut [0]).is_err(), "that was all");
}

#[tokio::test]
async fn a_supervisor_may_have_a_name_in_no_file_system() {
    let simulator = Simulator::start().await.unwrap();
    let name = format!("workspace-gateway-test-{}", std::process::id());
    let told = StdDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let (told, environment) = (Told::at(told), [("NOTIFY_SOCKET", &*format!("@{name}"))]);
    let process = Process::start_on(&[], &simulator, &settings("notified-name"), &environment).await;
    assert!(told.next().await.starts_with("READY=1\n"));
    assert_eq!(process.terminate().await.0, Some(0));
    assert_eq!(told.next().await, STOPPING);
}

#[tokio::test]
async fn a_supervisor_that_cannot_be_told_does_not_keep_it_from_working() {
    let simulator = Simulator::start().await.unwrap();
    let file = settings("notified-nobody");
    for (name, expected) in [("", 0), ("/nobody/is/here", 2), ("here", 1)] {
        let process = Process::start_on(&[], &simulator, &file, &[("NOTIFY_SOCKET", name)]).await;
        let (code, log) = process.terminate().await;
        assert_eq!((code, log.matches("the supervisor").count()), (Some(0), expected), "{log}");
    }
}

const ALIVE: &str = "WATCHDOG=1\n";

#[tokio::test]
async fn the_watchdog_is_told_as_long_as_requests_are_answered() {
    let simulator = Simulator::start().await.unwrap();
    let file = settings("watchdog");
    let path = file.with_file_name("notify");
    let told = Told::at(StdDatagram::bind(&path).unwrap());
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "300000")];
    let mut process = Process::start_on(&[], &simulator, &file, &environment).await;
    assert!(told.next().await.starts_with("READY=1\n"));
    for _ in 0..3 {
        assert_eq!(told.next().await, ALIVE);
    }

    // No connection can be accepted, by whoever it is made.
    process.limit_open_files(3);
    let fails = "the watchdog is not told";
    process.says(fails).await;
    while told.0.try_recv(&mut [0; 100]).is_ok() {}
    for _ in 0..3 {
        process.says(fails).await;
    }
    assert!(told.0.try_recv(&mut [0; 100]).is_err(), "it was told while nothing was answered");

    process.limit_open_files(1024);
    assert_eq!(told.next().await, ALIVE);
    assert_eq!(process.terminate().await.0, Some(0));
}

#[tokio::test]
async fn a_watchdog_of_nobody_or_of_another_process_is_not_told() {
    let simulator = Simulator::start().await.unwrap();
    let file = settings("no-watchdog");
    let path = file.with_file_name("notify");
    let told = Told::at(StdDatagram::bind(&path).unwrap());
    let notify = ("NOTIFY_SOCKET", path.to_str().unwrap());
    for watchdog in [vec![("WATCHDOG_USEC", "0")], vec![("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")]] {
        let environment = [&[notify][..], &watchdog].concat();
        let process = Process::start_on(&[], &simulator, &file, &environment).await;
        assert!(told.next().await.starts_with("READY=1\n"));
        assert_eq!(process.terminate().await.0, Some(0));
        assert_eq!(told.next().await, STOPPING);
    }
}
