//! The program told to read its settings again: by a signal, and by what becomes of its file.

use std::os::unix::fs::symlink;
use std::path::Path;

use http::{Method, StatusCode};
use serde_json::Value;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT};

const LOG: &str = "[log]\nformat = \"json\"\n";
const RELOADED: &str = "settings reloaded";
const REFUSED: &str = "settings not reloaded";

/// How often settings were applied, refused, and found unchanged.
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
async fn it_notices_that_its_file_changes_however_that_is_done() {
    let simulator = Simulator::start().await.unwrap();
    let file = folder("reload-file").join("config.toml");
    std::fs::write(&file, LOG).unwrap();
    let mut process = Process::start(&simulator, &file).await;

    std::fs::write(&file, format!("mode = \"bypass\"\n{LOG}")).unwrap();
    assert_eq!(changed(&process.says(RELOADED).await), "mode");
    let (http, url, token) =
        (Http::new(), format!("{}/v2/{PROJECT}/products", process.proxy), simulator.token(PROJECT));
    let reply = http.send(Method::GET, &url, &[("x-auth-token", &token)], "").await;
    assert!(reply.cache_status().contains("detail=mode"), "{reply:?}");

    rename_into_place(&file, &format!("mode = \"on\"\n{LOG}"));
    let error = process.says(REFUSED).await["error"].to_string();
    assert!(error.contains("config.toml: mode: ") && error.contains("on"), "{error}");
    std::fs::remove_file(&file).unwrap();
    assert!(process.says(REFUSED).await["error"].to_string().contains("cannot read"));
    rename_into_place(
        &file,
        &format!("[listen]\nproxy = \"127.0.0.1:1\"\n[cache]\nmax_size = \"9MiB\"\n{LOG}level = \"warn\""),
    );
    let told = process.says("this setting takes a restart").await;
    assert_eq!(
        (&told["setting"], &told["in_force"], &told["given"]),
        (&"cache.max_size".into(), &"64MiB".into(), &"9MiB".into())
    );
    assert_eq!(reloads(&process).await[..2], ["2", "2"]);
    drop(http);
    let (code, log) = process.terminate().await;
    assert_eq!(code, Some(0));
    assert!(!log.contains("\"message\":\"stopp"), "less serious than a warning:\n{log}");
    assert_eq!(log.matches(REFUSED).count(), 2, "each mistake is told once:\n{log}");
}

#[tokio::test]
async fn it_notices_a_symlink_that_is_swapped_as_kubernetes_does_it() {
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
    assert_eq!(changed(&process.says(RELOADED).await), "cache.ttl");
    assert_eq!(process.terminate().await.0, Some(0));
}

#[tokio::test]
async fn it_reads_everything_again_on_sighup() {
    let simulator = Simulator::start().await.unwrap();
    let file = folder("reload-signal").join("config.toml");
    std::fs::write(&file, LOG).unwrap();
    let mut process = Process::start(&simulator, &file).await;
    process.signal("HUP");
    process.says("settings read again: nothing to apply").await;
    // Whichever comes first, the signal or the look at the file; the other finds nothing.
    std::fs::write(&file, format!("{LOG}level = \"debug\"")).unwrap();
    process.signal("HUP");
    assert_eq!(changed(&process.says(RELOADED).await), "log.level");
    let (http, url) = (Http::new(), format!("{}/healthz", process.metrics));
    assert_eq!(http.get(&url).await.status(), StatusCode::OK);
    assert_eq!(reloads(&process).await[..2], ["1", "0"]);
    drop(http);
    assert_eq!(process.terminate().await.0, Some(0));
}
