//! The `health` command.

use std::process::Output;

use tokio::net::TcpListener;
use workspace_gateway::testing::simulator::Simulator;

use crate::commands::{code, run, stderr, stdout};
use crate::support::process::{Process, folder};
use crate::support::raw_client::RawClient;
use crate::support::{PROJECT, within};

async fn health(arguments: &[&str]) -> Output {
    let arguments: Vec<String> = ["health"].iter().chain(arguments).map(ToString::to_string).collect();
    let command = tokio::task::spawn_blocking(move || run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()));
    within(command).await.unwrap()
}

#[tokio::test]
async fn health_reports_liveness_and_readiness() {
    let simulator = Simulator::start().await.unwrap();
    let file = folder("health").join("config.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    let mut process = Process::start(&simulator, &file).await;
    let metrics = process.metrics.strip_prefix("http://").unwrap().to_owned();
    let port = metrics.rsplit(':').next().unwrap();
    // For a listener on all addresses, the command connects to this machine.
    for listen in [&metrics, &format!("0.0.0.0:{port}")] {
        for (flags, page) in
            [(&["--metrics-listen", listen][..], "healthz"), (&["--ready", "--metrics-listen", listen], "readyz")]
        {
            let output = health(flags).await;
            assert_eq!(code(&output), 0, "{}", stderr(&output));
            assert_eq!(stdout(&output), format!("http://{metrics}/{page} answers 200\n"));
        }
    }

    // A request in flight delays the end of the process.
    simulator.hold();
    let mut client = RawClient::connect_to(process.proxy.strip_prefix("http://").unwrap().parse().unwrap()).await;
    client.send(format!("GET /v2/{PROJECT}/products HTTP/1.1\r\nhost: x\r\nx-auth-token: x\r\n\r\n")).await;
    within(simulator.wait_for_requests(1)).await;
    process.signal("TERM");
    process.wait_for_log("stopping").await;
    // The log line comes before the readiness changes.
    let draining = within(async {
        loop {
            let output = health(&["--ready", "--metrics-listen", &metrics]).await;
            if code(&output) != 0 {
                break output;
            }
        }
    })
    .await;
    let expected = format!("workspace-gateway: http://{metrics}/readyz answers 503 Service Unavailable\n");
    assert_eq!((code(&draining), stderr(&draining)), (1, expected.as_str()));
    assert_eq!(code(&health(&["--metrics-listen", &metrics]).await), 0);
    simulator.release();
    assert_eq!(client.read_response().await.status(), 401);
    process.wait_for_log("stopped").await;
    let stopped = health(&["--metrics-listen", &metrics]).await;
    assert!(stderr(&stopped).contains("/healthz does not answer: Connection refused"), "{}", stderr(&stopped));
    assert_eq!(code(&stopped), 1);
}

#[tokio::test]
async fn a_gateway_that_hangs_or_closes_the_connection_is_unhealthy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let silent = health(&["--metrics-listen", &address]).await;
    assert_eq!(
        (code(&silent), stderr(&silent).contains("does not answer within 2s")),
        (1, true),
        "{}",
        stderr(&silent)
    );
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let closed = health(&["--metrics-listen", &address]).await;
    assert_eq!((code(&closed), stderr(&closed).contains("does not answer: ")), (1, true), "{}", stderr(&closed));
}

#[tokio::test]
async fn health_needs_only_the_metrics_address() {
    for (arguments, expected) in [
        (&["--metrics-listen", "nowhere"][..], "--metrics-listen: listen.metrics: "),
        (&["--metrics-listen", "127.0.0.1:0"], "listen.metrics: \"127.0.0.1:0\" has port 0"),
    ] {
        let output = health(arguments).await;
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
        assert_eq!(code(&output), 1, "{arguments:?}");
    }
    let simulator = Simulator::start().await.unwrap();
    let file = folder("health-file").join("config.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    let process = Process::start(&simulator, &file).await;
    let metrics = process.metrics.strip_prefix("http://").unwrap().to_owned();
    // Settings that the running gateway rejected or never read do not make it unhealthy.
    for settings in ["", "mode = 3", "[[access_key]]\nid = \"A\"\nsecret = { env = \"NOT_SET_ANYWHERE\" }"] {
        std::fs::write(&file, format!("{settings}\n[listen]\nmetrics = \"{metrics}\"\n")).unwrap();
        let output = health(&["--config", file.to_str().unwrap()]).await;
        assert_eq!(code(&output), 0, "{settings}: {}", stderr(&output));
    }
    std::fs::write(&file, "[listen").unwrap();
    for file in [file.to_str().unwrap(), "/does/not/exist"] {
        let output = health(&["--config", file, "--metrics-listen", &metrics]).await;
        assert_eq!(code(&output), 0, "{file}: {}", stderr(&output));
    }
}
