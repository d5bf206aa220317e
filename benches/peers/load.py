"""Loads a server with wrk, oha or paced, and parses their output."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import http_client
from peers import SERVERS

SCRIPT = Path(__file__).resolve().parent / "wrk.lua"
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Requests:
    """The requests: request i has key i and caller i, each modulo its number."""

    path: str
    token_bytes: int
    keys: int = 1
    callers: int = 1
    fresh: str = ""
    """If set, each request has a unique key with this prefix instead."""
    traced: bool = False
    """Whether each request has a unique header that is not relevant."""

    def pairs(self):
        """Each pair of a target and a token, once."""
        for number in range(max(self.keys, self.callers)):
            target = f"{self.path}?product_id={number % self.keys}"
            yield target, http_client.token(self.token_bytes, number % self.callers)

    def environment(self) -> dict[str, str]:
        """The environment for wrk.lua."""
        variables = {"PATH": self.path, "TOKEN_BYTES": self.token_bytes, "KEYS": self.keys, "CALLERS": self.callers}
        if self.fresh:
            variables["FRESH"] = self.fresh
        if self.traced:
            variables["TRACED"] = 1
        return {f"PEERS_{name}": str(value) for name, value in variables.items()}


def wrk(port: int, requests: Requests, connections: int, seconds: int, threads: int = 1):
    """A closed loop: each connection sends the next request after a response."""
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["--timeout", "30s", "-s", str(SCRIPT), f"http://127.0.0.1:{port}"]
    text = output(command, requests.environment())

    def found(pattern: str, otherwise: str | None = None) -> str:
        match = re.search(pattern, text)
        if match is None and otherwise is None:
            raise RuntimeError(f"unexpected output of wrk: {text}")
        return match[1] if match else otherwise

    def duration(percentile: str) -> float:
        value = found(rf"\s{percentile}%\s+([\d.]+\w+)")
        return float(value.rstrip("usm")) * SECONDS[value.lstrip("0123456789.")]

    errors = found(r"Socket errors: (.*)", "")
    wrong = int(found(r"Non-2xx or 3xx responses: (\d+)", "0"))
    return {
        "requests": int(found(r"(\d+) requests in")),
        "rate": float(found(r"Requests/sec:\s+([\d.]+)")),
        "p50": duration("50"),
        "p99": duration("99"),
        "errors": ", ".join(filter(None, [errors, f"{wrong} not 200" if wrong else ""])),
    }


def oha(port: int, requests: Requests, connections: int, seconds: int, rate: int):
    """An open loop: requests are due at a fixed rate, and latency counts from the due time."""
    target, token = next(requests.pairs())
    command = ["oha", "--no-tui", "--output-format", "json", "--worker-threads", "1"]
    command += ["--latency-correction", "-q", str(rate), "-w", "-z", f"{seconds}s", "-c", str(connections)]
    command += ["-H", f"X-Auth-Token: {token}"]
    report = json.loads(output([*command, f"http://127.0.0.1:{port}{target}"]))
    statuses, errors = report["statusCodeDistribution"], report["errorDistribution"]
    wrong = {status: count for status, count in statuses.items() if status != "200"}
    percentiles = report["latencyPercentiles"]
    return {
        "requests": sum(statuses.values()),
        "rate": report["summary"]["requestsPerSec"],
        "p50": percentiles["p50"],
        "p99": percentiles["p99"],
        "p99.9": percentiles["p99.9"],
        "errors": ", ".join(f"{count} × {what}" for what, count in {**wrong, **errors}.items()),
    }


def paced(port: int, requests: Requests, connections: int, seconds: int, rate: int):
    """An open loop with our own tool, which reaches a higher rate than oha on one core."""
    target, _ = next(requests.pairs())
    arguments = [f"127.0.0.1:{port}", target, requests.token_bytes, connections, rate, seconds]
    per_second, *nanoseconds = output([str(SERVERS / "paced"), *map(str, arguments)]).split()
    p50, p99, p999 = (int(time) / 1e9 for time in nanoseconds)
    return {"rate": float(per_second), "p50": p50, "p99": p99, "p99.9": p999, "errors": ""}


def output(command: list[str], environment: dict[str, str] | None = None) -> str:
    """The output of a program, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode != 0:
        raise RuntimeError(f"{command[:6]} has failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    return done.stdout
