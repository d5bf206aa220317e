"""The cost of a server: CPU time and memory of its process and all descendants, as reported by Linux."""

import os
import resource
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third one, the state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(int(stat(int(entry.name))[1]), []).append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                pass  # The process has ended.
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """CPU time so far. The clock of a process counts nanoseconds, including ended threads. Children that have ended
    and were waited for are counted in ticks only."""
    total = 0.0
    for pid in tree(root):
        total += time.clock_gettime((~pid << 3) | 2)  # Like clock_getcpuclockid(3).
        total += sum(int(ticks) for ticks in stat(pid)[13:15]) / TICKS
    return total


def others_seconds(ours: list[int]) -> float:
    """CPU time so far of all other processes, except this one and its ended children, and of the host (steal). It is
    counted in ticks, so it is accurate to some per cent."""
    user, nice, system, _, _, irq, softirq, steal = Path("/proc/stat").read_text().split(None, 9)[1:9]
    busy = sum(map(int, (user, nice, system, irq, softirq, steal))) / TICKS
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy - sum(map(cpu_seconds, ours)) - sum(usage.ru_utime + usage.ru_stime for usage in usages)


def memory(root: int) -> dict[str, int]:
    """Resident bytes. "rss" counts shared pages in each process, "pss" divides them between the processes."""
    sums = {"rss": 0, "pss": 0}
    for pid in tree(root):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.lower() in sums:
                sums[name.lower()] += int(rest.split()[0]) * 1024
    return sums


class Costs:
    """Measures the cost of a server from its creation on."""

    def __init__(self, server: int, ours: list[int]):
        self.server, self.ours = server, [server, *(pid for pid in ours if pid != server)]
        self.others, self.begun, self.cpu = others_seconds(self.ours), time.monotonic(), cpu_seconds(server)

    def of(self, requests: float) -> dict[str, float]:
        """The cost of this number of requests."""
        cpu = cpu_seconds(self.server) - self.cpu
        others = (others_seconds(self.ours) - self.others) / (time.monotonic() - self.begun)
        return {"cpu": cpu, "per_cpu_second": requests / cpu, "others": others, **memory(self.server)}
