"""Latency in an open loop, at a share of HAProxy's maximum rate. Clients do not slow down with the server, as in a
closed loop."""

import load
import meter
import table
from field import Field
from workloads import BODY, CACHES, LIMITS, LISTS, TOKEN

TOOLS = {"paced": (load.paced, 0.5, "half"), "oha": (load.oha, 0.25, "a quarter")}
"""The load tools, and their share of that rate. With one core, oha itself is the bottleneck at half of the rate."""
PROGRAMS, PEERS = ("wrk", "oha", "haproxy"), ("gateway", *CACHES, *LIMITS)
CONNECTIONS = 64
REQUESTS = load.Requests(LISTS, TOKEN)


def measure(peers: list[str], rounds: int, seconds: int, say) -> dict[str, dict]:
    """For each tool: the rate, and the percentiles of each peer in each round."""
    names = [name for name in PEERS if name in peers]
    measured = {}
    with Field(BODY) as field:
        field.record(REQUESTS)
        for name in {*names, "haproxy"}:
            field.prime(field.peer(name), REQUESTS)
        most = load.wrk(field.peer("haproxy").port, REQUESTS, CONNECTIONS, seconds)["rate"]
        for tool, (open_loop, part, _) in TOOLS.items():
            rate = int(most * part)
            say(f"latency, {tool}: HAProxy's maximum is {most:,.0f} requests/s, the rate is {rate:,}")
            results: dict[str, list[dict]] = {name: [] for name in names}
            for number in range(rounds):
                for name in names:
                    server = field.peer(name)
                    costs = meter.Costs(server.pid, field.pids())
                    result = open_loop(server.port, REQUESTS, CONNECTIONS, seconds, rate)
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
