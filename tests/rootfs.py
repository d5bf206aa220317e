#!/usr/bin/env python3
"""Tests the root file system of the container image without a container engine.

deploy/rootfs creates it, as in deploy/Dockerfile. This script reads USER, ENTRYPOINT, CMD and HEALTHCHECK from the last
stage, and uses chroot instead of an engine. It writes /etc/hosts and /etc/resolv.conf, which an engine would mount.
It tests the demo, two upstreams with TLS (one name in /etc/hosts, one in the DNS), the path of the certificate
authorities, the health check while the gateway runs and afterwards, SIGTERM, and that no file is written.

    tests/rootfs.py PROGRAM       a static program of deploy/static-cargo; as root, for chroot and the port of the DNS
"""

import contextlib
import hashlib
import http.client
import http.server
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEADLINE = 20
BY_HOSTS, BY_DNS = "workspace.rootfs.test", "appstream.rootfs.test"
AUTHORITIES = "etc/ssl/certs/ca-certificates.crt"
PROJECT = "00000000000000000000000000000001"


def stage():
    """Returns USER, ENTRYPOINT, CMD and HEALTHCHECK of the last stage of the Dockerfile."""
    text = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ")
    last = text[text.rindex("\nFROM ") + 1 :]
    instructions = [line.split(None, 1) for line in last.splitlines() if line and not line.startswith("#")]
    assert instructions[0] == ["FROM", "scratch"], instructions[0]
    copies = [arguments for word, arguments in instructions if word in ("COPY", "ADD")]
    assert copies == ["--from=build /rootfs/ /"], instructions
    allowed = {"FROM", "ARG", "LABEL", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in instructions} <= allowed, instructions
    arguments = dict(instructions)
    check_labels(dict(re.findall(r'org\.opencontainers\.image\.(\w+)="(.*?)"', arguments["LABEL"])))
    health = json.loads(arguments["HEALTHCHECK"].split("CMD", 1)[1])
    return arguments["USER"], json.loads(arguments["ENTRYPOINT"]), json.loads(arguments["CMD"]), health


def check_labels(labels):
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    expected = {"title": package["name"], "licenses": package["license"]}
    expected |= {name: package[name] for name in ("description", "version")}
    # Cargo.toml does not know these two.
    expected |= {"revision": "$BUILD_COMMIT", "source": "$SOURCE_URL"}
    expect("the labels of the image are those of Cargo.toml", labels == expected, labels)


def loopback():
    """A random loopback address. No other process uses it, so that all of its ports are free."""
    return f"127.{random.randint(64, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"


class Upstream(http.server.BaseHTTPRequestHandler):
    """Answers each request with a product list, and stores the host names of the requests."""

    protocol_version = "HTTP/1.1"
    names = []

    def do_GET(self):
        self.names.append(self.headers["host"].split(":")[0])
        body = b'{"total_count":1,"products":[{"product_id":"p"}]}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def certificate(folder):
    """A self-signed certificate for both names. It is also the authority."""
    key, crt = folder / "key.pem", folder / "crt.pem"
    names = f"subjectAltName=DNS:{BY_HOSTS},DNS:{BY_DNS}"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-days", "2", "-subj", "/CN=rootfs.test", "-addext", names, "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*make, "-keyout", key, "-out", crt], check=True, capture_output=True)
    return key, crt


@contextlib.contextmanager
def serving(folder):
    key, crt = certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)

    class Server(http.server.ThreadingHTTPServer):
        def get_request(self):
            connection, address = super().get_request()
            connection.settimeout(DEADLINE)
            # The handshake happens at the first read, in the thread of the connection.
            return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, *_):
            """Ignores clients that do not trust the certificate. The test wants them."""

    server = Server(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], crt
    finally:
        server.shutdown()


def serve_dns(dns, queried_names):
    """A name server with one name."""
    while True:
        try:
            query, client = dns.recvfrom(512)
        except OSError:
            return
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii").lower())
            at += 1 + query[at]
        kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
        name = ".".join(labels)
        queried_names.append(name)
        found = name == BY_DNS
        # The name has only an IPv4 address.
        address = struct.pack(">HHHIH4B", 0xC00C, 1, 1, 1, 4, 127, 0, 0, 1) if found and kind == 1 else b""
        flags = 0x8580 if found else 0x8583
        head = query[:2] + struct.pack(">HHHHH", flags, 1, 1 if address else 0, 0, 0)
        dns.sendto(head + query[12 : at + 5] + address, client)


def snapshot(root):
    """The metadata and contents of all files of a root file system."""
    files = {}
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        files[str(path)] = (about.st_mode, about.st_uid, about.st_gid, about.st_size, about.st_mtime_ns, content)
        assert about.st_uid == 0 and not about.st_mode & 0o022, f"a user other than root may write to {path}"
    return files


class Gateway:
    """The program of the image, running."""

    def __init__(self, run, command, address, port):
        self.variables = {
            "WORKSPACE_GATEWAY_WORKSPACE_URL": f"https://{BY_HOSTS}:{port}",
            "WORKSPACE_GATEWAY_APPSTREAM_URL": f"https://{BY_DNS}:{port}",
            "WORKSPACE_GATEWAY_LISTEN": f"{address}:8080",
            "WORKSPACE_GATEWAY_METRICS_LISTEN": f"{address}:9090",
            "WORKSPACE_GATEWAY_ADMIN_LISTEN": f"{address}:9091",
        }
        self.address, self.log, self.ready = address, "", threading.Event()
        self.process = subprocess.Popen(
            run + command, env=self.variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            self.log += line
            if " ready " in line:
                self.ready.set()

    def get(self, path):
        connection = http.client.HTTPConnection(self.address, 8080, timeout=DEADLINE)
        connection.request("GET", path, headers={"x-auth-token": "a-token"})
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, response.headers["cache-status"], body

    def __enter__(self):
        if not self.ready.wait(DEADLINE):
            self.process.kill()
            sys.exit(f"the gateway is not ready after {DEADLINE} s:\n{self.log}")
        return self

    def __exit__(self, *_):
        self.process.kill()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(DEADLINE)
        self.reader.join(DEADLINE)
        assert code == 0, f"the gateway exited with {code} after SIGTERM:\n{self.log}"


def expect(what, is_true, shown=""):
    if not is_true:
        sys.exit(f"FAILED: {what}: {shown}")
    print(f"  {what}")


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    user, entrypoint, serve, health = stage()
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="rootfs-"))
    root = scratch / "root"
    try:
        subprocess.run([ROOT / "deploy/rootfs", program, root], check=True)
        check(scratch, root, user, entrypoint, serve, health)
    finally:
        shutil.rmtree(scratch)


def check(scratch, root, user, entrypoint, serve, health):
    root.chmod(0o755)
    scratch.chmod(0o755)
    files = [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file()]
    expect("USER is a number, and not root", re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), user)
    print(f"user {user}; " + ", ".join(f"/{name}" for name in files))
    bundle = (root / AUTHORITIES).read_text()
    expect("the image has the certificate authorities of the system", bundle.count("BEGIN CERTIFICATE") > 100)
    run = [shutil.which("chroot"), f"--userspec={user}", str(root)]

    # The files that an engine mounts. There is no /proc, /sys or /dev.
    address = loopback()
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.0.1 {BY_HOSTS}\n")
    (root / "etc/resolv.conf").write_text(f"nameserver {address}\noptions timeout:2 attempts:2\n")
    before = snapshot(root)

    demo = subprocess.run([*run, *entrypoint, "demo", "--once"], env={}, capture_output=True, text=True, timeout=60)
    expect("demo --once succeeds", demo.returncode == 0, demo.stdout + demo.stderr)

    queried_names = []
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dns.bind((address, 53))
    threading.Thread(target=serve_dns, args=(dns, queried_names), daemon=True).start()
    with serving(scratch) as (port, crt):
        with Gateway(run, entrypoint + serve, address, port) as gateway:
            status, _, body = gateway.get(f"/v2/{PROJECT}/products")
            is_refused = status == 503 and b"certificate" in body.lower()
            expect("an authority that is not in the image is not trusted", is_refused, body)
            gateway.stop()
        expect("all authorities of the image are valid", "certificate authorities" not in gateway.log, gateway.log)

        after = snapshot(root)
        # Like `docker run -v authorities.crt:/etc/ssl/certs/ca-certificates.crt`.
        (root / AUTHORITIES).write_text(bundle + crt.read_text())
        mounted = snapshot(root)
        with Gateway(run, entrypoint + serve, address, port) as gateway:
            check_running(gateway, run, health, queried_names)
        expect("no file was written", before == after and snapshot(root) == mounted)
    dns.close()


def check_running(gateway, run, health, queried_names):
    for name, path in [(BY_HOSTS, f"/v2/{PROJECT}/products"), (BY_DNS, f"/v1/{PROJECT}/product")]:
        status, cache_status, body = gateway.get(path)
        is_reached = status == 200 and Upstream.names[-1:] == [name]
        expect(f"{name} is reached with TLS", is_reached, (status, cache_status, body))
    expect("only the second name is looked up in the DNS", set(queried_names) == {BY_DNS}, queried_names)
    status, cache_status, _ = gateway.get(f"/v2/{PROJECT}/products")
    expect("a repeated request is a hit", status == 200 and re.search(r"; hit\b", cache_status or ""), cache_status)

    def healthy():
        return subprocess.run(run + health, env=gateway.variables, capture_output=True, text=True, timeout=DEADLINE)

    result = healthy()
    expect("the health check succeeds", result.returncode == 0, result)
    gateway.stop()
    expect("the gateway exits with 0 after SIGTERM", True)
    result = healthy()
    expect("after that, the health check fails with a message", result.returncode == 1 and result.stderr, result)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if os.geteuid() != 0:
        sys.exit("tests/rootfs.py: only root may chroot")
    main()
