//! Finds the smallest memory limit among the cgroups of the process, as far as the process can see them.

use std::fs;
use std::path::{Path, PathBuf};

/// A v1 group without a limit shows `i64::MAX` rounded down to the page size. This is the smallest such value.
const NO_LIMIT: u64 = i64::MAX as u64 & !0xffff;

/// The smallest memory limit, in bytes, of the process's cgroup and its ancestors, in v1 and v2. `None` if no limit is
/// visible. `root` is `/`, except in tests.
///
/// Source: `/proc/self/cgroup` and `/proc/self/mountinfo` (cgroups(7), proc_pid_mountinfo(5)).
pub(crate) fn memory_limit(root: &Path) -> Option<u64> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let limits = mounts.lines().filter_map(Mount::read).flat_map(|mount| {
        let group = groups.lines().find_map(|line| mount.group(line)).unwrap_or_default();
        // In a container, the path of the group is often that of the host, but only the container's own group is
        // mounted.
        let below = group.strip_prefix(mount.top).unwrap_or_default().trim_start_matches('/').to_owned();
        let top = root.join(mount.at.trim_start_matches('/'));
        let file = if mount.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        let folders: Vec<PathBuf> = Path::new(&below).ancestors().map(|folder| top.join(folder)).collect();
        folders.into_iter().filter_map(move |folder| limit(&folder.join(file)))
    });
    limits.min()
}

/// A mount point of the memory controller.
struct Mount<'m> {
    /// The group that is mounted there.
    top: &'m str,
    at: &'m str,
    is_v2: bool,
}

impl<'m> Mount<'m> {
    fn read(line: &'m str) -> Option<Self> {
        let (mount, source) = line.split_once(" - ")?;
        let (mut mount, mut source) = (mount.split(' ').skip(3), source.split(' '));
        let (top, at) = (mount.next()?, mount.next()?);
        let is_v2 = match (source.next()?, source.nth(1)?) {
            ("cgroup2", _) => true,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => false,
            _ => return None,
        };
        Some(Self { top, at, is_v2 })
    }

    /// The process's group at this mount point, if `line` of `/proc/self/cgroup` contains it.
    fn group<'g>(&self, line: &'g str) -> Option<&'g str> {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, group) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it =
            if self.is_v2 { controllers.is_empty() } else { controllers.split(',').any(|name| name == "memory") };
        is_it.then_some(group)
    }
}

fn limit(file: &Path) -> Option<u64> {
    let limit = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (limit < NO_LIMIT).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "36 32 0:31 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n\
                      37 32 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
    const V2: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    /// Creates a root file system with these files.
    fn root(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("workspace-gateway-cgroup-{}-{name}", std::process::id()));
        for (path, text) in files {
            let file = root.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        root
    }

    #[test]
    fn the_smallest_limit_of_the_group_and_its_ancestors_counts() {
        for (name, files, expected) in [
            ("none", &[][..], None),
            (
                "v2",
                &[
                    ("proc/self/cgroup", "0::/a/b\n"),
                    ("proc/self/mountinfo", V2),
                    ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                    ("sys/fs/cgroup/a/memory.max", "268435456\n"),
                ],
                Some(268_435_456),
            ),
            (
                "v1",
                &[
                    ("proc/self/cgroup", "4:cpu:/x\n3:memory:/a\n"),
                    ("proc/self/mountinfo", V1),
                    ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000000\n"),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ],
                Some(1_000_000),
            ),
            (
                "unlimited",
                &[
                    ("proc/self/cgroup", "3:memory:/\n"),
                    ("proc/self/mountinfo", V1),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ],
                None,
            ),
            (
                "container",
                &[
                    ("proc/self/cgroup", "3:memory:/kubepods/pod1/abc\n"),
                    (
                        "proc/self/mountinfo",
                        "36 32 0:31 /kubepods/pod1/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
                    ),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
                ],
                Some(536_870_912),
            ),
        ] {
            let root = root(name, files);
            assert_eq!(memory_limit(&root), expected, "{name}");
            let _ = fs::remove_dir_all(root);
        }
    }
}
