"""Loads a server with wrk, h2load, oha or paced, and parses their output."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import http_client
import protocols
from peers import SERVERS
from protocols import HTTP1, Protocol

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
    tag: str = ""
    """If set, each request is for another response than the one with this entity tag."""

    def each(self):
        """Each pair of a target and a token, once: the target, and the headers."""
        for number in range(max(self.keys, self.callers)):
            target = f"{self.path}?product_id={number % self.keys}"
            fields = {"X-Auth-Token": http_client.token(self.token_bytes, number % self.callers)}
            yield target, fields | ({"If-None-Match": self.tag} if self.tag else {})

    def environment(self) -> dict[str, str]:
        """The environment for wrk.lua."""
        variables = {"PATH": self.path, "TOKEN_BYTES": self.token_bytes, "KEYS": self.keys, "CALLERS": self.callers}
        if self.fresh:
            variables["FRESH"] = self.fresh
        if self.traced:
            variables["TRACED"] = 1
        if self.tag:
            variables["TAG"] = self.tag
        return {f"PEERS_{name}": str(value) for name, value in variables.items()}


def wrk(port: int, requests, connections: int, seconds: int, threads: int = 1, protocol: Protocol = HTTP1):
    """A closed loop: each connection sends the next request after a response."""
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["--timeout", "30s", "-s", str(SCRIPT), f"{protocol.scheme}://127.0.0.1:{port}"]
    text = output(command, requests.environment())

    def found(pattern: str, otherwise: str | None = None) -> str:
        match = re.search(pattern, text)
        if match is None and otherwise is None:
            raise RuntimeError(f"unexpected output of wrk: {text}")
        return match[1] if match else otherwise

    def percentile(percent: int) -> float:
        return duration(found(rf"\s{percent}%\s+([\d.]+\w+)"))

    errors = found(r"Socket errors: (.*)", "")
    wrong = int(found(r"Non-2xx or 3xx responses: (\d+)", "0"))
    return {
        "requests": int(found(r"(\d+) requests in")),
        "bytes": int(found(r"bytes: (\d+)")),
        "rate": float(found(r"Requests/sec:\s+([\d.]+)")),
        "p50": percentile(50),
        "p99": percentile(99),
        "errors": ", ".join(filter(None, [errors, f"{wrong} not 200" if wrong else ""])),
    }


def h2load(port: int, requests, connections: int, streams: int, seconds: int, protocol: Protocol):
    """A closed loop with HTTP/2: each stream of each connection is followed by the next one."""
    target, fields = next(requests.each())
    command = ["h2load", "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}"]
    # What wrk and OpenSSL take by themselves.
    command += ["--tls13-ciphers", protocols.SUITE[0]] if protocol.tls else []
    text = output([*command, *headers(fields), f"{protocol.scheme}://127.0.0.1:{port}{target}"])

    def found(pattern: str) -> tuple[str, ...]:
        match = re.search(pattern, text)
        if match is None:
            raise RuntimeError(f"unexpected output of h2load: {text}")
        return match.groups()

    if found(r"Application protocol: (\S+)")[0] not in ("h2", "h2c"):
        raise RuntimeError(f"not HTTP/2: {text}")
    if protocol.tls:
        version, suite = found(r"TLS Protocol: (\S+)\nCipher: (\S+)")
        protocols.check_suite(suite, version)
    (done,) = found(r"(\d+) done")
    bad = found(r"(\d+) failed, (\d+) errored, (\d+) timeout") + found(r"2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx")
    worst, mean = found(r"time for request: +\S+ +(\S+) +(\S+)")
    wrong = sum(map(int, bad))
    return {
        "requests": int(done),
        "bytes": int(found(r"\((\d+)\) data")[0]),
        "rate": float(found(r"([\d.]+) req/s")[0]),
        "mean": duration(mean),
        "worst": duration(worst),
        "errors": f"{wrong} failed or not 200" if wrong else "",
    }


def duration(text: str) -> float:
    """Seconds, of a number with a unit."""
    return float(text.rstrip("usm")) * SECONDS[text.lstrip("0123456789.")]


def headers(fields: dict[str, str]) -> list[str]:
    """The options of a load tool."""
    return [word for name, value in fields.items() for word in ("-H", f"{name}: {value}")]


def oha(port: int, requests: Requests, connections: int, seconds: int, rate: int):
    """An open loop: requests are due at a fixed rate, and latency counts from the due time."""
    target, fields = next(requests.each())
    command = ["oha", "--no-tui", "--output-format", "json", "--worker-threads", "1"]
    command += ["--latency-correction", "-q", str(rate), "-w", "-z", f"{seconds}s", "-c", str(connections)]
    command += headers(fields)
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
    target, _ = next(requests.each())
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
