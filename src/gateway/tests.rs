//! What can't be brought about from outside: the order of steps within a flight.

use super::*;
use crate::catalogue::Service;
use crate::config::Override;
use crate::simulator::Simulator;

fn gateway(url: &str) -> Arc<Gateway> {
    let given = |path| Override { path, value: url.to_owned(), origin: "test".to_owned() };
    let overrides = [given(&["upstream", "workspace_url"]), given(&["upstream", "appstream_url"])];
    Gateway::new(&Config::from_layers("test.toml", "", &overrides).unwrap(), Clock::System).unwrap()
}

fn slot(gateway: &Gateway, token: &HeaderValue) -> Slot {
    let (operation, project_id) = gateway.catalogue.operation("/v2/p/products").unwrap();
    let key = Key::read(&gateway.catalogue, operation, project_id, None, &HeaderMap::new(), false).unwrap();
    Slot { caller: gateway.callers.of_token(token), key }
}

fn errand(gateway: &Gateway, token: HeaderValue) -> Errand {
    Errand { token, request_id: gateway.request_ids.next(), via: gateway.via.trail(&HeaderMap::new()) }
}

#[tokio::test]
async fn what_the_flight_before_has_brought_is_not_asked_for_again() {
    // Nobody listens there: asking would fail.
    let gateway = gateway("http://127.0.0.1:1");
    let token = HeaderValue::from_static("t");
    let slot = slot(&gateway, &token);
    let life = Life { sent: gateway.clock.now(), initial_age: Duration::ZERO, ttl: Duration::from_secs(60) };
    let entry = Arc::new(Entry::new(&HeaderMap::new(), b"{}", life));
    assert!(gateway.store.insert(slot.clone(), entry, gateway.store.epoch()));
    let (passenger, pilot) = gateway.flights.board(&slot);
    let errand = errand(&gateway, token);
    Arc::clone(&gateway).fly(pilot.unwrap(), errand).await;
    assert!(matches!(passenger.arrive().await, Some(Landing::Found { .. })));
}

#[tokio::test]
async fn what_has_landed_is_there_to_be_found() {
    let simulator = Simulator::start().await.unwrap();
    let gateway = gateway(&simulator.url(Service::Workspace));
    let token = HeaderValue::try_from(simulator.token("p")).unwrap();
    let slot = slot(&gateway, &token);
    let (passenger, pilot) = gateway.flights.board(&slot);
    let errand = errand(&gateway, token);
    tokio::spawn(Arc::clone(&gateway).fly(pilot.unwrap(), errand));
    assert!(matches!(passenger.arrive().await, Some(Landing::Answered(_))));
    assert!(gateway.store.get(&slot).is_some());
}

#[tokio::test]
async fn an_answer_to_head_has_no_body_of_any_kind() {
    let gateway = gateway("http://127.0.0.1:1");
    for path in ["/nowhere", "/v2/p/products"] {
        let ask = async |method: Method| {
            let request = Request::builder().method(method).uri(path).header("host", "any").header("x-auth-token", "t");
            let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
            gateway.handle(request, &Connection::new(([127, 0, 0, 1], 8080).into())).await
        };
        let length = ask(Method::GET).await.into_body().size_hint().exact().unwrap();
        let head = ask(Method::HEAD).await;
        assert_eq!(head.headers()["content-length"], length.to_string());
        assert_eq!(head.into_body().size_hint().exact(), Some(0));
    }
}
