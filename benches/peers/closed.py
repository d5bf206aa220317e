"""A closed-loop workload: each server in turn, in several rounds."""

import load
import meter
from field import Field
from workloads import Row, Workload

STRAY_CALLS = 0.001
"""The largest share of hits for which the origin may still be called."""


def measure(workload: Workload, peers: list[str], rounds: int, seconds: int, say) -> dict[str, list[dict]]:
    """The results of each row in each round."""
    rows = [row for row in workload.rows if row.peer in peers]
    results: dict[str, list[dict]] = {row.label: [] for row in rows}
    with Field(workload.body, workload.mebibytes) as field:
        field.record(load.Requests(workload.path, workload.token))
        for row in rows:
            field.prime(field.peer(row.peer), requests(workload, row))
        for number in range(rounds):
            for row in rows:
                result = run(field, workload, row, number, seconds)
                say(f"{workload.name}, round {number + 1}, {row.label}: {result['per_cpu_second']:,.0f} per CPU-second")
                results[row.label].append(result)
    return results


def requests(workload: Workload, row: Row, fresh: str = "") -> load.Requests:
    return load.Requests(workload.path, workload.token, row.keys, row.callers, fresh, workload.traced)


def run(field: Field, workload: Workload, row: Row, number: int, seconds: int) -> dict:
    """One run with one server."""
    server = field.peer(row.peer)
    fresh = f"{number}-{row.peer[:2]}" if workload.asks_origin == "afresh" else ""
    calls, costs = field.calls(), meter.Costs(server.pid, field.pids())
    result = load.wrk(server.port, requests(workload, row, fresh), workload.connections, seconds)
    result |= costs.of(result["requests"])
    result["calls"] = field.calls() - calls
    check_calls(workload, row, result["calls"], result["requests"])
    return result


def check_calls(workload: Workload, row: Row, calls: int, requests: int) -> None:
    """Checks the number of calls of the origin. Requests in flight at the end may be missing."""
    expected = 0 if workload.asks_origin == "never" else requests
    if abs(calls - expected) > max(requests * STRAY_CALLS, 2 * workload.connections):
        raise RuntimeError(f"{workload.name}, {row.label}: {requests} requests, {calls} calls of the origin")
