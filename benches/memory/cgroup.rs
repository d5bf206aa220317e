//! A memory cgroup for the program: a limit, and the memory of its sockets. Version 1 counts sockets only if
//! `memory.kmem.tcp.limit_in_bytes` is set; version 2 always does. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The source of the sockets' memory, for the table.
pub(crate) const SOCKETS: &str = "from its memory cgroup; without one, of all processes of the machine";

pub(crate) struct Cgroup {
    folder: PathBuf,
    is_v1: bool,
}

impl Cgroup {
    /// `limit` is in bytes.
    ///
    /// # Errors
    /// The reason why a cgroup cannot be created.
    pub(crate) fn new(limit: Option<usize>) -> Result<Self, String> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("workspace-gateway-{}-{number}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let is_v1 = v1.join("memory.limit_in_bytes").exists();
        let parent = if is_v1 { v1 } else { Path::new("/sys/fs/cgroup") };
        let cgroup = Self { folder: parent.join(name), is_v1 };
        if !is_v1 {
            // The controller may not be enabled yet. If this fails, setting the limit fails, too.
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory");
        }
        let failed = |error| format!("no memory cgroup in {}: {error}", parent.display());
        fs::create_dir(&cgroup.folder).map_err(failed)?;
        // Version 1 counts sockets only if they have a limit of their own.
        let bytes = limit.unwrap_or(1 << 40).to_string();
        let files =
            if is_v1 { &["memory.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes"][..] } else { &["memory.max"][..] };
        for file in files {
            fs::write(cgroup.folder.join(file), &bytes).map_err(failed)?;
        }
        // Swapped pages do not count towards the limit, so there is no swap. Not every system has this file.
        let _ = if is_v1 {
            fs::write(cgroup.folder.join("memory.swappiness"), "0")
        } else {
            fs::write(cgroup.folder.join("memory.swap.max"), "0")
        };
        Ok(cgroup)
    }

    /// The file to which a process writes its id to join the cgroup.
    pub(crate) fn door(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// The memory of its sockets, in KiB.
    pub(crate) fn sockets(&self) -> usize {
        let bytes = if self.is_v1 {
            self.read("memory.kmem.tcp.usage_in_bytes").trim().parse().ok()
        } else {
            field(&self.read("memory.stat"), "sock")
        };
        bytes.unwrap_or(0_usize) / 1024
    }

    /// The peak of what the limit counts, in KiB.
    pub(crate) fn peak(&self) -> usize {
        let file = if self.is_v1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        self.read(file).trim().parse().unwrap_or(0_usize) / 1024
    }

    /// The number of OOM kills in it.
    pub(crate) fn kills(&self) -> usize {
        let file = if self.is_v1 { "memory.oom_control" } else { "memory.events" };
        field(&self.read(file), "oom_kill").unwrap_or(0)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).unwrap_or_default()
    }
}

impl Drop for Cgroup {
    /// The process has exited, but the kernel may still be freeing its memory.
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// The value of a field in a file with one field on each line.
pub(crate) fn field(text: &str, name: &str) -> Option<usize> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim_start_matches(':').trim().split(' ').next()?.parse().ok())
}

/// The memory of TCP buffers of the whole machine, in KiB.
pub(crate) fn sockets_of_all() -> usize {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let pages = text.lines().find_map(|line| line.strip_prefix("TCP:")?.rsplit(' ').next()?.parse().ok());
    pages.unwrap_or(0_usize) * 4
}
