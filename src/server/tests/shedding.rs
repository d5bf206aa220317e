//! What the client sees of a connection that is closed for another one.

use super::*;
use crate::budget::{Account, Budget, ConnectionClass, Purpose, Shortage};
use crate::request::peer::Peer;
use crate::server::memory::CONNECTION;

const SMALL: &str = "GET /small HTTP/1.1\r\nhost: x\r\n\r\n";

impl ServedConnection {
    /// Requests one connection to close, if one may be closed.
    fn shed(&self) -> bool {
        self.registry.shed_bytes(Shortage::Budget, 1, Clock::System.timer_now()) > 0
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_sent_nothing_or_a_part_of_a_head_is_closed() {
    for first_bytes in ["", "G", "GET /small HTTP/1.1\r\n", "PRI * HTT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0"] {
        let mut served = ServedConnection::new();
        served.write(first_bytes).await;
        sleep(Duration::from_millis(900)).await;
        assert!(!served.shed(), "idle for less than the minimum: {first_bytes:?}");
        sleep(Duration::from_secs(1)).await;
        assert!(served.shed(), "{first_bytes:?}");
        assert!(!served.shed(), "its close is already requested: {first_bytes:?}");
        assert_eq!(served.ended().await, (2, vec![("shed", 1)]), "{first_bytes:?}");
        assert_eq!(served.registry.len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_its_complete_response() {
    let mut served = ServedConnection::new();
    sleep(Duration::from_secs(5)).await;
    served.write(SMALL).await;
    served.read_small().await;
    assert!(!served.shed(), "it is idle since now");
    sleep(Duration::from_secs(1)).await;
    assert!(served.shed());
    assert_eq!(served.client().read(&mut [0; 9]).await.unwrap(), 0);
    assert_eq!(served.ended().await, (6, vec![("shed", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_a_request_in_progress_is_not_closed() {
    let mut served = ServedConnection::new();
    served.write("GET /parts HTTP/1.1\r\nhost: x\r\n\r\n").await;
    sleep(Duration::from_secs(3600)).await;
    assert!(!served.shed());
    let mut http2 = ServedConnection::new();
    let (mut sender, _connection) = http2.http2().await;
    let _response = sender.send_request(get("/parts"), true).unwrap();
    sleep(Duration::from_secs(3600)).await;
    assert!(!http2.shed());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_just_after_its_connection_was_chosen_is_answered() {
    let mut served = ServedConnection::new();
    sleep(Duration::from_secs(5)).await;
    for _ in 0..2 {
        // The connection was not polled since, so it sees both the request and the request to close.
        served.write(SMALL).await;
        assert!(served.shed());
        served.read_small().await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(served.causes(), []);
    }
    assert!(served.shed());
    assert_eq!(served.ended().await, (15, vec![("shed", 1)]));
}

#[tokio::test(start_paused = true)]
async fn http2_gets_goaway_and_a_client_that_does_not_close_has_one_second() {
    let mut served = ServedConnection::new();
    let (sender, connection) = served.http2().await;
    let mut sender = sender.ready().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(served.shed());
    assert_eq!(served.ended().await, (1, vec![("shed", 1)]));
    // No error: GOAWAY came with NO_ERROR.
    connection.await.unwrap().unwrap();
    assert!(sender.send_request(get("/small"), true).is_err());

    let mut served = ServedConnection::new();
    served.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0").await;
    sleep(Duration::from_secs(1)).await;
    assert!(served.shed());
    assert_eq!(served.ended().await, (2, vec![("close-timeout", 1), ("shed", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_closed_and_one_that_reads_slowly_is_not() {
    let mut served = ServedConnection::new();
    served.write("GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
    for _ in 0..9 {
        sleep(Duration::from_millis(900)).await;
        assert!(!served.shed());
        served.client().read_exact(&mut [0; BETWEEN / 2]).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    assert!(served.shed());
    assert_eq!(served.ended().await, (9, vec![("shed", 1)]));
}

#[tokio::test(start_paused = true)]
async fn http2_is_closed_when_the_client_opens_no_window_for_any_response() {
    let mut served = ServedConnection::new();
    let (sender, _connection) = served.http2().await;
    let mut sender = sender.ready().await.unwrap();
    let mut stalled = Vec::new();
    for _ in 0..2 {
        stalled.push(sender.send_request(get("/large"), true).unwrap().0.await.unwrap().into_body());
    }
    let in_progress = sender.send_request(get("/parts"), true).unwrap().0.await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert!(!served.shed(), "one response does not wait for the client");
    drop(in_progress);
    // The client opens the window of one stream.
    sleep(Duration::from_millis(500)).await;
    let mut read = 0;
    while read < 40_000 {
        read += stalled[0].data().await.unwrap().unwrap().len();
    }
    stalled[0].flow_control().release_capacity(read).unwrap();
    sleep(Duration::from_millis(900)).await;
    assert!(!served.shed());
    sleep(Duration::from_millis(600)).await;
    assert!(served.shed());
    assert_eq!(served.ended().await, (7, vec![("shed", 1)]));
}

#[tokio::test(start_paused = true)]
async fn as_many_connections_are_closed_as_hold_the_needed_bytes() {
    let (registry, budget) = (Registry::new(MINIMUM), Budget::new(1 << 24));
    let (mut all, mut charges) = (Vec::new(), Vec::new());
    for number in 0..4 {
        let open = registry.add(OpenConnection::new(Account::open(&budget, None), Arc::default()));
        charges.push(open.account().charge(Purpose::Heads, number));
        all.push(open);
    }
    sleep(Duration::from_secs(1)).await;
    let shed = |needed| registry.shed_bytes(Shortage::Budget, needed, Clock::System.timer_now());
    assert_eq!(shed(CONNECTION), 1);
    assert!(all[0].is_still_chosen());
    assert_eq!(shed(CONNECTION), 0, "that one is still to end");
    assert_eq!(shed(2 * CONNECTION + 1), 1, "it and another hold so many bytes");
    assert_eq!(shed(2 * CONNECTION + 2), 1);
    drop((all.remove(0), charges.remove(0)));
    assert_eq!(shed(2 * CONNECTION + 2), 0);
    assert_eq!(shed(usize::MAX), 1, "there is no other");
}

#[tokio::test(start_paused = true)]
async fn only_connections_whose_end_helps_are_closed() {
    let budget = Budget::new(1 << 24);
    let callers = crate::request::caller::Callers::new([1; 32]);
    let caller = |token| callers.of_token(&http::HeaderValue::from_static(token));
    let peer = |last| Peer::V4([192, 0, 2, last].into());
    let open = |registry: &Arc<Registry>, peer, class, caller| {
        let account = Account::open(&budget, peer);
        account.raise(class, caller);
        registry.add(OpenConnection::new(account, Arc::default()))
    };
    for (shortage, expected) in [
        (Shortage::Budget, [true; 4]),
        (Shortage::Class(ConnectionClass::NoCredential), [true, false, false, false]),
        (Shortage::Class(ConnectionClass::Unknown), [false, true, false, false]),
        (Shortage::Peer(peer(1)), [true, false, true, false]),
        (Shortage::Caller(caller("a")), [false, false, true, false]),
        (Shortage::Connection, [false; 4]),
    ] {
        let registry = Registry::new(MINIMUM);
        let all = [
            open(&registry, Some(peer(1)), ConnectionClass::NoCredential, None),
            open(&registry, None, ConnectionClass::Unknown, None),
            open(&registry, Some(peer(1)), ConnectionClass::Known, Some(caller("a"))),
            open(&registry, Some(peer(2)), ConnectionClass::Known, Some(caller("b"))),
        ];
        sleep(Duration::from_secs(1)).await;
        registry.shed_bytes(shortage, usize::MAX, Clock::System.timer_now());
        assert_eq!(all.each_ref().map(|connection| connection.is_still_chosen()), expected, "{shortage:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_connection_is_closed_for_a_descriptor_regardless_of_its_memory() {
    let registry = Registry::new(MINIMUM);
    let all =
        [(); 2].map(|()| registry.add(OpenConnection::new(Account::open(&Budget::new(1 << 24), None), Arc::default())));
    sleep(Duration::from_secs(1)).await;
    let charge = all[1].account().charge(Purpose::Heads, 1 << 20);
    assert!(registry.shed_one(Clock::System.timer_now()));
    assert!(all[0].is_still_chosen() && !all[1].is_still_chosen());
    drop(charge);
}
