"""Loading a server, and reading what wrk, oha and paced say of it."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import ask
from peers import SERVERS

SCRIPT = Path(__file__).resolve().parent / "wrk.lua"
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Questions:
    """What is asked: request i has key i and caller i, each modulo how many there are."""

    path: str
    token_bytes: int
    keys: int = 1
    callers: int = 1
    fresh: str = ""
    """If said, each request has a key of its own that begins with this, instead."""
    traced: bool = False
    """Whether each request has a header of its own that nobody cares for."""

    def pairs(self):
        """Each target with each token that it comes with, once."""
        for number in range(max(self.keys, self.callers)):
            yield f"{self.path}?product_id={number % self.keys}", ask.token(self.token_bytes, number % self.callers)

    def environment(self) -> dict[str, str]:
        """What wrk.lua wants to know."""
        told = {"PATH": self.path, "TOKEN_BYTES": self.token_bytes, "KEYS": self.keys, "CALLERS": self.callers}
        if self.fresh:
            told["FRESH"] = self.fresh
        if self.traced:
            told["TRACED"] = 1
        return {f"PEERS_{name}": str(value) for name, value in told.items()}


def wrk(port: int, questions: Questions, connections: int, seconds: int, threads: int = 1):
    """A closed loop: each connection asks again when it is answered."""
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["--timeout", "30s", "-s", str(SCRIPT), f"http://127.0.0.1:{port}"]
    text = output(command, questions.environment())

    def found(pattern: str, otherwise: str | None = None) -> str:
        match = re.search(pattern, text)
        if match is None and otherwise is None:
            raise RuntimeError(f"wrk said something else than it used to: {text}")
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


def oha(port: int, questions: Questions, connections: int, seconds: int, rate: int):
    """An open loop: so many requests are due each second, and waiting counts from when they are."""
    target, token = next(questions.pairs())
    command = ["oha", "--no-tui", "--output-format", "json", "--worker-threads", "1"]
    command += ["--latency-correction", "-q", str(rate), "-w", "-z", f"{seconds}s", "-c", str(connections)]
    command += ["-H", f"X-Auth-Token: {token}"]
    told = json.loads(output([*command, f"http://127.0.0.1:{port}{target}"]))
    statuses, errors = told["statusCodeDistribution"], told["errorDistribution"]
    wrong = {status: count for status, count in statuses.items() if status != "200"}
    percentiles = told["latencyPercentiles"]
    return {
        "requests": sum(statuses.values()),
        "rate": told["summary"]["requestsPerSec"],
        "p50": percentiles["p50"],
        "p99": percentiles["p99"],
        "p99.9": percentiles["p99.9"],
        "errors": ", ".join(f"{count} × {what}" for what, count in {**wrong, **errors}.items()),
    }


def paced(port: int, questions: Questions, connections: int, seconds: int, rate: int):
    """An open loop like oha's, of ours, which can ask for more with one core."""
    target, _ = next(questions.pairs())
    told = [f"127.0.0.1:{port}", target, questions.token_bytes, connections, rate, seconds]
    per_second, *nanoseconds = output([str(SERVERS / "paced"), *map(str, told)]).split()
    p50, p99, p999 = (int(time) / 1e9 for time in nanoseconds)
    return {"rate": float(per_second), "p50": p50, "p99": p99, "p99.9": p999, "errors": ""}


def output(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What a program says, which has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode != 0:
        raise RuntimeError(f"{command[:6]} has failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    return done.stdout
