//! The status page, in a browser: `tests/page` drives it, in Node; see there what holds.
//!
//! That takes Debian's chromium, and what `npm ci` makes of `tests/page`. Without it these tests say so and prove nothing;
//! in CI that is a failure.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

const VARIABLE: &str = "WORKSPACE_GATEWAY_TEST_PAGE_MODULES";

/// Runs the tests of one file there.
fn run(file: &str) {
    let Some(found) = std::env::var_os(VARIABLE).filter(|found| !found.is_empty()) else {
        assert!(std::env::var_os("CI").is_none(), "{VARIABLE} is not set: CI must not skip the status page");
        // Straight to the terminal: what goes through `eprintln!` is shown for failed tests only.
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
    command.arg("--test").arg(file).env(VARIABLE, std::path::absolute(found).unwrap());
    command.env("WORKSPACE_GATEWAY_TEST_PROGRAM", env!("CARGO_BIN_EXE_workspace-gateway"));
    // Nothing of this machine's: neither its proxies nor the settings of whoever runs the test.
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
    // A file that holds no test passes, too.
    assert!(stdout.contains("# fail 0") && !stdout.contains("# pass 0\n"), "{stdout}");
}

#[test]
fn it_tells_what_it_is_told_and_what_it_is_not() {
    run("page.test.mjs");
}

#[test]
fn it_can_be_read_in_both_themes_and_on_a_phone() {
    run("look.test.mjs");
}

#[test]
fn every_figure_is_what_metrics_tells() {
    run("figures.test.mjs");
}
