//! Runs the command line. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

fn main() -> std::process::ExitCode {
    workspace_gateway::cli::run()
}
