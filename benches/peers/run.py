#!/usr/bin/env python3
"""Compares the gateway with other caches. Starts each in front of the same origin, loads them in turn, and prints the
requests per CPU-second. See ../RESULTS.md."""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import alone
import closed
import latency
import stampede
import table
import tools
from peers import LOAD_CPU, PEERS
from workloads import WORKLOADS


def main() -> None:
    options = arguments()
    # A signal that ends this script also ends the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    chosen = {workload.name: (workload.programs(), workload.peers()) for workload in WORKLOADS}
    chosen |= {name: (module.PROGRAMS, module.PEERS) for name, module in OTHERS.items()}
    chosen = {name: needs for name, needs in chosen.items() if name in options.only}
    tools.check(chosen, options.peers)
    programs, peers = tools.needed(chosen, options.peers)
    tools.build(peers)
    os.sched_setaffinity(0, LOAD_CPU)
    raw = {"versions": tools.versions(programs, peers)}
    print("\n".join(f"- {name}: {version}" for name, version in raw["versions"].items()), flush=True)
    for workload in WORKLOADS:
        if workload.name in options.only:
            raw[workload.name] = closed.measure(workload, options.peers, options.rounds, options.seconds, say)
            print(f"\n{table.closed_loop(workload.title, raw[workload.name])}", flush=True)
    for name, module in OTHERS.items():
        if name in options.only:
            raw[name] = module.measure(options.peers, options.rounds, options.seconds, say)
            print(f"\n{module.markdown(raw[name])}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(raw, indent=1))


OTHERS = {"latency": latency, "stampede": stampede, "alone": alone}


def arguments() -> argparse.Namespace:
    names = [*(workload.name for workload in WORKLOADS), *OTHERS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument("--seconds", type=int, default=4, help="how long each time (4)")
    parser.add_argument("--only", type=choice(names), default=names, help=f"workloads, of {', '.join(names)}")
    parser.add_argument("--peers", type=choice(list(PEERS)), default=list(PEERS), help=f"peers, of {', '.join(PEERS)}")
    parser.add_argument("--quick", action="store_true", help="one round of one second, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures of all rounds")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 1
    # All others are compared with it.
    options.peers = ["gateway", *(peer for peer in options.peers if peer != "gateway")]
    return options


def choice(names: list[str]):
    """Parses a comma-separated list of some of these."""

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(names)}")
        return chosen

    return read


def say(line: str) -> None:
    """Prints the progress."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
