//! Secrets in files and in the environment. The program must not print them.

use std::path::PathBuf;

use http::{HeaderMap, Method, StatusCode};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::signing::Payload;
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use crate::commands::{code, file, run_in, stderr, stdout};
use crate::support::process::{Process, folder};
use crate::support::signer::Signed;
use crate::support::{Http, PROJECT};

const LOG: &str = "[log]\nformat = \"json\"\n";
const ID: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_ID";
const SECRET: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET";
const SECRET_FILE: &str = "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET_FILE";
const ADMIN_TOKEN: &str = "WORKSPACE_GATEWAY_ADMIN_TOKEN";
const ADMIN_TOKEN_FILE: &str = "WORKSPACE_GATEWAY_ADMIN_TOKEN_FILE";

/// Writes a file into a new folder. Returns its path.
fn write_file(test: &str, name: &str, text: &str) -> PathBuf {
    let path = folder(test).join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Sends a request for a product list, signed with this key.
async fn status_of_signed_request(process: &Process, key: &IssuedKey) -> StatusCode {
    let url = format!("{}/v2/{PROJECT}/products", process.proxy);
    let request = Signed { method: Method::GET, url, headers: HeaderMap::new(), body: Vec::new() };
    request.sign(key, &[], &Payload::of(b""), Clock::System.date()).send_with(&Http::new()).await.status()
}

#[tokio::test]
async fn a_byte_order_mark_is_not_part_of_a_secret() {
    let simulator = Simulator::start().await.unwrap();
    let key = simulator.access_key(PROJECT);
    let secret = write_file("bom-secret", "sk", &format!("\u{feff}{}\r\n", key.secret));
    let token = write_file("bom-token", "token", "\u{feff}a-token-of-the-operator\r\n");
    let settings = write_file(
        "bom",
        "config.toml",
        &format!(
            "[listen]\nadmin_token = {{ file = {token:?} }}\n{LOG}[[access_key]]\nid = {:?}\nsecret = {{ file = \
             {secret:?} }}\n",
            key.id
        ),
    );
    let process = Process::start(&simulator, &settings).await;
    assert_eq!(status_of_signed_request(&process, &key).await, StatusCode::OK);
    let authorization = ("authorization", "Bearer a-token-of-the-operator");
    let page = Http::new().send(Method::GET, &format!("{}/status", process.admin), &[authorization], "").await;
    assert_eq!(page.status(), StatusCode::OK);
    assert_eq!(process.terminate().await.0, Some(0));
}

#[tokio::test]
async fn an_access_key_may_be_given_in_the_environment() {
    let simulator = Simulator::start().await.unwrap();
    let key = simulator.access_key(PROJECT);
    let secret = write_file("environment-secret", "sk", &format!("{}\n", key.secret));
    let settings = write_file("environment-key", "config.toml", LOG);
    for secret in [(SECRET, key.secret.as_str()), (SECRET_FILE, secret.to_str().unwrap())] {
        let process = Process::start_with_launcher(&["env"], &simulator, &settings, &[(ID, &key.id), secret]).await;
        assert_eq!(status_of_signed_request(&process, &key).await, StatusCode::OK, "{}", secret.0);
        let (code, log) = process.terminate().await;
        assert!(code == Some(0) && !log.contains(&key.secret), "{log}");
    }
}

#[tokio::test]
async fn the_admin_token_may_be_given_in_the_environment() {
    let simulator = Simulator::start().await.unwrap();
    let token = "a-token-of-the-operator";
    let path = write_file("environment-token", "token", &format!("{token}\n"));
    let settings =
        write_file("environment-admin", "config.toml", &format!("[listen]\nadmin_token = \"{:016}\"\n{LOG}", 1));
    for (variable, value) in [(ADMIN_TOKEN, token), (ADMIN_TOKEN_FILE, path.to_str().unwrap())] {
        let process = Process::start_with_launcher(&["env"], &simulator, &settings, &[(variable, value)]).await;
        let status = format!("{}/status", process.admin);
        for (given, expected) in [(token, StatusCode::OK), ("0000000000000001", StatusCode::UNAUTHORIZED)] {
            let authorization = format!("Bearer {given}");
            let reply = Http::new().send(Method::GET, &status, &[("authorization", &authorization)], "").await;
            assert_eq!(reply.status(), expected, "{variable}: {given}");
        }
        let (code, log) = process.terminate().await;
        assert!(code == Some(0) && !log.contains(token), "{log}");
    }
}

#[test]
fn a_wrong_admin_token_in_the_environment_is_a_usage_error() {
    for (environment, expected) in [
        (vec![(ADMIN_TOKEN, "hush")], "WORKSPACE_GATEWAY_ADMIN_TOKEN: listen.admin_token: is too short"),
        (
            vec![(ADMIN_TOKEN_FILE, "/none")],
            "WORKSPACE_GATEWAY_ADMIN_TOKEN_FILE: listen.admin_token: cannot read the file",
        ),
        (vec![(ADMIN_TOKEN, "hush"), (ADMIN_TOKEN_FILE, "/none")], "only one of the two"),
    ] {
        let output = run_in(&environment, &["check", "--region", "cn-north-4"]);
        assert!(stderr(&output).contains(expected), "{expected}: {}", stderr(&output));
        assert!(code(&output) == 2 && !stderr(&output).contains("hush"), "{}", stderr(&output));
    }
    // Beyond loopback the admin listener needs a token.
    let beyond = ["check", "--region", "cn-north-4", "--admin-listen", "0.0.0.0:9091", "--insecure-plaintext", "true"];
    assert_eq!(code(&run_in(&[], &beyond)), 2);
    assert_eq!(code(&run_in(&[(ADMIN_TOKEN, "0000000000000001")], &beyond)), 0);
}

#[test]
fn an_incomplete_access_key_in_the_environment_is_a_usage_error() {
    let other = "WORKSPACE_GATEWAY_ACCESS_KEY_ID: is set without a secret: expected \
                 WORKSPACE_GATEWAY_ACCESS_KEY_SECRET or WORKSPACE_GATEWAY_ACCESS_KEY_SECRET_FILE, too";
    for (environment, expected) in [
        (vec![(ID, "AK")], other),
        (vec![(ID, "AK"), (SECRET, "")], other),
        (
            vec![(SECRET, "hush")],
            "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET: is set without an id: expected WORKSPACE_GATEWAY_ACCESS_KEY_ID",
        ),
        (vec![(SECRET_FILE, "/hush")], "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET_FILE: is set without an id"),
        (vec![(ID, "AK"), (SECRET, "hush"), (SECRET_FILE, "/x")], "only one of the two"),
        (vec![(ID, "A K"), (SECRET, "hush")], "WORKSPACE_GATEWAY_ACCESS_KEY_ID: access_key[0].id: (not shown"),
        (
            vec![(ID, "AK"), (SECRET, "hu sh")],
            "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET: access_key.AK.secret: the variable WORKSPACE_GATEWAY_ACCESS_KEY_SECRET has \
             blanks",
        ),
        (
            vec![(ID, "AK"), (SECRET_FILE, "hush")],
            "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET_FILE: access_key.AK.secret: cannot read the file (path not shown, may be \
             the secret): No such file",
        ),
        (
            vec![(ID, "AK"), (SECRET_FILE, "/dev/zero")],
            "WORKSPACE_GATEWAY_ACCESS_KEY_SECRET_FILE: access_key.AK.secret: cannot read /dev/zero: expected a regular file or \
             a pipe, found a device",
        ),
    ] {
        let output = run_in(&environment, &["check", "--region", "cn-north-4"]);
        assert!(stderr(&output).contains(expected), "{expected}: {}", stderr(&output));
        assert!(code(&output) == 2 && !stderr(&output).contains("hush"), "{}", stderr(&output));
    }
}

#[test]
fn the_environment_overrides_the_secret_of_an_access_key_in_the_file() {
    let keys = "region = \"cn-north-4\"\n[[access_key]]\nid = \"AK\"\nsecret = \"old\"\nprojects = [\"p\"]\n[[access_key]]\nid \
                = \"OTHER\"\nsecret = \"other\"\n";
    let given = file("key-in-both.toml", keys);
    let environment = [(ID, "AK"), (SECRET, "new")];
    let output = run_in(&environment, &["check", "--config", &given]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let printed = stdout(&output);
    for line in
        ["# access key AK: the gateway verifies its signatures, for p", "env = \"WORKSPACE_GATEWAY_ACCESS_KEY_SECRET\""]
    {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    assert_eq!(printed.matches("[[access_key]]").count(), 2, "{printed}");
}

/// Settings with a secret in each place where a user could put it by mistake.
const MISPLACED: [&str; 19] = [
    "[[access_key]]\nid = \"AK\"\nsecret = { file = \"SECRET\" }",
    "[[access_key]]\nid = \"AK\"\nsecret = { file = \"/SECRET\" }",
    "[[access_key]]\nid = \"AK\"\nsecret = { env = \"SECRET\" }",
    "[[access_key]]\nid = \"AK\"\nsecret = { SECRET = \"x\" }",
    "[[access_key]]\nid = \"SECRET\"\nsecret = \"AK\"",
    "[[access_key]]\nid = \"AK\"\nSECRET = \"x\"",
    "[[access_key]]\nid = \"AK\"\nsecret = \"x\"\nprojects = \"SECRET\"",
    "[[access_key]]\nid = \"AK\"\nsecret = \"x\"\nprojects = [\"/SECRET\"]",
    "[access_key]\nAK = \"SECRET\"",
    "[access_key]\nSECRET = \"AK\"",
    "SECRET = \"AK\"",
    "[[SECRET]]\nid = \"AK\"",
    "[listen]\nSECRET = \"x\"",
    "listen = \"SECRET\"",
    "[listen]\nadmin_token = { file = \"SECRET\" }",
    "[listen]\nkey_file = \"\"\"-----BEGIN PRIVATE KEY-----\nSECRET\n\"\"\"",
    "[listen]\ncert_file = \"/dev/null\"\nkey_file = \"SECRET\"",
    "[listen]\nkey_file = \"/dev/null\"\ncert_file = \"\"\"-----BEGIN PRIVATE KEY-----\nSECRET\n\"\"\"",
    "[upstream]\nca_file = \"\"\"-----BEGIN PRIVATE KEY-----\nSECRET\n\"\"\"",
];

/// The same, as invalid TOML.
const BROKEN: [&str; 6] = [
    "[[access_key]]\nid = \"AK\"\nsecret = SECRET",
    "[[access_key]]\nid = \"AK\"\nsecret = \"SECRET",
    "[[access_key]]\nid = \"AK\"\nSECRET",
    "[[access_key]]\nid = \"AK\"\nSECRET = 1\nSECRET = 2",
    "[listen]\nadmin_token: \"SECRET\"",
    "SECRET",
];

#[test]
fn check_and_serve_do_not_print_a_misplaced_secret() {
    // With the length and the characters of a secret of Huawei Cloud.
    let secret = "q7Zx2Kd9Vw4Rt6Yb1Nc8Mh3Lp5Js0Gf7Ae2Ui4Oq";
    for text in MISPLACED.iter().chain(&BROKEN) {
        let path = file("misplaced-secret.toml", &text.replace("SECRET", secret));
        for command in ["check", "serve"] {
            // Some mistakes are found only when the addresses are in use.
            let any = "127.0.0.1:0";
            let listen = ["--listen", any, "--metrics-listen", any, "--admin-listen", any];
            let output = run_in(&[], &[&[command, "--region", "cn-north-4", "--config", &*path], &listen[..]].concat());
            let message = stderr(&output);
            assert!(code(&output) == 2 && message.starts_with("workspace-gateway: "), "{text}: {message}");
            assert!(!message.contains(secret) && !stdout(&output).contains(secret), "{text}: {message}");
            let names_the_file_or_setting =
                ["misplaced-secret.toml: ", "listen.", "upstream."].iter().any(|part| message.contains(part));
            assert!(names_the_file_or_setting, "{text}: {message}");
        }
    }
    for environment in [
        &[(ID, "AK"), (SECRET_FILE, secret)][..],
        &[(ID, secret), (SECRET, "AK")],
        &[(ID, "AK"), (SECRET, "x"), (SECRET_FILE, secret)],
        &[(SECRET, secret)],
        &[(SECRET_FILE, secret)],
    ] {
        for command in ["check", "serve"] {
            let output = run_in(environment, &[command, "--region", "cn-north-4"]);
            assert_eq!(code(&output), 2, "{}", stderr(&output));
            assert!(!stderr(&output).contains(secret), "{}", stderr(&output));
        }
    }
}

#[test]
fn check_ends_for_every_kind_of_file() {
    let folder = folder("kinds-of-files");
    let [pipe, huge] = ["pipe", "huge"].map(|name| folder.join(name).display().to_string());
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // A sparse file.
    std::fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    let key = |path: &str| format!("[[access_key]]\nid = \"AK\"\nsecret = {{ file = {path:?} }}");
    let tls = |cert: &str, key: &str| format!("[listen]\ncert_file = {cert:?}\nkey_file = {key:?}");
    let ca = |path: &str| format!("[upstream]\nca_file = {path:?}");
    let not_read = "is larger than 1048576 bytes (1 MiB), the limit";
    let authority = crate::support::tls::Authority::new().issue("localhost");
    let cert = folder.join("cert.pem").display().to_string();
    std::fs::write(&cert, authority.certificate).unwrap();
    let cases = [
        (key(&pipe), "did not end within 10s"),
        (key("/dev/zero"), "expected a regular file or a pipe, found a device"),
        (key("/"), "expected a regular file or a pipe, found a directory"),
        (key(&huge), not_read),
        (ca(&pipe), "expected a regular file, found a pipe"),
        (ca("/dev/zero"), "expected a regular file, found a device"),
        (ca(&huge), not_read),
        (tls(&pipe, &cert), "listen.cert_file"),
        (tls(&huge, &cert), not_read),
        (tls(&cert, &pipe), "expected a regular file, found a pipe"),
        (tls(&cert, "/dev/zero"), "expected a regular file, found a device"),
        (tls(&cert, &huge), not_read),
    ];
    let files = cases.iter().enumerate().map(|(number, (text, expected))| {
        let path = folder.join(format!("{number}.toml")).display().to_string();
        std::fs::write(&path, text).unwrap();
        (path, *expected)
    });
    let settings = [(&pipe, "did not end within 10s"), (&huge, not_read)];
    let settings = settings.into_iter().map(|(path, expected)| (path.clone(), expected));
    let no_files = [("/dev/zero", "found a device"), ("/", "found a directory")];
    let no_files = no_files.into_iter().map(|(path, expected)| (path.to_owned(), expected));
    std::thread::scope(|scope| {
        for (path, expected) in files.chain(settings).chain(no_files) {
            scope.spawn(move || {
                let output = run_in(&[], &["check", "--region", "cn-north-4", "--config", &path]);
                assert!(code(&output) == 2 && stderr(&output).contains(expected), "{expected}: {}", stderr(&output));
            });
        }
    });
}

#[test]
fn settings_and_secrets_may_come_from_a_pipe_of_the_shell() {
    let binary = env!("CARGO_BIN_EXE_workspace-gateway");
    let script =
        format!("{SECRET_FILE}=<(echo hush) {ID}=AK {binary} check --config <(echo 'region = \"cn-north-4\"')");
    // The shell replaces `<(…)` by a pipe only if it is a whole word.
    let script = script.replace(&format!("{SECRET_FILE}=<(echo hush)"), &format!("env {SECRET_FILE}=\"$1\""));
    let script = format!("check() {{ {script}; }}; check x <(echo hush)").replace("\"$1\"", "\"$2\"");
    let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("# access key AK"), "{}", stdout(&output));
}
