#!/usr/bin/env python3
"""Tests the .deb in a bare Debian root under chroot, and that the .rpm has the same files and leaves nothing either.

Three commands lead to a first hit: the installation, `simulate` and `serve`. Then the unit's ExecStart line runs with
the installed configuration, as a user without rights. systemctl is a script that logs its arguments. After a
reinstallation, the changed configuration is still there. After a purge, nothing is left.

    tests/packages.py FOLDER ROOT   FOLDER: of deploy/release. ROOT: of debootstrap --variant=minbase. As root
"""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse

from rootfs import DEADLINE, ROOT, expect, loopback

NAME = "workspace-gateway"
UNIT = f"usr/lib/systemd/system/{NAME}.service"
# In the range of the users that systemd makes for DynamicUser=.
USER = "61184:61184"
PLAIN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
# A first hit has to come within this time, in seconds.
FIRST_HIT = 60


class Machine:
    """A Debian root."""

    def __init__(self, root):
        self.root = root

    def command(self, *words, user=None):
        return [shutil.which("chroot"), *([f"--userspec={user}"] if user else []), str(self.root), *words]

    def run(self, *words, code=0, user=None, variables=PLAIN):
        command = self.command(*words, user=user)
        result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        assert result.returncode == code, (words, result)
        return result.stdout + result.stderr

    def files(self):
        """What is left of the package, or was written by it."""
        found = subprocess.run(["find", self.root, "-xdev", "-path", f"*{NAME}*"], capture_output=True, text=True,
                               check=True)
        return [line.removeprefix(str(self.root)) for line in found.stdout.splitlines()]

    @contextlib.contextmanager
    def running(self, ready, *words, user=None, variables=PLAIN):
        """Runs a command in the background, from the line that matches `ready` on. SIGTERM must end it with 0."""
        process = subprocess.Popen(
            self.command(*words, user=user), env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        timer = threading.Timer(DEADLINE, process.kill)
        timer.start()
        try:
            shown = ""
            for line in process.stdout:
                shown += line
                if re.search(ready, line):
                    break
            else:
                sys.exit(f"FAILED: {words} says nothing that matches {ready}: {shown}")
            timer.cancel()
            # What it writes later must not fill the pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield shown
            process.terminate()
            assert process.wait(DEADLINE) == 0, (words, process.returncode)
        finally:
            timer.cancel()
            process.kill()


def lists(address, line):
    """Sends the request of a curl line twice, to this address. Returns status and Cache-Status of the second one."""
    words = shlex.split(line)
    name, value = words[words.index("-H") + 1].split(": ")
    path = urllib.parse.urlsplit(words[-1])
    for _ in range(2):
        connection = http.client.HTTPConnection(address, 8080, timeout=DEADLINE)
        connection.request("GET", f"{path.path}?{path.query}", headers={name: value})
        response = connection.getresponse()
        response.read()
        connection.close()
    return response.status, response.headers["cache-status"] or ""


def addresses(address):
    return {
        "WORKSPACE_GATEWAY_LISTEN": f"{address}:8080",
        "WORKSPACE_GATEWAY_METRICS_LISTEN": f"{address}:9090",
        "WORKSPACE_GATEWAY_ADMIN_LISTEN": f"{address}:9091",
    }


def check_first_hit(machine, deb):
    """Returns how `simulate` is used, for a later gateway."""
    start = time.monotonic()
    machine.run("dpkg", "--install", f"/{deb.name}")
    address = loopback()
    simulate = machine.running(r"^Press Ctrl-C", NAME, "simulate", "--listen", f"{address}:8070")
    with simulate as shown:
        serve = shlex.split(re.search(r"^ +(\S+ serve .*)$", shown, re.M)[1])
        curl = re.search(r"^ +(curl .*)$", shown, re.M)[1]
        with machine.running(" ready ", *serve, variables=PLAIN | addresses(address)):
            status, cache_status = lists(address, curl)
        seconds = time.monotonic() - start
    is_hit = status == 200 and re.search(r"; hit\b", cache_status)
    expect(f"dpkg --install, simulate and serve: a first hit after {seconds:.1f} s", is_hit, (status, cache_status))
    expect(f"that is less than {FIRST_HIT} s", seconds < FIRST_HIT)
    return serve, curl


def unit(machine):
    """The command of ExecStart, and the variables of EnvironmentFile."""
    lines = (machine.root / UNIT).read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert settings["DynamicUser"] == "yes", "the unit has no user of its own"
    text = (machine.root / settings["EnvironmentFile"].lstrip("-/")).read_text().splitlines()
    variables = dict(line.split("=", 1) for line in text if line and not line.startswith("#"))
    return shlex.split(settings["ExecStart"]), variables


def check_unit(machine, serve, curl):
    start, variables = unit(machine)
    said = machine.run(*start, code=2, user=USER, variables=variables)
    expect("the unit's command says what a new installation lacks, exit code 2", "region" in said, said)
    config = machine.root / variables["WORKSPACE_GATEWAY_CONFIG"].lstrip("/")
    address = loopback()
    urls = {flag: url for flag, url in zip(serve[2::2], serve[3::2])}
    workspace, appstream = urls["--workspace-url"], urls["--appstream-url"]
    config.write_text(
        f'[listen]\nproxy = "{address}:8080"\nmetrics = "{address}:9090"\nadmin = "{address}:9091"\n'
        f'[upstream]\nworkspace_url = "{workspace}"\nappstream_url = "{appstream}"\n'
    )
    upstream = urllib.parse.urlsplit(workspace).netloc
    with machine.running(r"^Press Ctrl-C", NAME, "simulate", "--listen", upstream):
        with machine.running(" ready ", *start, user=USER, variables=variables):
            # With a configuration, the unit's command becomes ready as a user without rights.
            machine.run(start[0], "health", "--ready", user=USER, variables=variables)
            status, cache_status = lists(address, curl)
            expect("and answers a hit", status == 200 and re.search(r"; hit\b", cache_status), cache_status)


def check_scripts(machine, deb, rpm):
    """The scripts of the packages, with a systemctl that logs its arguments."""
    log = machine.root / "systemctl.log"
    (machine.root / "run/systemd/system").mkdir(parents=True)
    systemctl = machine.root / "usr/bin/systemctl"
    systemctl.write_text('#!/bin/sh\necho "$@" >> /systemctl.log\n')
    systemctl.chmod(0o755)
    config = machine.root / f"etc/{NAME}/config.toml"
    changed = config.read_text()

    machine.run("dpkg", "--install", f"/{deb.name}")
    is_kept = config.read_text() == changed
    expect("a reinstallation keeps the changed configuration", is_kept)
    called = log.read_text()
    expect("and restarts a running service only", called == f"daemon-reload\ntry-restart {NAME}.service\n", called)
    log.write_text("")
    machine.run("dpkg", "--remove", NAME)
    called = log.read_text()
    stops = f"--no-reload disable --now {NAME}.socket {NAME}.service\ndaemon-reload\n"
    expect("a removal stops and disables the units", called == stops, called)
    expect("and keeps the configuration", config.read_text() == changed)
    cache = machine.root / f"var/cache/private/{NAME}"
    cache.mkdir(parents=True)
    (machine.root / f"var/cache/{NAME}").symlink_to(f"private/{NAME}")
    (cache / "snapshot").write_text("x")
    machine.run("dpkg", "--purge", NAME)
    (machine.root / deb.name).unlink()
    expect("a purge leaves nothing", machine.files() == [], machine.files())

    log.write_text("")
    manager = ["rpm", "--root", machine.root]
    subprocess.run([*manager, "--install", "--nodeps", rpm], check=True, capture_output=True)
    expect("the program of the .rpm runs", NAME in machine.run(NAME, "--version"))
    subprocess.run([*manager, "--erase", NAME], check=True, capture_output=True)
    called = log.read_text()
    expect("its removal stops and disables the units", called.endswith(stops), called)
    expect("and leaves nothing", machine.files() == [], machine.files())


def check_files(machine):
    installed = machine.run("dpkg", "--listfiles", NAME).splitlines()
    source = "/usr/share/bash-completion/completions/workspace-gateway"
    words = f"source {source} && complete -p {NAME}"
    expect("bash loads the completion", NAME in machine.run("bash", "-euc", words))
    zsh = (machine.root / f"usr/share/zsh/vendor-completions/_{NAME}").read_text()
    expect("the completion for zsh is for the program", zsh.startswith(f"#compdef {NAME}\n"), zsh[:100])
    manuals = machine.root / "usr/share/man"
    for command in ["", "-serve", "-check"]:
        found = subprocess.run(["man", "-M", manuals, "-w", f"{NAME}{command}"], capture_output=True, text=True)
        assert found.stdout.strip() == f"{manuals}/man1/{NAME}{command}.1.gz", found
    expect("man finds the pages", True)
    secrets = machine.root / f"etc/{NAME}/environment"
    expect("only root can read the file for secrets", secrets.stat().st_mode & 0o777 == 0o600)
    conffiles = machine.run("dpkg-query", "--show", "--showformat=${Conffiles}", NAME).split()[::2]
    is_etc = conffiles == [path for path in installed if path.startswith(f"/etc/{NAME}/")]
    expect("the files in /etc are configuration files", is_etc and len(conffiles) == 2, conffiles)
    return {path for path in installed if (machine.root / path.lstrip("/")).is_file()}


def check_rpm(rpm, files):
    def query(*words):
        return subprocess.run(["rpm", "-qp", *words, rpm], check=True, capture_output=True, text=True).stdout

    # Each system has its own folder for zsh.
    expected = {path.replace("/zsh/vendor-completions/", "/zsh/site-functions/") for path in files}
    license, copyright = f"/usr/share/licenses/{NAME}/LICENSE", f"/usr/share/doc/{NAME}/copyright"
    modes = [line.split(" ", 1) for line in query("--queryformat", "[%{FILEMODES:perms} %{FILENAMES}\n]").splitlines()]
    listed = {path for mode, path in modes if not mode.startswith("d")}
    different = listed ^ expected
    expect("the .rpm has the files of the .deb, and its own license", different == {license, copyright}, different)
    configuration = set(query("--configfiles").splitlines())
    expect("it has the same configuration files", configuration == {path for path in files if path.startswith("/etc/")})
    needed = [line for line in query("--requires").splitlines() if not re.match(r"rpmlib\(|/bin/sh$", line)]
    expect("it needs no other package", needed == [], needed)


def check_release(folder):
    sums = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    named = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    is_complete = named == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    expect("SHA256SUMS has each file", sums.returncode == 0 and is_complete, sums)
    [bill] = folder.glob("*.cdx.json")
    bill = json.loads(bill.read_text())
    # The bill may list more: cargo-cyclonedx does not know which optional dependencies are left out.
    tree = ["cargo", "tree", "--locked", "--edges=normal,build", "--prefix=none", "--format={p}"]
    tree += [f"--target={processor}-unknown-linux-gnu" for processor in ("x86_64", "aarch64")]
    shown = subprocess.run(tree, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    needed = {tuple(line.split()[:2]) for line in shown.splitlines() if line}
    listed = {(part["name"], f"v{part['version']}") for part in [bill["metadata"]["component"], *bill["components"]]}
    expect(f"the bill of materials has all {len(needed)} crates of the program", needed <= listed, needed - listed)
    expect("and the C library", "glibc" in {name for name, _ in listed})


def main():
    folder, root = (pathlib.Path(argument).resolve() for argument in sys.argv[1:])
    check_release(folder)
    [deb], [rpm] = folder.glob("*.deb"), folder.glob("*.rpm")
    machine = Machine(root)
    shutil.copy(deb, root)
    serve, curl = check_first_hit(machine, deb)
    check_rpm(rpm, check_files(machine))
    check_unit(machine, serve, curl)
    check_scripts(machine, deb, rpm)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    if os.geteuid() != 0:
        sys.exit("tests/packages.py: only root may chroot")
    main()
