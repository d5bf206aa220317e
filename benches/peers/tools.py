"""What has to be there before anything is measured: programs of other people, and ours, built from this checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from peers import GATEWAY, HERE, LOAD_CPU, PROGRAMS, ROOT, SERVER_CPU

INSTALL = {
    "nginx": "apt-get install nginx",
    "varnishd": "apt-get install varnish",
    "haproxy": "apt-get install haproxy",
    "wrk": "apt-get install wrk",
    "h2load": "apt-get install nghttp2-client",
    "nghttp": "apt-get install nghttp2-client",
    "openssl": "apt-get install openssl",
    "cmake": "apt-get install cmake",
    "cc": "apt-get install gcc",
    "oha": "cargo install oha --locked",
}
VERSIONS = {
    "nginx": ["nginx", "-v"],
    "varnishd": ["varnishd", "-V"],
    "haproxy": ["haproxy", "-v"],
    "wrk": ["wrk", "-v"],
    "h2load": ["h2load", "--version"],
    "openssl": ["openssl", "version"],
    "oha": ["oha", "--version"],
    "cargo": ["cargo", "--version"],
}


def check(chosen: dict[str, tuple], peers: list[str]) -> None:
    """Says how to get what is missing, or how to do without, and ends. `chosen` has the programs and the peers of each
    workload."""
    # Where Debian has what is for administrators.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = {program for program in INSTALL if not shutil.which(program)}
    without_peers = [peer for peer in peers if not missing & set(PROGRAMS.get(peer, ()))]
    lines, rest = [], []
    for name, (programs, used) in chosen.items():
        lacks = missing & {"cc", *programs}
        lines += [f"{program}, for {name}: {INSTALL[program]}" for program in sorted(lacks)]
        rest += [] if lacks else [name]
        for peer in set(used) & set(peers) - set(without_peers):
            lines += [f"{program}, for {peer}: {INSTALL[program]}" for program in PROGRAMS[peer] if program in missing]
    if lines:
        others = f'--only {",".join(rest)} --peers "{",".join(without_peers)}"'
        what = "\n".join(f"- {line}" for line in dict.fromkeys(lines))
        sys.exit(f"missing:\n{what}" + (f"\nwithout them: {others}" if rest else ""))
    if not SERVER_CPU | LOAD_CPU <= os.sched_getaffinity(0):
        sys.exit("cores 0 and 1 have to be there: one for the server, one for what loads it")


def needed(chosen: dict[str, tuple], peers: list[str]) -> tuple[set[str], set[str]]:
    """The programs, and the peers."""
    used = {peer for _, of_workload in chosen.values() for peer in of_workload if peer in peers}
    return {program for programs, _ in chosen.values() for program in programs} | {
        program for peer in used for program in PROGRAMS.get(peer, ())}, used


def build(peers: set[str]) -> None:
    """The gateway, and what is in servers/."""
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
    servers = ["cargo", "build", "--release", "--locked"]
    if "pingora" in peers:
        servers += ["--features", "pingora"]
    subprocess.run(servers, cwd=HERE / "servers", check=True)


def versions(programs: set[str], peers: set[str]) -> dict[str, str]:
    """Of everything that is compared or compares."""
    found = {}
    for name, command in VERSIONS.items():
        if name in programs | {"cargo"}:
            done = subprocess.run(command, capture_output=True, text=True)
            found[name] = (done.stdout + done.stderr).splitlines()[0].strip()
    kernel = os.uname()
    found["kernel"] = f"{kernel.sysname} {kernel.release}"
    lock = (HERE / "servers/Cargo.lock").read_text()
    for crate in ["hyper", "h2", *{"pingora"} & peers]:
        found[crate] = re.search(rf'name = "{crate}"\nversion = "([^"]+)"', lock)[1]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found["gateway"] = f"{GATEWAY.name} {commit.stdout.strip()}"
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    found["machine"] = f"{model}, {os.cpu_count()} cores"
    # Anything but nearly nothing is somebody else, and the figures are worth less for it.
    found["load average before"] = f"{os.getloadavg()[0]:.2f}"
    return found
