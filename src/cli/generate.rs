//! `completions` and `man`: files for packages and shells, made from the definition of the command line.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

use super::{failure, print};

const PROGRAM: &str = "workspace-gateway";

/// What the page of the program has in addition to its help.
const MORE: &str = r#".SH "EXIT STATUS"
.TP
0
Success, and an orderly stop.
.TP
1
Failure.
.TP
2
Wrong usage or configuration.
.SH SIGNALS
.TP
SIGTERM, SIGINT
\fBserve\fR stops when requests in progress have ended, and immediately after a second signal.
.TP
SIGHUP
\fBserve\fR reads its configuration again.
.SH ENVIRONMENT
Each flag that is a setting has a variable. A flag takes precedence over its variable, the variable over the file, and
the file over the default. See
.BR workspace\-gateway\-serve (1).
"#;

/// Prints the completions of a shell.
pub(super) fn completions(shell: Shell, mut command: Command) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, PROGRAM, &mut script);
    // The script for bash has two names for each command if the name of the program has a dash, and then completes no
    // flags: https://github.com/clap-rs/clap/issues/6421
    print(&String::from_utf8_lossy(&script).replace("workspace__subcmd__gateway", "workspace__gateway"))
}

/// Writes a page for the program and for each of its commands to a folder, which is created if it does not exist.
pub(super) fn man(folder: &Path, command: Command) -> ExitCode {
    match write_pages(folder, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure(1, &format!("cannot write the man pages to {}: {error}", folder.display())),
    }
}

fn write_pages(folder: &Path, command: Command) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)?;
    let main = folder.join(format!("{PROGRAM}.1"));
    let text = fs::read_to_string(&main)?;
    fs::write(&main, text + MORE)
}
