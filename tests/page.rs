//! The status page in a browser. The tests are those of `tests/page`, which run in Node.
//!
//! They need Debian's chromium and the modules that `npm ci` installs for `tests/page`. Without them, these tests print that
//! they are skipped. In CI they fail.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::tls::Authority;
use crate::tls_listener::Files;

const VARIABLE: &str = "WORKSPACE_GATEWAY_TEST_PAGE_MODULES";

/// A folder with an expired certificate for localhost, its key and its authority.
fn expired_certificate(name: &OsStr) -> PathBuf {
    let (files, authority) = (Files::new(&format!("page-{}", name.display())), Authority::new());
    files.write(&authority.issue_until_year("localhost", 2024));
    std::fs::write(files.0.join("ca.pem"), authority.pem()).unwrap();
    files.0
}

/// Runs the tests of one file of `tests/page`.
fn run(file: &str) {
    let Some(modules) = std::env::var_os(VARIABLE).filter(|modules| !modules.is_empty()) else {
        assert!(std::env::var_os("CI").is_none(), "{VARIABLE} is not set: CI must not skip the status page");
        // Written directly to the terminal: the output of `eprintln!` is shown for failed tests only.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED, nothing proved: {} needs chromium and node on the PATH. Set {VARIABLE} to the node_modules that \
             `npm ci` makes of tests/page.",
            std::thread::current().name().unwrap_or("a test with a browser")
        );
        return;
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page").join(file);
    let mut command = Command::new("node");
    command.arg("--test").arg(&file).env(VARIABLE, std::path::absolute(modules).unwrap());
    command.env("WORKSPACE_GATEWAY_TEST_PROGRAM", env!("CARGO_BIN_EXE_workspace-gateway"));
    command.env("WORKSPACE_GATEWAY_TEST_EXPIRED", expired_certificate(file.file_stem().unwrap()));
    // Neither the proxies nor the gateway settings of the environment may affect the test.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_ascii_lowercase();
        let is_setting = text.starts_with("workspace_gateway_") && !text.starts_with("workspace_gateway_test_");
        if text.ends_with("_proxy") || is_setting {
            command.env_remove(name);
        }
    }
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    // Node also succeeds if a file has no test.
    assert!(stdout.contains("# fail 0") && !stdout.contains("# pass 0\n"), "{stdout}");
}

#[test]
fn the_page_shows_what_the_server_reports() {
    run("page.test.mjs");
}

#[test]
fn the_page_is_readable_in_both_themes_and_on_a_phone() {
    run("look.test.mjs");
}

#[test]
fn the_page_names_the_cause_of_each_bad_day() {
    run("days.test.mjs");
}

#[test]
fn every_figure_matches_the_metrics() {
    run("figures.test.mjs");
}
