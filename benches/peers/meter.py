"""What a server costs: CPU time and memory of its process and all that come from it, as Linux counts them."""

import os
import resource
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


def others_seconds(ours: list[int]) -> float:
    """CPU time so far of all that is neither one of these processes, nor we, nor any that we have waited for: what
    somebody else had of the machine, and the machine of its host. By ticks, so good for some per cent."""
    user, nice, system, _, _, irq, softirq, steal = Path("/proc/stat").read_text().split(None, 9)[1:9]
    busy = sum(map(int, (user, nice, system, irq, softirq, steal))) / TICKS
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy - sum(map(cpu_seconds, ours)) - sum(usage.ru_utime + usage.ru_stime for usage in usages)


def memory(root: int) -> dict[str, int]:
    """Resident bytes: "rss" counts shared pages in each process, "pss" shares them out."""
    sums = {"rss": 0, "pss": 0}
    for pid in tree(root):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.lower() in sums:
                sums[name.lower()] += int(rest.split()[0]) * 1024
    return sums


class Costs:
    """What a server costs from here on."""

    def __init__(self, server: int, ours: list[int]):
        self.server, self.ours = server, [server, *(pid for pid in ours if pid != server)]
        self.others, self.begun, self.cpu = others_seconds(self.ours), time.monotonic(), cpu_seconds(server)

    def of(self, requests: float) -> dict[str, float]:
        """What so many requests came to."""
        cpu = cpu_seconds(self.server) - self.cpu
        others = (others_seconds(self.ours) - self.others) / (time.monotonic() - self.begun)
        return {"cpu": cpu, "per_cpu_second": requests / cpu, "others": others, **memory(self.server)}
