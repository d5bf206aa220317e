//! The program reloads its configuration on SIGHUP and when its file changes.

use std::os::unix::fs::symlink;
use std::path::Path;

use http::{Method, StatusCode};
use serde_json::Value;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT};

const LOG: &str = "[log]\nformat = \"json\"\n";
const RELOADED: &str = "configuration reloaded";
const FAILED: &str = "configuration reload failed";

/// The numbers of reloads that were applied, refused and without changes.
async fn reloads(process: &Process) -> [String; 3] {
    let page = Http::new().get(&format!("{}/metrics", process.metrics)).await;
    ["applied", "refused", "unchanged"].map(|result| {
        let series = format!("workspace_gateway_reloads_total{{result=\"{result}\"}} ");
        page.text().lines().find_map(|line| line.strip_prefix(&series)).unwrap().to_owned()
    })
}

fn changed(event: &Value) -> &str {
    event["changed"].as_str().unwrap()
}

fn rename_into_place(file: &Path, text: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

#[tokio::test]
async fn the_program_reloads_when_its_file_is_written_replaced_or_removed() {
    let simulator = Simulator::start().await.unwrap();
    let file = folder("reload-file").join("config.toml");
    std::fs::write(&file, LOG).unwrap();
    let mut process = Process::start(&simulator, &file).await;

    std::fs::write(&file, format!("mode = \"bypass\"\n{LOG}")).unwrap();
    assert_eq!(changed(&process.wait_for_log(RELOADED).await), "mode");
    let (http, url, token) =
        (Http::new(), format!("{}/v2/{PROJECT}/products", process.proxy), simulator.token(PROJECT));
    let reply = http.send(Method::GET, &url, &[("x-auth-token", &token)], "").await;
    assert!(reply.cache_status().contains("detail=mode"), "{reply:?}");

    rename_into_place(&file, &format!("mode = \"on\"\n{LOG}"));
    let error = process.wait_for_log(FAILED).await["error"].to_string();
    assert!(error.contains("config.toml: mode: ") && error.contains("on"), "{error}");
    std::fs::remove_file(&file).unwrap();
    assert!(process.wait_for_log(FAILED).await["error"].to_string().contains("cannot read"));
    rename_into_place(
        &file,
        &format!("[listen]\nproxy = \"127.0.0.1:1\"\n[cache]\nmax_size = \"9MiB\"\n{LOG}level = \"warn\""),
    );
    let warning = process.wait_for_log("this setting needs a restart").await;
    assert_eq!(
        (&warning["setting"], &warning["in_force"], &warning["given"]),
        (&"cache.max_size".into(), &"64MiB".into(), &"9MiB".into())
    );
    assert_eq!(reloads(&process).await[..2], ["2", "2"]);
    drop(http);
    let (code, log) = process.terminate().await;
    assert_eq!(code, Some(0));
    assert!(!log.contains("\"message\":\"stopp"), "the level is warn:\n{log}");
    assert_eq!(log.matches(FAILED).count(), 2, "each error is logged once:\n{log}");
}

#[tokio::test]
async fn the_program_reloads_when_a_symlink_is_swapped_as_in_kubernetes() {
    let simulator = Simulator::start().await.unwrap();
    let folder = folder("reload-symlink");
    for (version, text) in [("..1", LOG.to_owned()), ("..2", format!("[cache]\nttl = \"1h\"\n{LOG}"))] {
        std::fs::create_dir(folder.join(version)).unwrap();
        std::fs::write(folder.join(version).join("config.toml"), text).unwrap();
    }
    symlink("..1", folder.join("..data")).unwrap();
    symlink("..data/config.toml", folder.join("config.toml")).unwrap();
    let mut process = Process::start(&simulator, &folder.join("config.toml")).await;
    symlink("..2", folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    std::fs::remove_dir_all(folder.join("..1")).unwrap();
    assert_eq!(changed(&process.wait_for_log(RELOADED).await), "cache.ttl");
    assert_eq!(process.terminate().await.0, Some(0));
}

#[tokio::test]
async fn the_program_reloads_on_sighup() {
    let simulator = Simulator::start().await.unwrap();
    let file = folder("reload-signal").join("config.toml");
    std::fs::write(&file, LOG).unwrap();
    let mut process = Process::start(&simulator, &file).await;
    process.signal("HUP");
    process.wait_for_log("configuration read again: no changes").await;
    // The signal and the check of the file both cause a reload. The second one finds no changes.
    std::fs::write(&file, format!("{LOG}level = \"debug\"")).unwrap();
    process.signal("HUP");
    assert_eq!(changed(&process.wait_for_log(RELOADED).await), "log.level");
    let (http, url) = (Http::new(), format!("{}/healthz", process.metrics));
    assert_eq!(http.get(&url).await.status(), StatusCode::OK);
    assert_eq!(reloads(&process).await[..2], ["1", "0"]);
    drop(http);
    assert_eq!(process.terminate().await.0, Some(0));
}
