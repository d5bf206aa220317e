//! Signals, an inherited signal mask, and the environment variables of the runtime.

use http::StatusCode;
use workspace_gateway::testing::simulator::Simulator;

use crate::commands::{code, run_in, stderr};
use crate::support::Http;
use crate::support::process::{Process, folder};

fn settings_file(name: &str) -> std::path::PathBuf {
    let file = folder(name).join("config.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    file
}

#[tokio::test]
async fn unused_signals_do_not_end_the_process() {
    let simulator = Simulator::start().await.unwrap();
    let process = Process::start(&simulator, &settings_file("stray-signals")).await;
    for name in ["USR1", "USR2", "XFSZ"] {
        process.signal(name);
    }
    let page = Http::new().get(&format!("{}/healthz", process.metrics)).await;
    assert_eq!(page.status(), StatusCode::OK);
    assert_eq!(process.terminate().await.0, Some(0));
}

#[tokio::test]
async fn an_inherited_signal_mask_does_not_block_sighup_and_sigterm() {
    let simulator = Simulator::start().await.unwrap();
    let launcher = ["env", "--block-signal=TERM,HUP,INT"];
    let mut process = Process::start_with_launcher(&launcher, &simulator, &settings_file("signal-mask"), &[]).await;
    process.signal("HUP");
    process.wait_for_log("configuration read again: no changes").await;
    assert_eq!(process.terminate().await.0, Some(0));
}

#[test]
fn an_invalid_number_of_threads_is_a_usage_error() {
    for value in ["0", "many", "-1", "1.5", "513"] {
        let output =
            run_in(&[("TOKIO_WORKER_THREADS", value)], &["serve", "--region", "r-1", "--listen", "127.0.0.1:0"]);
        let expected = format!("TOKIO_WORKER_THREADS: {value:?} is not allowed: expected a number from 1 to 512");
        assert!(stderr(&output).contains(&expected), "{value}: {}", stderr(&output));
        assert_eq!(code(&output), 2, "{value}");
    }
}

#[tokio::test]
async fn a_valid_or_empty_number_of_threads_is_accepted() {
    let simulator = Simulator::start().await.unwrap();
    for (name, value) in [("one-thread", "1"), ("no-thread-count", "")] {
        let environment = [("TOKIO_WORKER_THREADS", value)];
        let process = Process::start_with_launcher(&["env"], &simulator, &settings_file(name), &environment).await;
        assert_eq!(process.terminate().await.0, Some(0), "{name}");
    }
}
