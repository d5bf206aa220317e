"""A closed-loop workload: each server in turn, in several rounds."""

from dataclasses import replace

import load
import meter
import signed
from field import Field
from signed import AccessKey, Signed
from workloads import LIMITS, SIGNED, SIGNED_AGAIN, TAGGED, TRACED, Row, Workload

STRAY_CALLS = 0.001
"""The largest share of hits for which the origin may still be called."""

REPEATED_DATES = 600
"""Heads that differ in their dates and come again."""


def measure(workload: Workload, peers: list[str], rounds: int, seconds: int, say) -> dict[str, list[dict]]:
    """The results of each row in each round."""
    rows = [row for row in workload.rows if row.peer in peers]
    results: dict[str, list[dict]] = {row.label: [] for row in rows}
    is_signed = workload.heads == SIGNED
    # Each round has its own access keys, so that its heads are new. The last key's heads come again.
    count = rounds * signed.keys_of_a_round(seconds) + 1 if is_signed else 0
    access_keys = tuple(map(AccessKey, range(count)))
    with Field(workload.body, workload.mebibytes, workload.protocol, access_keys, workload.heads) as field:
        ready: dict[str, load.Requests | Signed] = {}
        for number in range(rounds):
            # Dates of signatures are around now.
            if number == 0 or is_signed:
                ready = prepare(field, workload, rows, number, seconds)
            for row in rows:
                result = run(field, workload, row, ready[row.label], number, seconds)
                say(f"{workload.name}, round {number + 1}, {row.label}: {result['per_cpu_second']:,.0f} per CPU-second")
                results[row.label].append(result)
    return results


def prepare(field: Field, workload: Workload, rows: list[Row], number: int, seconds: int) -> dict:
    """Starts the servers, fills them, and checks what they answer. Returns the requests of each row. The first row is
    the gateway's, whose answer the limits repeat."""
    ready = {}
    batches = signed_batches(field, workload, number, seconds) if workload.heads == SIGNED else {}
    for row in rows:
        heads = row.heads or workload.heads
        if heads in batches:
            requests = batches[heads]
        else:
            requests = load.Requests(workload.path, workload.token, row.keys, row.callers, traced=heads == TRACED)
        server = field.peer(row.peer)
        if heads != TAGGED:
            field.prime(server, requests)
        else:
            tag = ready[rows[0].label].tag if row.peer in LIMITS else field.prime(server, requests)
            if tag is None:
                raise RuntimeError(f"{row.label} answers without an entity tag")
            requests = replace(requests, tag=tag)
            field.check_not_modified(server, requests)
        if not ready:
            field.record(requests, 304 if heads == TAGGED else 200)
        ready[row.label] = requests
    return ready


def signed_batches(field: Field, workload: Workload, number: int, seconds: int) -> dict[str, Signed]:
    """The signed requests of a round."""
    count = signed.keys_of_a_round(seconds)
    own = field.access_keys[number * count : (number + 1) * count]
    new = Signed(workload.path, field.directory / "signed", own)
    again = Signed(workload.path, field.directory / "signed-again", field.access_keys[-1:], REPEATED_DATES, questions=1)
    return {SIGNED: new.write(), SIGNED_AGAIN: again.write()}


def run(field: Field, workload: Workload, row: Row, requests, number: int, seconds: int) -> dict:
    """One run with one server."""
    server = field.peer(row.peer)
    if workload.asks_origin == "afresh":
        requests = replace(requests, fresh=f"{number}-{row.peer.replace(' ', '-')}")
    if workload.warm_up:
        load.wrk(server.port, requests, workload.connections, workload.warm_up, protocol=workload.protocol)
    calls, costs = field.calls(), meter.Costs(server.pid, field.pids())
    if workload.protocol.http2:
        shape = (workload.connections, workload.streams)
        result = load.h2load(server.port, requests, *shape, seconds, workload.protocol)
    else:
        result = load.wrk(server.port, requests, workload.connections, seconds, protocol=workload.protocol)
    result |= costs.of(result["requests"])
    result["calls"] = field.calls() - calls
    check_calls(workload, row, result["calls"], result["requests"])
    check_answers(workload, row, requests, result)
    return result


def check_calls(workload: Workload, row: Row, calls: int, requests: int) -> None:
    """Checks the number of calls of the origin. Requests in flight at the end may be missing."""
    expected = 0 if workload.asks_origin == "never" else requests
    if abs(calls - expected) > max(requests * STRAY_CALLS, 2 * workload.connections * workload.streams):
        raise RuntimeError(f"{workload.name}, {row.label}: {requests} requests, {calls} calls of the origin")


def check_answers(workload: Workload, row: Row, requests, result: dict) -> None:
    """Checks that answers have had a body, unless they are a 304, and that the load has not run out of new heads."""
    name = f"{workload.name}, {row.label}"
    if result["requests"] == 0:
        raise RuntimeError(f"{name}: no answers. Is the machine busy with something else?")
    mean = result["bytes"] / result["requests"]
    if (mean < workload.body) != ((row.heads or workload.heads) == TAGGED):
        raise RuntimeError(f"{name}: an answer has {mean:,.0f} bytes, the origin's body {workload.body:,}")
    if row == workload.rows[0] and workload.heads == SIGNED and result["requests"] > len(requests):
        raise RuntimeError(f"{name}: {result['requests']:,} requests, but only {len(requests):,} were signed")
