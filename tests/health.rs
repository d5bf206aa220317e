//! The program's own health check.

use std::process::Output;

use tokio::net::TcpListener;
use workspace_gateway::testing::simulator::Simulator;

use crate::commands::{code, run, stderr, stdout};
use crate::support::line::Line;
use crate::support::process::{Process, folder};
use crate::support::{PROJECT, within};

async fn health(arguments: &[&str]) -> Output {
    let arguments: Vec<String> = ["health"].iter().chain(arguments).map(ToString::to_string).collect();
    let asking = tokio::task::spawn_blocking(move || run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()));
    within(asking).await.unwrap()
}

#[tokio::test]
async fn it_tells_who_is_alive_and_who_takes_requests() {
    let simulator = Simulator::start().await.unwrap();
    let file = folder("health").join("config.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    let mut process = Process::start(&simulator, &file).await;
    let metrics = process.metrics.strip_prefix("http://").unwrap().to_owned();
    let port = metrics.rsplit(':').next().unwrap();
    // Where it listens on all addresses it is asked on this machine.
    for listens in [&metrics, &format!("0.0.0.0:{port}")] {
        for (flags, page) in
            [(&["--metrics-listen", listens][..], "healthz"), (&["--ready", "--metrics-listen", listens], "readyz")]
        {
            let output = health(flags).await;
            assert_eq!(code(&output), 0, "{}", stderr(&output));
            assert_eq!(stdout(&output), format!("http://{metrics}/{page} answers 200\n"));
        }
    }

    // Something in flight keeps it from being gone at once.
    simulator.hold();
    let mut line = Line::at(process.proxy.strip_prefix("http://").unwrap().parse().unwrap()).await;
    line.says(format!("GET /v2/{PROJECT}/products HTTP/1.1\r\nhost: x\r\nx-auth-token: x\r\n\r\n")).await;
    within(simulator.arrived(1)).await;
    process.signal("TERM");
    process.says("stopping").await;
    // It has said so before it has begun.
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
    assert_eq!(line.hears().await.status(), 401);
    process.says("stopped").await;
    let gone = health(&["--metrics-listen", &metrics]).await;
    assert!(stderr(&gone).contains("/healthz gives no answer: Connection refused"), "{}", stderr(&gone));
    assert_eq!(code(&gone), 1);
}

#[tokio::test]
async fn who_hangs_or_hangs_up_is_not_well() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let silent = health(&["--metrics-listen", &address]).await;
    assert_eq!((code(&silent), stderr(&silent).contains("gives no answer in 2s")), (1, true), "{}", stderr(&silent));
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let closed = health(&["--metrics-listen", &address]).await;
    assert_eq!((code(&closed), stderr(&closed).contains("gives no answer: ")), (1, true), "{}", stderr(&closed));
}

#[tokio::test]
async fn of_all_settings_only_the_address_counts() {
    for (arguments, expected) in [
        (&["--metrics-listen", "nowhere"][..], "--metrics-listen: listen.metrics: "),
        (&["--metrics-listen", "127.0.0.1:0"], "listen.metrics: \"127.0.0.1:0\" names no port"),
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
    // What a running gateway has refused, or never hears of, doesn't make it ill.
    for rest in ["", "mode = 3", "[[access_key]]\nid = \"A\"\nsecret = { env = \"NOT_SET_ANYWHERE\" }"] {
        std::fs::write(&file, format!("{rest}\n[listen]\nmetrics = \"{metrics}\"\n")).unwrap();
        let output = health(&["--config", file.to_str().unwrap()]).await;
        assert_eq!(code(&output), 0, "{rest}: {}", stderr(&output));
    }
    std::fs::write(&file, "[listen").unwrap();
    for file in [file.to_str().unwrap(), "/does/not/exist"] {
        let output = health(&["--config", file, "--metrics-listen", &metrics]).await;
        assert_eq!(code(&output), 0, "{file}: {}", stderr(&output));
    }
}
