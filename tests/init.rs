//! `init`: from flags or answers to a checked file, and the lines for a client.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::simulator::Simulator;

use crate::commands::{code, run, run_in, stderr, stdout};
use crate::support::process::{Process, folder};

const BINARY: &str = env!("CARGO_BIN_EXE_workspace-gateway");
const ID: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_ID";
const SECRET: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET";
const SECRET_FILE: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET_FILE";

/// A path for a new file.
fn new_file(test: &str) -> (PathBuf, String) {
    let path = folder(test).join("gateway.toml");
    let text = path.to_str().unwrap().to_owned();
    (path, text)
}

/// Runs `init` for a region, without connecting to it.
fn init(environment: &[(&str, &str)], file: &str, arguments: &[&str]) -> Output {
    let all = [&["init", "--config", file, "--no-probe"], arguments].concat();
    run_in(environment, &all)
}

const TOKEN_AND_CURL: [&str; 4] = ["--credential", "token", "--client", "curl"];

#[tokio::test]
async fn a_gateway_starts_with_the_written_file_and_upstream_is_probed() {
    let simulator = Simulator::start().await.unwrap();
    let (path, file) = new_file("init-probe");
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    let urls = ["--workspace-url", &workspace, "--appstream-url", &appstream];
    let arguments = [&["init", "--config", &file, "--log-format", "json"], &urls[..], &TOKEN_AND_CURL].concat();
    let output = run(&arguments);
    assert_eq!((code(&output), stderr(&output)), (0, ""), "{}", stdout(&output));
    for part in [
        format!("{file} is written."),
        format!("# workspace: {workspace} is reachable: "),
        format!("workspace-gateway serve --config {file}"),
    ] {
        assert!(stdout(&output).contains(&part), "{part}: {}", stdout(&output));
    }
    assert_eq!(Process::start(&simulator, &path).await.terminate().await.0, Some(0));

    simulator.shut_down().await;
    let again = run(&[&arguments[..], &["--force"]].concat());
    assert_eq!(code(&again), 1, "{}", stderr(&again));
    assert!(stdout(&again).contains(" is not reachable: ") && stdout(&again).contains("curl -i"), "{}", stdout(&again));
}

#[test]
fn a_file_is_replaced_only_with_force() {
    let (path, file) = new_file("init-force");
    fs::write(&path, "region = \"old\"").unwrap();
    let arguments = [&["--region", "cn-north-4"], &TOKEN_AND_CURL[..]].concat();
    let output = init(&[], &file, &arguments);
    let expected = format!("{file} exists: name another file with --config, or replace this one with --force");
    assert!(code(&output) == 2 && stderr(&output).contains(&expected), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&path).unwrap(), "region = \"old\"");
    // Who reads the old file meanwhile sees all of it. A link stays one.
    let [open, link] = ["open", "link"].map(|name| path.with_file_name(name));
    fs::hard_link(&path, &open).unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    assert_eq!(code(&init(&[], link.to_str().unwrap(), &[&arguments[..], &["--force"]].concat())), 0);
    assert!(fs::read_to_string(&path).unwrap().ends_with("region = \"cn-north-4\"\n"));
    assert_eq!(fs::read_to_string(&open).unwrap(), "region = \"old\"");
    assert_eq!((fs::metadata(&path).unwrap().mode() & 0o777, link.is_symlink()), (0o640, true));
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 3, "nothing else remains");
}

#[test]
fn a_region_that_is_not_known_needs_a_flag() {
    let (path, file) = new_file("init-region");
    let arguments = [&["--region", "xx-new-1"], &TOKEN_AND_CURL[..]].concat();
    let output = init(&[], &file, &arguments);
    assert!(code(&output) == 2 && stderr(&output).contains("add --unknown-region"), "{}", stderr(&output));
    assert!(!path.exists());
    assert_eq!(code(&init(&[], &file, &[&arguments[..], &["--unknown-region"]].concat())), 0);
    let urls = ["--workspace-url", "https://w.example", "--appstream-url", "https://a.example", "--force"];
    assert_eq!(code(&init(&[], &file, &[&arguments[..], &urls].concat())), 0, "it is only a name");
}

#[test]
fn without_a_terminal_it_says_what_is_missing() {
    let (path, file) = new_file("init-missing");
    let mistakes = folder("init-mistakes");
    let short = mistakes.join("token").to_str().unwrap().to_owned();
    for (environment, arguments, expected) in [
        (&[][..], &[][..], "expected --region NAME; --credential token or access-key; --client NAME"),
        (&[], &["--region", "cn-north-4", "--credential", "access-key", "--client", "go"], ID),
        (&[(ID, "AK")], &["--region", "cn-north-4", "--client", "go"], "is set without a secret"),
        (
            &[],
            &["--region", "cn-north-4", "--client", "ruby", "--credential", "token"],
            "[possible values: curl, terraform",
        ),
        (
            &[],
            &["--region", "cn-nroth-4", "--credential", "token"],
            "region: \"cn-nroth-4\" is not a known region of Workspace; the nearest known one is \"cn-north-4\": expected one of af-",
        ),
        (&[], &["--region", "NO!", "--client", "go", "--credential", "token"], "region: invalid value"),
        (
            &[],
            &["--region", "cn-north-4", "--listen", "0.0.0.0:8080", "--client", "go", "--credential", "token"],
            "plaintext",
        ),
        (
            &[(ID, "AK"), (SECRET_FILE, &short)],
            &["--region", "cn-north-4", "--client", "go"],
            "access_key.AK.secret: cannot read",
        ),
        (
            &[],
            &["--region", "cn-north-4", "--cert-file", "/none", "--client", "go", "--credential", "token"],
            "listen.key_file",
        ),
        (
            &[],
            &["--region", "cn-north-4", "--upstream-ca-file", "/none", "--client", "go", "--credential", "token"],
            "upstream.ca_file",
        ),
    ] {
        let output = init(environment, &file, arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stdout(&output));
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
        assert!(!path.exists(), "{arguments:?}");
    }
}

#[test]
fn an_access_key_is_named_in_the_file_and_its_secret_is_not() {
    let (path, file) = new_file("init-key");
    let secret = folder("init-key-secret").join("sk");
    fs::write(&secret, "hush").unwrap();
    let secret = secret.to_str().unwrap();
    for (variable, value, expected) in [
        (SECRET, "hush", format!("secret = {{ env = \"{SECRET}\" }}")),
        (SECRET_FILE, secret, format!("secret = {{ file = \"{secret}\" }}")),
    ] {
        let environment = [(ID, "AK"), (variable, value)];
        let output = init(&environment, &file, &["--region", "cn-north-4", "--client", "java", "--force"]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("id = \"AK\"\n") && text.contains(&expected), "{text}");
        assert!(![&text, stdout(&output), stderr(&output)].iter().any(|text| text.contains("hush")));
        assert_eq!(code(&run_in(&environment, &["check", "--config", &file])), 0);
    }
    assert_eq!(code(&run(&["check", "--config", &file])), 0, "a file needs no variables");
}

#[test]
fn the_lines_for_a_client_are_those_of_its_page() {
    let (_, file) = new_file("init-clients");
    for client in ["curl", "terraform", "python", "go", "node", "java"] {
        for credential in ["token", "access-key"] {
            let flags = ["--region", "cn-north-4", "--force", "--client", client, "--credential", credential];
            let output = init(&[(ID, "AK"), (SECRET, "hush")], &file, &flags);
            assert_eq!(code(&output), 0, "{}", stderr(&output));
            let printed = stdout(&output);
            let page = printed.lines().find_map(|line| line.strip_prefix("More about this client: ")).unwrap();
            let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
            let lines: Vec<_> = printed.lines().filter_map(|line| line.strip_prefix("  ")).skip(1).collect();
            assert!(!lines.is_empty(), "{printed}");
            for line in lines {
                assert!(text.contains(line.trim()), "{page} has no {line}");
            }
        }
    }
    let other =
        ["--region", "la-south-2", "--listen", "127.0.0.1:81", "--force", "--client", "go", "--credential", "token"];
    let printed = init(&[], &file, &other);
    for line in [
        "export HUAWEICLOUD_SDK_REGION_WORKSPACE_LA_SOUTH_2=http://127.0.0.1:81",
        "WithEndpoint(\"http://127.0.0.1:81\").",
    ] {
        assert!(stdout(&printed).contains(line), "{line}: {}", stdout(&printed));
    }
}

#[test]
fn on_a_terminal_it_asks_for_what_is_missing() {
    let (path, file) = new_file("init-terminal");
    let secret = path.with_file_name("sk");
    fs::write(&secret, "hush").unwrap();
    // util-linux' script runs the command on a terminal of its own.
    let command = format!("{BINARY} init --no-probe --config {file}");
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
    script.stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut child) = script.spawn() else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: the questions of init need util-linux' script on the PATH.");
        return;
    };
    let answers = format!("not a region!\ncn-north-4\naccess-key\nAK\n/none\n{}\nnode\n", secret.display());
    child.stdin.as_mut().unwrap().write_all(answers.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = stdout(&output);
    assert_eq!(code(&output), 0, "{printed}");
    for part in ["Region, such as cn-north-4: ", "there is no such file", "Client (curl, ", ".withEndpoint("] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("region = \"cn-north-4\"") && text.contains(&format!("file = {secret:?}")), "{text}");
}
