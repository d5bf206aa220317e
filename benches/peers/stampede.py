"""A cold stampede: a thousand proved callers request the same uncached list at the same time."""

import http_client
import load
import table
from field import Field
from peers import SERVERS, Server, free_port
from workloads import BODY, LISTS, TOKEN

PROGRAMS, PEERS = (), ("gateway",)
CALLERS = 1_000
REPEATS = 5
"""Stampedes in a round: each takes less than a second."""
DELAY = 200
"""The origin's delay in milliseconds. All requests arrive within it."""


def measure(_peers: list[str], rounds: int, _seconds: int, say) -> dict[str, list[dict]]:
    """Seconds from the first byte of the first response to the last byte of the last one."""
    results: dict[str, list[dict]] = {"gateway": [], "bare writes": []}
    with Field(BODY) as field:
        field.record(load.Requests(LISTS, TOKEN))
        gateway = field.peer("gateway")
        # Proves all callers: a grant is valid for every key of the project.
        run(gateway.port, f"{LISTS}?product_id=0")
        writes = field.stack.enter_context(start_writes(field)).is_up()
        for number in range(rounds * REPEATS):
            before = field.calls()
            spread = run(gateway.port, f"{LISTS}?product_id=cold-{number}&delay={DELAY}")
            calls = field.calls() - before
            if calls != 1:
                raise RuntimeError(f"a stampede has made {calls} calls")
            results["gateway"].append({"spread": spread, "calls": calls})
            results["bare writes"].append({"spread": run(writes.port, LISTS)})
            last = {name: table.duration(rounds[-1]["spread"]) for name, rounds in results.items()}
            say(f"stampede {number + 1}: {last}")
    return results


def start_writes(field: Field) -> Server:
    port = free_port()
    command = [SERVERS / "writes", f"127.0.0.1:{port}", field.directory / "answer", CALLERS]
    return Server(command, port, field.directory / "writes.output")


def run(port: int, target: str) -> float:
    command = [SERVERS / "stampede", f"127.0.0.1:{port}", target, TOKEN, CALLERS]
    return int(load.output([str(word) for word in command])) / 1e6


def markdown(results: dict[str, list[dict]]) -> str:
    base = results["gateway"]
    lines = []
    for name, rounds in results.items():
        ratio = "" if name == "gateway" else table.spread(table.ratios(base, rounds, "spread"))
        lines.append([name, table.duration(table.middle(rounds, "spread")), ratio])
    columns = ["", "first byte of the first answer to last byte of the last", "gateway ÷ it"]
    title = f"### Cold stampede of {CALLERS:,} callers, one call of the origin\n\n"
    return title + table.markdown(columns, lines)
