"""Ratios, and tables in Markdown."""

from statistics import median

KEEPING_UP = 0.97
"""The share of an open loop's rate that a server must reach. Below it, its latency is not comparable."""

COMPANY = 0.1
"""The share of a core that other processes may use without a note in the table."""


def markdown(columns: list[str], lines: list[list[str]]) -> str:
    """A table with text in the first column and numbers in the others."""
    rule = ["---", *("---:" for _ in columns[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [columns, rule, *lines]) + "\n"


def ratios(over: list[dict], under: list[dict], what: str) -> list[float]:
    """One figure over the other, both of the same round."""
    return [a[what] / b[what] for a, b in zip(over, under)]


def spread(values: list[float]) -> str:
    """The median, and between what it lies."""
    return f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def middle(results: list[dict], what: str) -> float:
    return median(result[what] for result in results)


def duration(seconds: int) -> str:
    """In the unit in which it is read best."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def mebibytes(size: float) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def complaints(results: dict[str, list[dict]]) -> str:
    """What went wrong, if anything did."""
    found = [f"{label}, round {number + 1}: {result['errors']}"
             for label, rounds in results.items() for number, result in enumerate(rounds) if result["errors"]]
    return "".join(f"\n**ERRORS** {line}\n" for line in found)


def closed_loop(title: str, results: dict[str, list[dict]]) -> str:
    """A workload: each row's medians, and how the first one stands to it."""
    first, base = next(iter(results.items()))
    # h2load has no percentiles.
    times = ("p50", "p99") if "p50" in base[0] else ("mean", "worst")
    columns = ["", "requests per CPU-second", "requests/s", *times, "RSS", f"{first} ÷ it"]
    lines = []
    for label, rounds in results.items():
        lines.append([
            label,
            f"{middle(rounds, 'per_cpu_second'):,.0f}",
            f"{middle(rounds, 'rate'):,.0f}",
            *(duration(middle(rounds, time)) for time in times),
            mebibytes(middle(rounds, "rss")),
            "" if label == first else spread(ratios(base, rounds, "per_cpu_second")),
        ])
    return f"### {title}\n\n{markdown(columns, lines)}{complaints(results)}{company(results)}"


def company(results: dict[str, list[dict]]) -> str:
    """Whether somebody else had a part of the machine, which makes the figures worth less."""
    shares = [result["others"] for rounds in results.values() for result in rounds]
    if max(shares) < COMPANY:
        return ""
    return f"\n**NOT ALONE** others took {median(shares):.0%} of a core in the middle, {max(shares):.0%} at most.\n"


def open_loop(title: str, target_rate: int, results: dict[str, list[dict]]) -> str:
    """The latency at a fixed rate. A server that cannot keep up has none: its queue grows."""
    first, base = next(iter(results.items()))
    percentiles = ["p50", "p99", "p99.9"]
    lines = []
    for label, rounds in results.items():
        rate = middle(rounds, "rate")
        keeps_up = rate > KEEPING_UP * target_rate
        times = [duration(middle(rounds, it)) if keeps_up else "overloaded" for it in percentiles]
        ratio = "" if label == first or not keeps_up else spread(ratios(base, rounds, "p99"))
        lines.append([label, f"{rate:,.0f}", *times, ratio])
    columns = ["", "requests/s", *percentiles, f"p99 of {first} ÷ its"]
    return f"### {title}\n\n{markdown(columns, lines)}{complaints(results)}{company(results)}"
