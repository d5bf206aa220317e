"""What has to be there before anything is measured: programs of other people, and ours, built from this checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from peers import GATEWAY, HERE, LOAD_CPU, ROOT, SERVER_CPU

PACKAGES = {
    "nginx": "nginx",
    "varnishd": "varnish",
    "haproxy": "haproxy",
    "wrk": "wrk",
    "cmake": "cmake",
    "cc": "gcc",
}
VERSIONS = {
    "nginx": ["nginx", "-v"],
    "varnish": ["varnishd", "-V"],
    "haproxy": ["haproxy", "-v"],
    "wrk": ["wrk", "-v"],
    "oha": ["oha", "--version"],
    "cargo": ["cargo", "--version"],
    "kernel": ["uname", "-sr"],
}


def check() -> None:
    """Says how to get what is missing, and ends."""
    # Where Debian has what is for administrators.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    packages = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    missing = []
    if packages:
        missing.append(f"apt-get install {' '.join(packages)}")
    if not shutil.which("oha"):
        missing.append("cargo install oha --locked")
    if missing:
        sys.exit(f"something is missing; this installs it: {' && '.join(missing)}")
    if not SERVER_CPU | LOAD_CPU <= os.sched_getaffinity(0):
        sys.exit("cores 0 and 1 have to be there: one for the server, one for what loads it")


def build() -> None:
    """The gateway, and what is in servers/."""
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
    servers = ["cargo", "build", "--release", "--locked", "--features", "pingora"]
    subprocess.run(servers, cwd=HERE / "servers", check=True)


def versions() -> dict[str, str]:
    """Of everything that is compared or compares."""
    found = {}
    for name, command in VERSIONS.items():
        done = subprocess.run(command, capture_output=True, text=True)
        found[name] = (done.stdout + done.stderr).splitlines()[0].strip()
    lock = (HERE / "servers/Cargo.lock").read_text()
    for crate in ("hyper", "pingora"):
        found[crate] = re.search(rf'name = "{crate}"\nversion = "([^"]+)"', lock)[1]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found["gateway"] = f"{GATEWAY.name} {commit.stdout.strip()}"
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    found["machine"] = f"{model}, {os.cpu_count()} cores"
    # Anything but nearly nothing is somebody else, and the figures are worth less for it.
    found["load average before"] = f"{os.getloadavg()[0]:.2f}"
    return found
