"""Latency in an open loop, at half of what HAProxy can do at most: what a client waits that doesn't slow down when the
server does.

Measured twice. oha is well known, but with one core it can ask for less than half of that; its rate is half of what
it gets from HAProxy itself. paced asks for half of what wrk gets."""

import load
import table
from field import Field
from workloads import BODY, CACHES, LIMITS, LISTS, TOKEN

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
        for tool, (closed_loop, open_loop) in {"paced": (load.wrk, load.paced), "oha": (load.oha, load.oha)}.items():
            most = closed_loop(field.peer("haproxy").port, QUESTIONS, CONNECTIONS, seconds)["rate"]
            rate = int(most / 2)
            say(f"latency, {tool}: HAProxy's most is {most:,.0f} requests/s, so {rate:,} are asked")
            results: dict[str, list[dict]] = {name: [] for name in names}
            for number in range(rounds):
                for name in names:
                    result = open_loop(field.peer(name).port, QUESTIONS, CONNECTIONS, seconds, rate)
                    say(f"latency, {tool}, round {number + 1}, {name}: p99 {table.duration(result['p99'])}")
                    results[name].append(result)
            measured[tool] = {"rate": rate, "results": results}
    return measured


def markdown(measured: dict[str, dict]) -> str:
    title = "Latency at {:,} requests/s, half of what HAProxy can do (open loop, {})"
    tables = []
    for tool, it in measured.items():
        tables.append(table.open_loop(title.format(it["rate"], tool), it["rate"], it["results"]))
    return "\n".join(tables)
