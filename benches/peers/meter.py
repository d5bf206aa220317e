"""What a server costs: CPU time and memory of its process and all that come from it, as Linux counts them."""

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on, which is the third."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(int(stat(int(entry.name))[1]), []).append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                pass  # It has ended meanwhile.
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """CPU time so far. The clock of a process counts nanoseconds, those of threads that have ended included; of
    children that have ended, and were waited for, there are only ticks."""
    total = 0.0
    for pid in tree(root):
        total += time.clock_gettime((~pid << 3) | 2)  # As clock_getcpuclockid(3) makes it.
        total += sum(int(ticks) for ticks in stat(pid)[13:15]) / TICKS
    return total


def memory(root: int) -> dict[str, int]:
    """Resident bytes: "rss" counts shared pages in each process, "pss" shares them out."""
    sums = {"rss": 0, "pss": 0}
    for pid in tree(root):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.lower() in sums:
                sums[name.lower()] += int(rest.split()[0]) * 1024
    return sums
