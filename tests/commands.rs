//! The commands, run as processes: output and exit codes.

use std::process::{Command, Output};

use crate::support::PROXY_VARIABLES;

/// Runs the program to its end, without the settings and proxies of this environment.
pub fn run(arguments: &[&str]) -> Output {
    run_in(&[], arguments)
}

/// The same with these environment variables.
pub fn run_in(environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_workspace-gateway"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WORKSPACE_GATEWAY_")) {
        command.env_remove(name);
    }
    for name in PROXY_VARIABLES {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied()).args(arguments).output().unwrap()
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

pub fn file(name: &str, text: &str) -> String {
    let path = format!("{}/{name}", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn check_prints_the_effective_configuration_which_check_accepts() {
    let given = file("given.toml", "region = \"cn-north-4\"\n[cache]\nttl = \"90s\"\n");
    let first = run(&["check", "--config", &given, "--listen", "127.0.0.1:18080"]);
    assert_eq!(code(&first), 0, "{}", stderr(&first));
    for line in [
        "# upstream of workspace: https://workspace.cn-north-4.myhuaweicloud.com",
        "proxy = \"127.0.0.1:18080\"",
        "ttl = \"1m 30s\"",
        "max_size = \"64MiB\"",
    ] {
        assert!(stdout(&first).lines().any(|printed| printed == line), "{line}: {}", stdout(&first));
    }
    let again = run(&["check", "--config", &file("effective.toml", stdout(&first))]);
    assert_eq!(stdout(&again), stdout(&first));
}

#[test]
fn configuration_errors_are_reported_with_exit_code_2() {
    let wrong = file("wrong.toml", "region = \"cn-north-4\"\n[cache]\nttl = \"5 parsecs\"\n");
    let no_ca = file("no-ca.toml", "region = \"cn-north-4\"\nupstream.ca_file = \"/does/not/exist.pem\"\n");
    for (arguments, expected) in [
        (&["check", "--config", &wrong][..], "cache.ttl: invalid value: string \"5 parsecs\", expected a duration"),
        (&["check", "--config", "/does/not/exist"], "cannot read /does/not/exist"),
        (&["check"], "region is not set"),
        (&["check", "--region", "cn-north-4", "--listen", "8080"], "--listen: listen.proxy: "),
        (&["serve", "--region", "cn-north-4", "--mode", "off"], "--mode: mode: "),
        (&["demo", "--mode", "off"], "expected cache or bypass"),
        (&["explain", "nonsense", "--region", "cn-north-4"], "expected a path or a URL"),
        (&["explain", "/", "--header", "secret"], "--header: not a header: expected NAME: VALUE"),
        (&["serve", "--config", &no_ca], "upstream.ca_file /does/not/exist.pem"),
        (&["check", "--config", &no_ca], "upstream.ca_file /does/not/exist.pem"),
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("secret"));
    }
}

#[test]
fn explain_shows_the_cache_key_and_the_upstream_request() {
    let output = run(&[
        "explain",
        "https://workspace.cn-north-4.myhuaweicloud.com/v2/p/products?os_type=Linux&limit=100",
        "--region",
        "cn-north-4",
        "--header",
        "X-Auth-Token: secret",
        "--header",
        "X-Language: en-us",
    ]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for line in [
        "operation        ListProducts of workspace",
        "scope            ListProducts in project p",
        "canonical query  os_type=Linux",
        "keyed headers    x-language: en-us",
        "ttl              5m",
        "upstream request GET https://workspace.cn-north-4.myhuaweicloud.com/v2/p/products?os_type=Linux",
    ] {
        assert!(stdout(&output).lines().any(|printed| printed == line), "{line}: {}", stdout(&output));
    }
    assert!(!stdout(&output).contains("secret"));

    let bypass = run(&["explain", "/v2/p/products?a=b+c", "--header", "X-Auth-Token: x"]);
    assert_eq!(code(&bypass), 0, "explain of a path needs no region");
    assert!(stderr(&bypass).contains("no region is set: give the flags of serve"), "{}", stderr(&bypass));
    assert!(stdout(&bypass).contains("bypass           plus ("), "{}", stdout(&bypass));
    let body = run(&["explain", "/v2/p/products", "-H", "X-Auth-Token: x", "-H", "Content-Length: 2"]);
    assert!(stdout(&body).contains("bypass           body ("), "{}", stdout(&body));
    let covers_host =
        ["explain", "/v2/p/desktops", "-H", "Authorization: SDK-HMAC-SHA256 SignedHeaders=host, Signature=0"];
    assert!(stdout(&run(&covers_host)).contains("answered 401 here"));
}

#[test]
fn explain_removes_the_path_prefix_of_a_base_url() {
    let explain = |url: &str, header: &str| run(&["explain", url, "--region", "r-1", "-H", header]);
    let token = "X-Auth-Token: x";
    for url in [
        "/workspace/v2/p/products?a=//b",
        "//v2/p/products?a=//b",
        "http://127.0.0.1:8080/appstream//v2/p/products?a=//b",
    ] {
        let output = explain(url, token);
        for line in ["rewritten to     /v2/p/products?a=//b", "operation        ListProducts of workspace"] {
            assert!(stdout(&output).lines().any(|printed| printed == line), "{url}: {}", stdout(&output));
        }
    }
    let through = explain("/workspace/v1/p/x", token);
    let expected = "relayed to       https://appstream.r-1.myhuaweicloud.com/v1/p/x";
    assert!(stdout(&through).lines().any(|printed| printed == expected), "{}", stdout(&through));
    assert!(stdout(&explain("/workspace/workspace/v2", token)).contains("answered 404 here"));
    assert!(!stdout(&explain("/v2/p/products", token)).contains("rewritten to"));
    let signed = "Authorization: SDK-HMAC-SHA256 Access=A, SignedHeaders=accept;x-sdk-date, Signature=0";
    assert!(stdout(&explain("/workspace/v2/p/x", signed)).contains("answered 401 here"));
    assert!(!stdout(&explain("/v2/p/x", signed)).contains("answered 401 here"));
}

#[test]
fn a_configured_operation_is_checked_and_explained() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config/operations.toml");
    let checked = run(&["check", "--config", example, "--region", "cn-north-4"]);
    assert_eq!(code(&checked), 0, "{}", stderr(&checked));
    let expected = "# ListVolumeProductInfo: GET /v2/{project_id}/volume/products of workspace, sharing = \"project\"";
    assert!(stdout(&checked).lines().any(|printed| printed == expected), "{}", stdout(&checked));

    let mut text = std::fs::read_to_string(example).unwrap();
    text +=
        "[[operation]]\nname = \"Disk\"\npath = \"/v3/{zone}/disks/{id}\"\nbody = \"json\"\nforward_headers = \"*\"\n";
    let own = file("own.toml", &text);
    let explain =
        |url: &str| run(&["explain", url, "--config", &own, "-H", "X-Auth-Token: secret", "-H", "X-Team: blue"]);
    for (url, lines) in [
        ("/v2/p/volume/products", &["scope            ListVolumeProductInfo in project p", "ttl              30m"][..]),
        (
            "/v3/z/disks/d",
            &[
                "operation        Disk of workspace",
                "scope            Disk, id = d, zone = z",
                "forward headers  * (not in the key)",
                "body             json",
                "sharing          none: each caller has its own responses, because its path has no {project_id}",
                "                 x-team: blue",
            ],
        ),
        (
            "/v3/z/disks/..",
            &[
                "bypass           path-segment (a path segment is not 1 to 255 characters of A-Z a-z 0-9 - . _ ~, or is . or ..)",
            ],
        ),
    ] {
        let output = explain(url);
        for line in lines {
            assert!(stdout(&output).lines().any(|printed| printed == *line), "{line}: {}", stdout(&output));
        }
        assert!(!stdout(&output).contains("secret"));
    }
}

#[test]
fn serve_reports_an_address_in_use_and_exits_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["serve", "--region", "cn-north-4", "--listen", &address]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains(&format!("cannot listen on {address} (listen.proxy)")), "{}", stderr(&output));
    assert!(stderr(&output).contains(". Another process listens on this address: stop it"), "{}", stderr(&output));
}

#[test]
fn the_demo_fails_if_the_number_of_upstream_calls_is_unexpected() {
    let output = run(&["demo", "--once"]);
    assert_eq!(code(&output), 0, "{}", stdout(&output));
    // How many requests are coalesced and how many are hits depends on the speed of the machine.
    for part in
        ["1 upstream", "200 memory", "upstream is slow", "426 client requests caused 15 upstream calls (15 expected)."]
    {
        assert!(stdout(&output).contains(part), "{part}: {}", stdout(&output));
    }
    let throttled = stdout(&output).lines().find(|line| line.starts_with("Upstream accepted")).unwrap();
    assert!(throttled.starts_with("Upstream accepted 12 calls for 12 client requests, and answered "), "{throttled}");
    // How many calls are sent before the limit is learnt depends on the machine, and so may the last refusals.
    assert!(throttled.contains(" with 429: no client saw one. The slowest request took "), "{throttled}");
    assert!(!stdout(&output).contains("unexpected"));

    let broken = run(&["demo", "--once", "--mode", "bypass"]);
    assert_eq!(code(&broken), 1, "the demo fails without its cache");
    assert!(stdout(&broken).contains("426 client requests caused 425 upstream calls (15 expected)."));
    assert!(stdout(&broken).contains("clients saw them"), "{}", stdout(&broken));
}
