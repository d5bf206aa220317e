"""Latency in an open loop, at half of what HAProxy can do at most: what a client waits that doesn't slow down when the
server does."""

import load
import table
from field import Field
from workloads import BODY, CACHES, LIMITS, LISTS, TOKEN

CONNECTIONS = 64
QUESTIONS = load.Questions(LISTS, TOKEN)


def measure(peers: list[str], rounds: int, seconds: float, say) -> dict:
    """Each peer's percentiles in each round."""
    names = [name for name in ("gateway", *CACHES, *LIMITS) if name in peers]
    results: dict[str, list[dict]] = {name: [] for name in names}
    with Field(BODY) as field:
        field.record(QUESTIONS)
        for name in {*names, "haproxy"}:
            field.prime(field.peer(name), QUESTIONS)
        most = load.wrk(field.peer("haproxy").port, QUESTIONS, CONNECTIONS, seconds)["rate"]
        rate = int(most / 2)
        say(f"latency: HAProxy's most is {most:,.0f} requests/s, so {rate:,} are asked")
        for number in range(rounds):
            for name in names:
                result = load.oha(field.peer(name).port, QUESTIONS, CONNECTIONS, seconds, rate)
                say(f"latency, round {number + 1}, {name}: p99 {table.duration(result['p99'])}")
                results[name].append(result)
    return {"rate": rate, "results": results}


def markdown(measured: dict) -> str:
    title = f"Latency at {measured['rate']:,} requests/s, half of HAProxy's most (open loop, oha)"
    return table.open_loop(title, measured["results"])
