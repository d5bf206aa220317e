//! What `--version` prints: the version, and the commit in release builds of a repository.

use std::path::Path;
use std::process::Command;

use crate::commands::{run, stdout};
use crate::support::process::folder;

#[allow(dead_code)]
#[path = "../deploy/build.rs"]
mod build_script;

fn git(folder: &Path, arguments: &[&str]) -> String {
    let user = ["-c", "user.name=test", "-c", "user.email=test@test.example", "-c", "commit.gpgsign=false"];
    let output = Command::new("git").args(user).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_version_has_the_commit_if_it_is_known() {
    let printed = run(&["--version"]);
    let rest = stdout(&printed).strip_prefix(concat!("workspace-gateway ", env!("CARGO_PKG_VERSION"))).unwrap();
    let commit = rest.trim_end().strip_prefix(" (").and_then(|rest| rest.strip_suffix(')'));
    assert!(rest == "\n" || commit.is_some_and(|commit| !commit.is_empty()), "{rest:?}");
}

#[test]
fn a_build_names_its_commit_and_whether_the_sources_differ_from_it() {
    if Command::new("git").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no git");
        return;
    }
    let top = folder("version");
    for name in ["src", "package/src"] {
        std::fs::create_dir_all(top.join(name)).unwrap();
    }
    let write = |name: &str, text: &str| std::fs::write(top.join(name), text).unwrap();
    // Before `git init` this folder belongs to the repository around it, if there is one.
    assert_eq!(build_script::commit(&top), None);
    git(&top, &["init", "--quiet"]);
    assert_eq!(build_script::commit(&top), None, "there is no commit yet");
    write("src/main.rs", "1");
    git(&top, &["add", "."]);
    git(&top, &["commit", "--quiet", "--message", "test"]);
    let commit = git(&top, &["rev-parse", "HEAD"])[..12].to_owned();
    let found = || build_script::commit(&top).unwrap();
    assert_eq!(found(), commit);
    write("notes.txt", "not a part of the program");
    assert_eq!(found(), commit);
    write("src/main.rs", "2");
    assert_eq!(found(), format!("{commit}-dirty"));
    write("src/main.rs", "1");
    assert_eq!(found(), commit);
    write("src/new.rs", "not in git");
    assert_eq!(found(), format!("{commit}-dirty"));
    assert_eq!(build_script::commit(&top.join("package")), None, "an unpacked package in another repository");
}
