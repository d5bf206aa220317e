//! The warnings and errors of `check`, which are those of `serve`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use workspace_gateway::testing::simulator::Simulator;

use crate::commands::{code, run, run_in, stderr, stdout};
use crate::support::process::{Process, folder};

/// Writes a file with these permissions.
fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn check_warns_of_likely_mistakes() {
    let folder = folder("check-warnings");
    let [secret, file] = ["sk", "config.toml"].map(|name| folder.join(name));
    let path = file.to_str().unwrap();
    let key = format!("[[access_key]]\nid = \"AK\"\nsecret = {{ file = {secret:?} }}\n");
    let warnings = |arguments: &[&str]| {
        let output = run(&[&["check"], arguments].concat());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        stderr(&output).to_owned()
    };
    write(&secret, "hush", 0o640);
    write(&file, &key, 0o644);
    assert_eq!(warnings(&["--config", path, "--region", "cn-north-4"]), "");
    let local = ["--workspace-url", "http://127.0.0.1:1", "--appstream-url", "http://[::1]:1", "--region", "moon"];
    assert_eq!(warnings(&local), "", "these URLs are local, and the region is not used");

    write(&secret, "hush", 0o644);
    let readable = format!("warning: access_key.AK.secret: every user of this machine can read {}", secret.display());
    assert!(warnings(&["--config", path, "--region", "cn-north-4"]).contains(&readable));
    write(&file, "[[access_key]]\nid = \"AK\"\nsecret = \"hush\"\n", 0o644);
    let printed = warnings(&["--config", path, "--region", "cn-north-4"]);
    assert!(printed.contains(&format!("can read {path}")) && !printed.contains("hush"), "{printed}");

    // More than the memory of any test machine.
    let large = folder.join("large.toml");
    write(&large, "[cache]\nmax_size = \"1TiB\"\n", 0o644);
    let large = large.to_str().unwrap();
    for (arguments, expected) in [
        (
            &["--region", "cn-nroth-4"][..],
            "warning: region: \"cn-nroth-4\" is not a known region of Workspace; the nearest known one is \"cn-north-4\"",
        ),
        (
            &["--region", "cn-north-4", "--workspace-url", "http://upstream.example"],
            "warning: upstream: the gateway sends tokens in plaintext to http://upstream.example",
        ),
        (&["--region", "cn-north-4", "--config", large], "warning: cache.max_size (1048576 MiB), limits.memory ("),
        (
            &["--region", "cn-north-4", "--listen", "0.0.0.0:8080", "--insecure-plaintext", "true"],
            "warning: listen.proxy: clients send tokens in plaintext to 0.0.0.0:8080",
        ),
    ] {
        let printed = warnings(arguments);
        assert!(printed.contains(expected) && printed.lines().count() == 1, "{expected}: {printed}");
    }
}

#[tokio::test]
async fn serve_logs_the_warnings_of_check() {
    let simulator = Simulator::start().await.unwrap();
    let file = folder("serve-warnings").join("config.toml");
    let key = "[[access_key]]\nid = \"AK\"\nsecret = \"hush\"\n";
    write(&file, &format!("[log]\nformat = \"json\"\n{key}"), 0o644);
    let (code, log) = Process::start(&simulator, &file).await.terminate().await;
    let warned = log.matches("access_key.AK.secret: every user of this machine can read").count();
    assert_eq!((code, warned), (Some(0), 1), "{log}");
}

#[test]
fn check_reports_every_mistake_with_its_position() {
    let text = "region = \"cn-north-4\"\nmode = \"on\"\n\n[cache]\nttl = \"5 parsecs\"\n  sharing = \"all\"\nno_such = 1\n\n\
                [upstream]\nfirst_byte_timeout = \"x\"\nanswer_timeout = \"6s\"\n\n[[operation]]\nname = \"Own\"\npath = \
                \"nonsense\"\nttl = \"x\"\n\n[[access_key]]\nid = \"hu sh\"\nsecret = \"A\"\n\n[[access_key]]\nid = \
                \"B\"\nprojects = [\"/\"]\n[[access_key]]\nid = 7\nsecret = \"x\"\n[[access_key]]\nid = \"C\"\nsecret = { \
                file = \"/no/such/a\" }\n[[access_key]]\nid = \"D\"\nsecret = \"hu sh\"\n";
    let lines = |output: &std::process::Output| -> Vec<String> {
        assert_eq!(code(output), 2, "{}", stderr(output));
        stderr(output).lines().map(str::to_owned).collect()
    };
    let file = folder("check-mistakes").join("config.toml");
    let path = file.to_str().unwrap();
    write(&file, text, 0o600);
    let printed = lines(&run(&["check", "--config", path]));
    let expected = [
        ("mode: ", "line 2, column 1"),
        ("upstream.first_byte_timeout: ", "line 10, column 1"),
        ("cache.ttl: ", "line 5, column 1"),
        ("cache.sharing: ", "line 6, column 3"),
        ("cache.no_such: unknown field `no_such`", "line 7, column 1"),
        ("operation.Own.path: ", "line 15, column 1"),
        ("operation.Own.ttl: ", "line 16, column 1"),
        ("access_key[0].id: (not shown", "line 19, column 1"),
        ("access_key.B.projects[0]: (not shown", "line 24, column 13"),
        ("access_key.B: missing field `secret`", "line 22, column 1"),
        ("access_key[2].id: (not shown", "line 26, column 1"),
        ("access_key.C.secret: cannot read the file", "line 30, column 1"),
        ("access_key.D.secret: has blanks", "line 33, column 1"),
    ];
    for (setting, place) in expected {
        let matches = |line: &&String| {
            line.starts_with(&format!("workspace-gateway: {path}: {setting}")) && line.ends_with(&format!(" ({place})"))
        };
        assert_eq!(printed.iter().filter(matches).count(), 1, "{setting} {place}: {printed:#?}");
    }
    assert!(printed.len() == expected.len() && !printed.concat().contains("hu sh"), "{printed:#?}");
}

#[test]
fn check_warns_if_connections_exceed_the_open_file_limit() {
    let binary = env!("CARGO_BIN_EXE_workspace-gateway");
    let check = |limit: &str| {
        let arguments = [&format!("--nofile={limit}"), binary, "check", "--region", "cn-north-4"];
        std::process::Command::new("prlimit").args(arguments).output().unwrap()
    };
    let few = check("256:256");
    let expected =
        "warning: if started here, limits.max_connections is reduced from 4096 to 64: the open file limit is 256";
    assert!(code(&few) == 0 && stderr(&few).contains(expected), "{}", stderr(&few));
    let raised = check("256:");
    assert!(!stderr(&raised).contains("the open file limit is 256"), "serve raises the limit: {}", stderr(&raised));
}

#[test]
fn check_rejects_an_invalid_number_of_worker_threads() {
    for (arguments, other_error) in
        [(&["check", "--region", "cn-north-4"][..], ""), (&["check", "--mode", "x"], "--mode: ")]
    {
        let output = run_in(&[("TOKIO_WORKER_THREADS", "0")], arguments);
        let printed = stderr(&output);
        assert!(code(&output) == 2 && printed.contains("TOKIO_WORKER_THREADS: \"0\" is not allowed"), "{printed}");
        assert!(printed.contains(other_error), "{printed}");
    }
}

#[tokio::test]
async fn tokio_worker_threads_sets_the_number_of_threads() {
    let simulator = Simulator::start().await.unwrap();
    let file = folder("threads").join("config.toml");
    write(&file, "[log]\nformat = \"json\"\n", 0o600);
    let threads = [("TOKIO_WORKER_THREADS", "9")];
    let process = Process::start_with_launcher(&["taskset", "-c", "0"], &simulator, &file, &threads).await;
    let is_worker = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("tokio-rt-worker"))
    };
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    let workers = tasks.map(Result::unwrap).filter(is_worker).count();
    assert!(workers >= 9, "{workers}");
    assert_eq!(process.terminate().await.0, Some(0));
}

#[test]
fn errors_in_all_files_are_reported_in_one_run() {
    let folder = folder("check-all-files");
    let [file, ca, cert, key, client_ca] =
        ["config.toml", "ca.pem", "c.pem", "k.pem", "a.pem"].map(|name| folder.join(name));
    for path in [&ca, &cert, &key, &client_ca] {
        write(path, "none", 0o600);
    }
    let names = format!(
        "[upstream]\nca_file = {ca:?}\n[listen]\ncert_file = {cert:?}\nkey_file = {key:?}\nclient_ca_file = {client_ca:?}\n"
    );
    let files = ["upstream.ca_file", "listen.cert_file", "listen.key_file", "listen.client_ca_file"];
    let secret = "[[access_key]]\nid = \"A\"\nsecret = { file = \"/no/such/a\" }\n";
    for (settings, more) in [
        ("region = \"cn-north-4\"\n", &[][..]),
        ("", &["region is not set"]),
        ("region = \"cn-north-4\"\nmode = \"on\"\n", &["mode: ", "access_key.A.secret: "]),
    ] {
        let secret = if more.len() > 1 { secret } else { "" };
        write(&file, &format!("{settings}{names}{secret}"), 0o600);
        for command in ["check", "serve"] {
            let output = run(&[command, "--config", file.to_str().unwrap()]);
            let printed = stderr(&output);
            assert_eq!(code(&output), 2, "{command}: {printed}");
            for expected in files.iter().chain(more) {
                assert_eq!(printed.matches(expected).count(), 1, "{command}, {expected}: {printed}");
            }
            assert_eq!(printed.lines().count(), files.len() + more.len(), "{command}: {printed}");
        }
    }
}

#[test]
fn check_prints_an_adaptive_ttl_and_the_cost_of_keep_warm() {
    let file = folder("check-keep-warm").join("config.toml");
    let key = "region = \"cn-north-4\"\n[[access_key]]\nid = \"AK\"\nsecret = \"hush\"\nprojects = [\"p1\", \"p2\"]\n";
    let entry = |projects: &str| {
        format!(
            "[[keep_warm]]\naccess_key = \"AK\"\nprojects = {projects}\nrequests = [\"/v2/{{project_id}}/products\"]\n"
        )
    };
    let adaptive = "[cache]\nttl = { max_stale = \"0.5%\", min = \"1m\" }\n";
    let check = |text: String| {
        write(&file, &text, 0o600);
        run(&["check", "--config", file.to_str().unwrap()])
    };
    for (text, line) in [
        (format!("{key}{}", entry("[\"p1\", \"p2\"]")), "# keep_warm: 2 cache keys cost 0.5 upstream calls per minute"),
        (
            format!("{key}{}{adaptive}", entry("[\"p1\", \"p2\"]")),
            "# keep_warm: 2 cache keys cost at most 2.3 upstream calls per minute",
        ),
        (
            format!("region = \"cn-north-4\"\n{adaptive}"),
            "# ListProduct: GET /v1/{project_id}/product of appstream, sharing = \"project\", ttl = 1m to 1h, for at most \
             0.5% stale answers (5m until they are measured)",
        ),
    ] {
        let output = check(text);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let printed = stdout(&output);
        assert!(printed.lines().any(|printed| printed == line) && !printed.contains("hush"), "{line}: {printed}");
        // What is printed is a configuration with the same settings, except for the secret.
        let again = check(printed.replace("(not shown)", "hush"));
        assert_eq!((code(&again), stdout(&again)), (0, printed), "{}", stderr(&again));
    }
    let wrong = check(format!("{key}{}", entry("[\"p3\"]")));
    assert!(
        code(&wrong) == 2 && stderr(&wrong).contains("keep_warm[0].projects[0]: \"p3\" is not"),
        "{}",
        stderr(&wrong)
    );
    assert!(!stderr(&wrong).contains("hush"));
}
