//! What can't be brought about from outside: the order of steps within a flight.

use super::*;
use crate::catalogue::Service;
use crate::config::{Config, Override};
use crate::simulator::Simulator;
use http::HeaderValue;

fn gateway(url: &str) -> Arc<Gateway> {
    let given = |path| Override { path, value: url.to_owned(), origin: "test".to_owned() };
    let overrides = [given(&["upstream", "workspace_url"]), given(&["upstream", "appstream_url"])];
    Gateway::new(&Config::from_layers("test.toml", "", &overrides).unwrap(), Clock::System).unwrap()
}

fn question(gateway: &Gateway, token: &HeaderValue) -> Question {
    let live = gateway.live();
    let (operation, place) = live.catalogue.operation("/v2/p/products").unwrap();
    let key = Key::read(&live.catalogue, operation, place, None, &HeaderMap::new(), false).unwrap();
    let grantee = Grantee { caller: gateway.callers.of_token(token), scope: key.scope().clone() };
    let credential = Credential::Token(token.clone());
    let asked = Asked { grantee, key: Arc::new(key), wish: Wish::default() };
    Question { live: Arc::clone(&live), credential, asked: Arc::new(asked) }
}

/// Flies for a question, and says how it ended.
async fn fly(gateway: &Arc<Gateway>, question: &Question) -> Landing {
    let slot = gateway.store.slot(&question.asked.key, question.asked.grantee.caller);
    let (mut passenger, pilot) = gateway.shared_flights.board(&slot);
    let via = gateway.via.trail(&HeaderMap::new());
    let credential = question.credential.clone();
    let (request_id, forwarded) = (gateway.request_ids.next().as_str().to_owned(), HeaderMap::new());
    let errand =
        Errand { credential, date: gateway.clock.date(), request_id, via, validator: None, trace: None, forwarded };
    let flight = Flight { question: question.clone(), slot, errand };
    tokio::spawn(Arc::clone(gateway).fly(pilot.unwrap(), flight));
    passenger.arrive().await.unwrap()
}

#[tokio::test]
async fn what_the_flight_before_has_brought_is_there_and_not_asked_for_again() {
    let simulator = Simulator::start().await.unwrap();
    let gateway = gateway(&simulator.url(Service::Workspace));
    let token = HeaderValue::try_from(simulator.token("p")).unwrap();
    let question = question(&gateway, &token);
    assert!(matches!(fly(&gateway, &question).await, Landing::Flown { answer: Ok(_), .. }));
    assert!(matches!(gateway.look_up(&question, gateway.clock.now()), LookUp::Given(_, Memory::Fresh)));
    assert!(matches!(fly(&gateway, &question).await, Landing::NotFlown));
    assert_eq!(simulator.request_count(), 1);
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
