//! What the program inherits from whoever starts it, and what is sent to it: signals, their mask, and variables that the
//! runtime reads.

use http::StatusCode;
use workspace_gateway::testing::simulator::Simulator;

use crate::commands::{code, run_in, stderr};
use crate::support::Http;
use crate::support::process::{Process, folder};

/// A file of settings for the test of this name.
fn settings(name: &str) -> std::path::PathBuf {
    let file = folder(name).join("config.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    file
}

#[tokio::test]
async fn signals_that_mean_nothing_to_it_do_not_end_it() {
    let simulator = Simulator::start().await.unwrap();
    let process = Process::start(&simulator, &settings("stray-signals")).await;
    for name in ["USR1", "USR2", "XFSZ"] {
        process.signal(name);
    }
    let page = Http::new().get(&format!("{}/healthz", process.metrics)).await;
    assert_eq!(page.status(), StatusCode::OK);
    assert_eq!(process.terminate().await.0, Some(0));
}

#[tokio::test]
async fn an_inherited_signal_mask_does_not_keep_it_from_stopping() {
    let simulator = Simulator::start().await.unwrap();
    let starter = ["env", "--block-signal=TERM,HUP,INT"];
    let mut process = Process::start_under(&starter, &simulator, &settings("signal-mask"), &[]).await;
    process.signal("HUP");
    process.says("settings read again").await;
    assert_eq!(process.terminate().await.0, Some(0));
}

#[test]
fn a_wrong_number_of_threads_is_a_usage_error() {
    for value in ["0", "many", "-1", "1.5", "513"] {
        let output =
            run_in(&[("TOKIO_WORKER_THREADS", value)], &["serve", "--region", "r-1", "--listen", "127.0.0.1:0"]);
        let expected = format!("TOKIO_WORKER_THREADS: {value:?} is not allowed: expected a number from 1 to 512");
        assert!(stderr(&output).contains(&expected), "{value}: {}", stderr(&output));
        assert_eq!(code(&output), 2, "{value}");
    }
}

#[tokio::test]
async fn a_number_of_threads_or_none_is_taken() {
    let simulator = Simulator::start().await.unwrap();
    for (name, value) in [("one-thread", "1"), ("no-thread-count", "")] {
        let environment = [("TOKIO_WORKER_THREADS", value)];
        let process = Process::start_under(&["env"], &simulator, &settings(name), &environment).await;
        assert_eq!(process.terminate().await.0, Some(0), "{name}");
    }
}
