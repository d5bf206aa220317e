"""Latency in an open loop, at a part of what HAProxy can do at most: what a client waits that doesn't slow down when
the server does."""

import load
import meter
import table
from field import Field
from workloads import BODY, CACHES, LIMITS, LISTS, TOKEN

TOOLS = {"paced": (load.paced, 0.5, "half"), "oha": (load.oha, 0.25, "a quarter")}
"""What asks, and for which part of that. With one core oha can't ask for half without being what is waited for."""
CONNECTIONS = 64
QUESTIONS = load.Questions(LISTS, TOKEN)


def measure(peers: list[str], rounds: int, seconds: int, say) -> dict[str, dict]:
    """For each tool, the rate, and each peer's percentiles in each round."""
    names = [name for name in ("gateway", *CACHES, *LIMITS) if name in peers]
    measured = {}
    with Field(BODY) as field:
        field.record(QUESTIONS)
        for name in {*names, "haproxy"}:
            field.prime(field.peer(name), QUESTIONS)
        most = load.wrk(field.peer("haproxy").port, QUESTIONS, CONNECTIONS, seconds)["rate"]
        for tool, (open_loop, part, _) in TOOLS.items():
            rate = int(most * part)
            say(f"latency, {tool}: HAProxy's most is {most:,.0f} requests/s, so {rate:,} are asked")
            results: dict[str, list[dict]] = {name: [] for name in names}
            for number in range(rounds):
                for name in names:
                    server = field.peer(name)
                    costs = meter.Costs(server.pid, field.pids())
                    result = open_loop(server.port, QUESTIONS, CONNECTIONS, seconds, rate)
                    result |= costs.of(rate * seconds)
                    say(f"latency, {tool}, round {number + 1}, {name}: p99 {table.duration(result['p99'])}")
                    results[name].append(result)
            measured[tool] = {"rate": rate, "results": results}
    return measured


def markdown(measured: dict[str, dict]) -> str:
    tables = []
    for tool, it in measured.items():
        title = f"Latency at {it['rate']:,} requests/s, {TOOLS[tool][2]} of what HAProxy can do (open loop, {tool})"
        tables.append(table.open_loop(title, it["rate"], it["results"]))
    return "\n".join(tables)
