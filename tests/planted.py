#!/usr/bin/env python3
"""Checks that the simulation of the whole program (benches/simulation) finds planted bugs.

All bugs are built together, as in tests/mutants.py, and an environment variable selects one. For each bug, seeds are
simulated one after the other until one of them has a violation that it does not have without the bug, or until ten minutes of
CPU are used. The script fails if less than 90 % are found, or if the first seeds have a violation without a bug.

    tests/planted.py                  all bugs
    tests/planted.py NAME…            some bugs
    tests/planted.py --check          whether their texts are up to date
    MINUTES=60 tests/planted.py       simulated minutes of each seed (default 20)
    SECONDS=60 tests/planted.py       seconds of CPU for each bug (default 600)
"""

import concurrent.futures
import functools
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time

import mutants
from mutants import Mutation

MINUTES = int(os.environ.get("MINUTES", "20"))
SECONDS = float(os.environ.get("SECONDS", "600"))
# These have no violation without a bug. From 1 on, the simulation would run the seeds that it keeps, too.
FIRST_SEEDS = range(2, 12)

# Rules of tests/mutants.py that the whole program can show.
RULES = """
    denial-keeps-grant grant-for-all-scopes grant-for-all-callers no-proof-needed lapsed-grant-counts
    stale-if-error-too-long stale-while-revalidate-too-long sharing-caller-ignored deadline-too-late
    no-cache-hit no-cache-gets-stale max-age-ignored only-if-cached-calls
    fast-path-without-grant fast-path-gives-stale remembered-entry-given-stale fast-path-uses-timer-clock step-back-counts
    told-denial-keeps-grant denial-not-told told-purge-ignored gap-keeps-grants gap-keeps-entries in-sync-for-ever
    borrowed-from-now time-in-tier-no-age age-in-tier-not-counted record-for-any-query record-for-any-project proof-of-any-scope
    restored-grant-counts time-between-processes-not-counted
""".split()

# Real faults: the subject of the commit that mended them, the rule, and the mutation that brings them back.
HISTORY = [
    (
        "Nobody suffers from another's quota, trail, headers or bypass",
        Mutation(
            "cookie-to-waiters",
            "a waiter gets only headers that describe the response",
            "src/reply/compose.rs",
            "    if collapsed {\n",
            "    if false && collapsed {\n",
        ),
    ),
    ("Nobody suffers from another's quota, trail, headers or bypass", "leader-429-to-all-waiters"),
    ("Nobody suffers from another's quota, trail, headers or bypass", "relayed-denial-ignored"),
    ("Harden the path: lengths, races, limits, signatures, loops", "purge-ignored-at-store"),
    ("Isolate callers, bound memory, and give the path one decision", "boot-clock-ignored"),
    ("Isolate callers, bound memory, and give the path one decision", "wall-clock-ignored"),
    ("Order the records of a second tier by tickets", "purge-not-told"),
    (
        "Tell an emptied engine again, and try all rights of its user",
        Mutation(
            "emptied-engine-unnoticed",
            "a new incarnation of the engine ends the link, and each gateway tells it again what it knows",
            "src/fleet/log.rs",
            "if !self.note_incarnation(polled.incarnation) {",
            "if false && !self.note_incarnation(polled.incarnation) {",
        ),
    ),
    (
        "Tell a purge later if the engine had no memory for it",
        Mutation(
            "purge-counts-as-told-without-memory",
            "a purge is told again if the engine had no memory for it",
            "src/fleet/teller.rs",
            "Err(deleted.and_then(|reply| read_deleted(&reply)).err().unwrap_or(fault))",
            "let incarnation = self.next().incarnation;\n"
            "deleted.and_then(|reply| read_deleted(&reply)).map(|_| (TellResult::Told, Order { incarnation, number: 0 }))",
        ),
    ),
    (
        "Keep what is void only in the engine from hiding purges and denials",
        Mutation(
            "engine-void-hides-purge",
            "a notice that concerns only the engine does not replace a purge of everything",
            "src/gateway/tier.rs",
            'Extent::Engine => "all in the engine",',
            'Extent::Engine => "all",',
        ),
    ),
    (
        "Repair what a review and an attack found in export and tail",
        Mutation(
            "denied-caller-in-snapshot",
            "a denial removes the snapshot that still has the grant",
            "src/gateway/snapshot.rs",
            "if self.up_to_date.load(Ordering::Acquire) < revocations {",
            "if false && self.up_to_date.load(Ordering::Acquire) < revocations {",
        ),
    ),
    (
        "Tell notices again if the engine lost them before the log was read",
        Mutation(
            "told-notice-lost-with-the-engine",
            "a notice is told again if the engine was emptied before the log was read",
            "src/fleet/teller.rs",
            "        if went_back {\n",
            "        if went_back && false {\n",
        ),
    ),
    (
        "Simulate the whole program on one seed",
        Mutation(
            "date-of-another-clock",
            "Date is that of the gateway's clock",
            "src/server/serve.rs",
            "&& let Entry::Vacant(date) = response.headers_mut().entry(DATE)",
            "&& !(IS_SELECTED)\n&& let Entry::Vacant(date) = response.headers_mut().entry(DATE)",
        ),
    ),
]

# Bugs of connections, tasks and what is given back.
OTHERS = [
    Mutation(
        "lost-wakeup",
        "waiters are woken when their flight ends",
        "src/cache/flights/leader.rs",
        "            !is_over\n        });",
        "            false\n        });",
    ),
    Mutation(
        "permit-not-returned",
        "a relayed request returns its permit",
        "src/gateway/forward.rs",
        "Ok(response) => response.map(|body| Content::Stream(charged(permit.hold(body), buffers))),",
        "Ok(response) => {\nstd::mem::forget(permit);\nresponse.map(|body| Content::Stream(charged(body, buffers)))\n}",
    ),
    Mutation(
        "waiting-place-not-returned",
        "a waiter returns its place",
        "src/cache/flights/shares.rs",
        "self.shares.lock().give_back(self.caller);",
        "let _ = self.caller;",
    ),
    Mutation(
        "connection-not-closed",
        "the task of a connection ends with it",
        "src/server/accept.rs",
        "            connection.await;\n",
        "            connection.await;\n            std::future::pending::<()>().await;\n",
    ),
    Mutation(
        "idle-upstream-connection-kept",
        "idle connections to upstream are closed",
        "src/upstream/connections.rs",
        "builder.pool_idle_timeout(idle);",
        "builder.pool_idle_timeout(None::<Duration>);",
    ),
    Mutation(
        "accepting-stops-without-descriptors",
        "accepting goes on as soon as there are descriptors",
        "src/server/accept.rs",
        "return sleep(ACCEPT_PAUSE).await;\n        }\n        for registry",
        "return sleep(ACCEPT_PAUSE).await;\n        }\n        sleep(600 * ACCEPT_PAUSE).await;\n        for registry",
    ),
    Mutation(
        "answer-of-another-head",
        "the fast path compares whole heads",
        "src/request/fingerprint.rs",
        "self.0.append(part);",
        "self.0.append(&part[..part.len().min(24)]);",
    ),
    Mutation(
        "relay-waits-too-long",
        "a relayed request fails when nothing has moved for upstream.idle_timeout",
        "src/upstream/client.rs",
        "idle::with_idle_limit(self.send(service, request), &progress, self.limits.idle).await;",
        "idle::with_idle_limit(self.send(service, request), &progress, 4 * self.limits.idle).await;",
    ),
    Mutation(
        "log-waits-for-its-reader",
        "logging never waits for the reader of the log",
        "src/telemetry/logs/queue.rs",
        "        if state.bytes + cost > CAPACITY {\n",
        "        self.emptied.wait_while_for(&mut state, |state| state.bytes + cost > CAPACITY, Duration::from_secs(1000));\n"
        "        if state.bytes + cost > CAPACITY {\n",
    ),
    Mutation(
        "own-failure-told",
        "a failure inside a gateway holds back no other gateway",
        "src/gateway/settle.rs",
        "if !is_private && tells {",
        "if !is_private {",
    ),
    Mutation(
        "incomplete-body-taken",
        "a response that breaks off is a failure",
        "src/upstream/client.rs",
        "let frame = frame.map_err(|error| UpstreamError::of_body(&error, status))?;",
        "let Ok(frame) = frame else { break };",
    ),
]


def planted() -> list[Mutation]:
    rules = {name: Mutation(name, *rest) for name, *rest in mutants.MUTATIONS}
    of_history = [rules[it] if isinstance(it, str) else it for _, it in HISTORY]
    bugs = [rules[name] for name in RULES] + of_history + OTHERS
    subjects = subprocess.run(["git", "log", "--format=%s"], cwd=mutants.ROOT, capture_output=True, text=True).stdout
    unknown = {subject for subject, _ in HISTORY} - set(subjects.splitlines())
    if unknown or len({bug.name for bug in bugs}) != len(bugs):
        sys.exit(f"no such commits, or a name is there twice: {unknown}")
    return bugs


def build() -> pathlib.Path:
    environment = {"RUSTFLAGS": "--cfg tokio_unstable", "CARGO_PROFILE_RELEASE_LTO": "off"}
    environment |= {"CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16", "CARGO_PROFILE_RELEASE_OPT_LEVEL": "2"}
    return mutants.build(
        ["bench", "--bench", "simulation", "--config", str(mutants.ROOT / ".cargo/config.toml")],
        {**environment, "CARGO_INCREMENTAL": "1"},
    )


class Simulation:
    """The program, and what its seeds show without a bug."""

    def __init__(self, program: pathlib.Path):
        self.program = program
        self.lock = threading.Lock()

    def run(self, seed: int, bug: int = 0) -> tuple[str | None, float]:
        """The first violation, and the seconds of CPU."""
        command = [self.program, "--bench", "--seed", str(seed), "--runs", "1", "--minutes", str(MINUTES)]
        environment = {**os.environ, mutants.SELECTED: str(bug)}
        limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS) + 5))
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, preexec_fn=limit)
            # A run that waits for something that never happens uses no CPU.
            timer = threading.Timer(max(600, 3 * SECONDS), process.kill)
            timer.start()
            _, status, used = os.wait4(process.pid, 0)
            timer.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            text = output.read()
        wrong = re.search(r"^WRONG: (.*)|^(thread .* panicked.*(?:\n.*)?)", text, re.MULTILINE)
        if process.returncode < 0:
            wrong = re.match("(.*)", f"the run does not end (signal {-process.returncode})")
        elif process.returncode > 0 and not wrong:
            wrong = re.match("(.*)", text.strip().splitlines()[-1] if text.strip() else "it fails")
        first = next(filter(None, wrong.groups()), "") if wrong else None
        return first and first.replace("\n", " "), used.ru_utime + used.ru_stime

    @functools.cache
    def without_bug(self, seed: int) -> str | None:
        return self.run(seed)[0]

    def find(self, bug: int) -> tuple[str | None, float, float]:
        """The violation that shows a bug, the simulated hours and the seconds of CPU until then."""
        hours, used, seed = 0.0, 0.0, FIRST_SEEDS[0] - 1
        while used < SECONDS:
            seed += 1
            wrong, seconds = self.run(seed, bug)
            hours, used = hours + MINUTES / 60, used + seconds
            if wrong:
                with self.lock:
                    is_known = self.without_bug(seed) is not None
                if not is_known:
                    return wrong, hours, used
        return None, hours, used


def main() -> int:
    names = [name for name in sys.argv[1:] if not name.startswith("--")]
    chosen = dict(enumerate((bug for bug in planted() if not names or bug.name in names), 1))
    mutants.write(chosen)
    if "--check" in sys.argv:
        return 0
    started = time.monotonic()
    simulation = Simulation(build())
    print(f"built in {time.monotonic() - started:.0f} s", flush=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as runs:
        known = list(zip(FIRST_SEEDS, runs.map(simulation.run, FIRST_SEEDS)))
        for seed, (wrong, used) in known:
            print(f"no bug, seed {seed}: {wrong or 'no violation'} ({used:.1f} s)", flush=True)

        def find(number: int) -> bool:
            bug = chosen[number]
            wrong, hours, used = simulation.find(number)
            print(
                f"{'found' if wrong else 'NOT FOUND':<9} {hours:6.1f} h {used:6.1f} s  {bug.name:<36} {bug.rule}\n"
                f"{'':28} {wrong or '-'}",
                flush=True,
            )
            return wrong is not None

        found = sum(runs.map(find, chosen))
    print(f"{found} of {len(chosen)} found")
    return 0 if found >= 0.9 * len(chosen) and not any(wrong for _, (wrong, _) in known) else 1


if __name__ == "__main__":
    sys.exit(main())
