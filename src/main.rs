//! Runs the command line and sets the allocator. Exit codes: 0 success, 1 failure, 2 wrong usage or configuration.

/// jemalloc returns freed memory to the system. glibc's allocator keeps most of it after a load, with any settings.
/// `.cargo/config.toml` has the settings of jemalloc.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    workspace_gateway::run()
}
