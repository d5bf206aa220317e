"""The gateway alone: its memory, its start-up time, and its speed with a second core."""

import time
from statistics import median

import http_client
import load
import meter
import table
from field import Field
from peers import LOAD_CPU, SERVER_CPU, Server, pinned, start
from workloads import BODY, LISTS, LONG_BODY, TOKEN

PROGRAMS, PEERS = ("wrk",), ("gateway",)
FULL = 50 << 20
STARTS = 20
REQUESTS = load.Requests(LISTS, TOKEN)
BOTH_CPUS = SERVER_CPU | LOAD_CPU


def measure(_peers: list[str], rounds: int, seconds: int, say) -> dict:
    say("alone: memory")
    idle, full, entries = memory()
    say("alone: starts")
    starts = [start_to_answer() for _ in range(STARTS)]
    workers = {"one worker": [], "two workers": []}
    for number in range(rounds):
        for threads, results in enumerate(workers.values(), start=1):
            results.append(with_workers(threads, seconds))
            say(f"alone, round {number + 1}, workers {threads}: {results[-1]['per_cpu_second']:,.0f} per CPU-second")
    return {"idle": idle, "full": full, "entries": entries, "starts": starts, "workers": workers}


def memory() -> tuple[dict, dict, int]:
    """Memory after one request and with the configured number of entries, and the bytes of these entries."""
    with Field(LONG_BODY) as field:
        gateway = field.peer("gateway")
        with http_client.Client(gateway.port) as client:
            client.get(*request(0))
            idle = meter.memory(gateway.pid)
            for number in range(1, 2 * FULL // LONG_BODY):
                client.get(*request(number))
                if number % 20 == 0 and entries_bytes(gateway) >= FULL:
                    return idle, meter.memory(gateway.pid), entries_bytes(gateway)
    raise RuntimeError("the gateway doesn't hold what it should")


def request(key: int) -> tuple[str, dict[str, str]]:
    return f"{LISTS}?product_id={key}", {"X-Auth-Token": http_client.token(TOKEN, 0)}


def entries_bytes(gateway: Server) -> int:
    """The entries and their bytes, from the gateway's metrics."""
    _, body = http_client.get(gateway.port + 1, "/metrics")
    lines = (line.split() for line in body.decode().splitlines())
    return next(int(float(line[1])) for line in lines if line[0] == "workspace_gateway_entries_bytes")


def start_to_answer() -> float:
    """Seconds from the start of the program to the last byte of its first response."""
    with Field(BODY) as field:
        begun = time.perf_counter()
        with start("gateway", field.setup("gateway")) as gateway:
            while True:
                try:
                    http_client.get(gateway.port, *request(0))
                    return time.perf_counter() - begun
                except ConnectionRefusedError:
                    if time.perf_counter() - begun > 20:
                        raise


def with_workers(threads: int, seconds: int) -> dict:
    """Hits with this number of threads. The gateway and the load share both cores."""
    with Field(BODY) as field:
        workers = {"TOKIO_WORKER_THREADS": str(threads)}
        gateway = field.peer("gateway", cpus=BOTH_CPUS, environment=workers)
        field.prime(gateway, REQUESTS)
        costs = meter.Costs(gateway.pid, field.pids())
        with pinned(BOTH_CPUS):
            result = load.wrk(gateway.port, REQUESTS, 64, seconds, threads=2)
        return result | costs.of(result["requests"])


def markdown(measured: dict) -> str:
    full = f"with {table.mebibytes(measured['entries'])} of entries"
    memory = [[what, table.mebibytes(it["rss"]), table.mebibytes(it["pss"])]
              for what, it in (("after one request", measured["idle"]), (full, measured["full"]))]
    starts = measured["starts"]
    return "\n".join([
        "### The gateway alone\n",
        table.markdown(["memory", "RSS", "PSS"], memory),
        f"Start to first answer: {table.duration(median(starts))} (median of {len(starts)}), "
        f"{table.duration(max(starts))} at worst.\n",
        table.closed_loop("Workers: hits, token of 4,800 bytes, body of 600 bytes, load and gateway on both cores",
                          dict(reversed(measured["workers"].items()))),
    ])
