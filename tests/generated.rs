//! What the program writes for packages: completions and man pages.

use std::fs;
use std::io::Write as _;
use std::process::Command;

use crate::commands::{code, file, run, stderr, stdout};
use crate::support::process::folder;

#[test]
fn bash_completes_commands_and_flags() {
    let script = file("completions.bash", stdout(&run(&["completions", "bash"])));
    for (words, last, expected) in [
        ("workspace-gateway che", "che", "check"),
        ("workspace-gateway serve --metr", "--metr", "--metrics-listen"),
        ("workspace-gateway completions z", "z", "zsh"),
    ] {
        let complete = format!(
            "set -eu; source {script}; words=({words}); COMP_WORDS=(\"${{words[@]}}\"); COMP_CWORD=$((${{#words[@]}} - 1)); \
             function=$(complete -p workspace-gateway | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); \
             $function workspace-gateway {last} \"${{words[-2]}}\"; echo \"${{COMPREPLY[*]}}\""
        );
        let output = Command::new("bash").args(["-c", &complete]).output().unwrap();
        assert_eq!(stdout(&output).trim(), expected, "{words}: {}", stderr(&output));
    }
    let unknown = run(&["completions", "tcsh"]);
    assert!(code(&unknown) == 2 && stderr(&unknown).contains("bash, elvish, fish, powershell, zsh"));
}

#[test]
fn each_command_has_a_man_page_without_warnings() {
    let pages = folder("man").join("man1");
    assert_eq!(code(&run(&["man", pages.to_str().unwrap()])), 0, "it creates the folder");
    let page = |name: &str| fs::read_to_string(pages.join(name)).unwrap();
    let main = page("workspace-gateway.1");
    for command in ["serve", "check", "explain", "health", "demo", "init", "simulate", "completions", "man"] {
        assert!(main.contains(&format!(r"workspace\-gateway\-{command}(1)")), "{command}: {main}");
        assert!(page(&format!("workspace-gateway-{command}.1")).contains("SYNOPSIS"), "{command}");
    }
    assert!(main.contains("EXIT STATUS") && page("workspace-gateway-serve.1").contains("WORKSPACE_GATEWAY_REGION"));

    let unwritable = run(&["man", "/proc/none"]);
    assert!(code(&unwritable) == 1 && stderr(&unwritable).contains("cannot write the man pages to /proc/none: "));

    if Command::new("man").arg("--version").output().is_err() {
        // Not by eprintln!, which the test runner captures.
        let _ = writeln!(std::io::stderr(), "SKIPPED: the warnings of man pages need man on the PATH.");
        return;
    }
    for entry in fs::read_dir(&pages).unwrap() {
        let path = entry.unwrap().path();
        let formatted = Command::new("man").args(["--warnings", "-E", "UTF-8", "-l"]).arg(&path).output().unwrap();
        assert!(formatted.status.success(), "{formatted:?}");
        assert_eq!(stderr(&formatted), "", "{}", path.display());
    }
}
