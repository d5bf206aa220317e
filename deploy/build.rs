//! Tells a release build which commit it is of, for `--version`. `WORKSPACE_GATEWAY_VERSION` is then such as
//! `0.1.0 (abcdef123456)`. Without a commit it is not set, and nothing fails: a package has no git. Builds for development
//! do not ask git, because each commit would make them build again.

use std::path::Path;
use std::process::Command;

/// What the program is built from. If one of these differs from the commit, the commit has `-dirty` behind it.
const SOURCES: [&str; 6] = [".cargo", "Cargo.lock", "Cargo.toml", "config", "deploy/build.rs", "src"];

/// The commit, for release builds without a git repository. It is used as it is.
const GIVEN: &str = "BUILD_COMMIT";

fn main() {
    println!("cargo::rerun-if-changed=deploy/build.rs");
    println!("cargo::rerun-if-env-changed={GIVEN}");
    let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let folder = variable("CARGO_MANIFEST_DIR").unwrap_or_default();
    let folder = Path::new(&folder);
    let commit = match variable(GIVEN) {
        Some(given) => Some(given.trim().to_owned()),
        None if variable("PROFILE").is_some_and(|profile| profile == "release") => {
            watch(folder);
            commit(folder)
        }
        None => None,
    };
    if let (Some(commit), Some(version)) = (commit, variable("CARGO_PKG_VERSION")) {
        println!("cargo::rustc-env=WORKSPACE_GATEWAY_VERSION={version} ({commit})");
    }
}

/// Has cargo run this again after a commit, a checkout, and a change of the sources.
fn watch(folder: &Path) {
    let log = git(folder, &["rev-parse", "--git-path", "logs/HEAD"]).unwrap_or_default();
    // cargo would run this each time for a file that does not exist.
    for path in SOURCES.into_iter().chain([log.trim()]).filter(|path| !path.is_empty() && folder.join(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// The commit of a folder, such as `abcdef123456` or `abcdef123456-dirty`. `None` if the folder is not the top of a
/// repository: the repository around an unpacked package is another one.
pub fn commit(folder: &Path) -> Option<String> {
    let top = git(folder, &["rev-parse", "--show-prefix"])?;
    let commit = git(folder, &["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(folder, &[&["status", "--porcelain", "--"], &SOURCES[..]].concat())?;
    let dirty = if changes.is_empty() { "" } else { "-dirty" };
    top.trim().is_empty().then(|| format!("{}{dirty}", commit.trim()))
}

/// What git prints. `None` if there is no git, or it fails.
fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("--no-optional-locks").args(arguments).current_dir(folder).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
