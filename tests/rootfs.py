#!/usr/bin/env python3
"""Starts the very root file system of the container image, without a container engine.

deploy/rootfs makes it, as in deploy/Dockerfile, and what its last stage says is done: USER, ENTRYPOINT, CMD and
HEALTHCHECK are read from it. chroot does for the engine; /etc/hosts and /etc/resolv.conf are laid in as an engine would
mount them. Held to: the demo, an upstream known to /etc/hosts alone and one known to the DNS alone, both by TLS, the place of
the certificate authorities, the health check while it is up and after that, SIGTERM, and that nothing is written.

    tests/rootfs.py PROGRAM       a static one, from deploy/static-cargo; as root, for chroot and the DNS' port
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEADLINE = 20
BY_HOSTS, BY_DNS = "workspace.rootfs.test", "appstream.rootfs.test"
AUTHORITIES = "etc/ssl/certs/ca-certificates.crt"
PROJECT = "00000000000000000000000000000001"


def stage():
    """What the last stage of the Dockerfile says."""
    text = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ")
    last = text[text.rindex("\nFROM ") + 1 :]
    said = [line.split(None, 1) for line in last.splitlines() if line and not line.startswith("#")]
    assert said[0] == ["FROM", "scratch"], said[0]
    assert [rest for word, rest in said if word in ("COPY", "ADD")] == ["--from=build /rootfs/ /"], said
    assert {word for word, _ in said} <= {"FROM", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}, said
    words = dict(said)
    health = json.loads(words["HEALTHCHECK"].split("CMD", 1)[1])
    return words["USER"], json.loads(words["ENTRYPOINT"]), json.loads(words["CMD"]), health


def loopback():
    """An address of this machine that nobody else uses, so that every port on it is free, the usual ones too."""
    return f"127.{random.randint(64, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"


class Upstream(http.server.BaseHTTPRequestHandler):
    """Answers everything with a product list, and notes which name it was asked by."""

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
    """An authority that signs itself, for both names; it is the server's certificate, too."""
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
            # The handshake comes with the first read, in the connection's own thread.
            return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, *_):
            """A client that doesn't trust it hangs up: that is wanted."""

    server = Server(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], crt
    finally:
        server.shutdown()


def answer_names(dns, asked):
    """A name server that knows one name."""
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
        asked.append(name)
        found = name == BY_DNS
        # It has an IPv4 address, and no other.
        address = struct.pack(">HHHIH4B", 0xC00C, 1, 1, 1, 4, 127, 0, 0, 1) if found and kind == 1 else b""
        flags = 0x8580 if found else 0x8583
        head = query[:2] + struct.pack(">HHHHH", flags, 1, 1 if address else 0, 0, 0)
        dns.sendto(head + query[12 : at + 5] + address, client)


def snapshot(root):
    """Everything there is to see of a root file system."""
    seen = {}
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        seen[str(path)] = (about.st_mode, about.st_uid, about.st_gid, about.st_size, about.st_mtime_ns, content)
        assert about.st_uid == 0 and not about.st_mode & 0o022, f"others than root may write to {path}"
    return seen


class Gateway:
    """The image's program, serving."""

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
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.headers["cache-status"], body

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
        assert code == 0, f"it ended with {code} on SIGTERM:\n{self.log}"


def expect(what, holds, shown=""):
    if not holds:
        sys.exit(f"NOT SO: {what}: {shown}")
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
    expect("its user is a number, and not root", re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), user)
    print(f"user {user}; " + ", ".join(f"/{name}" for name in files))
    bundle = (root / AUTHORITIES).read_text()
    expect("the system's certificate authorities are in it", bundle.count("BEGIN CERTIFICATE") > 100)
    run = [shutil.which("chroot"), f"--userspec={user}", str(root)]

    # What an engine mounts, but for /proc, /sys and /dev, without which it has to do here.
    address = loopback()
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.0.1 {BY_HOSTS}\n")
    (root / "etc/resolv.conf").write_text(f"nameserver {address}\noptions timeout:2 attempts:2\n")
    before = snapshot(root)

    demo = subprocess.run([*run, *entrypoint, "demo", "--once"], env={}, capture_output=True, text=True, timeout=60)
    expect("demo --once ends well", demo.returncode == 0, demo.stdout + demo.stderr)

    asked = []
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dns.bind((address, 53))
    threading.Thread(target=answer_names, args=(dns, asked), daemon=True).start()
    with serving(scratch) as (port, crt):
        with Gateway(run, entrypoint + serve, address, port) as gateway:
            status, _, body = gateway.get(f"/v2/{PROJECT}/products")
            expect("an authority that is not in it is not trusted", status == 503 and b"certificate" in body.lower(), body)
            gateway.stop()
        expect("those that are in it could all be read", "certificate authorities" not in gateway.log, gateway.log)

        after = snapshot(root)
        # As `docker run -v authorities.crt:/etc/ssl/certs/ca-certificates.crt` has it.
        (root / AUTHORITIES).write_text(bundle + crt.read_text())
        mounted = snapshot(root)
        with Gateway(run, entrypoint + serve, address, port) as gateway:
            checked(gateway, run, health, asked)
        expect("nothing was written", before == after and snapshot(root) == mounted)
    dns.close()


def checked(gateway, run, health, asked):
    for name, path in [(BY_HOSTS, f"/v2/{PROJECT}/products"), (BY_DNS, f"/v1/{PROJECT}/product")]:
        status, where, body = gateway.get(path)
        expect(f"{name} is asked, by TLS", status == 200 and Upstream.names[-1:] == [name], (status, where, body))
    expect("the first by /etc/hosts, the other by the DNS", set(asked) == {BY_DNS}, asked)
    status, where, _ = gateway.get(f"/v2/{PROJECT}/products")
    expect("and then answered from memory", status == 200 and re.search(r"; hit\b", where or ""), where)

    def healthy():
        return subprocess.run(run + health, env=gateway.variables, capture_output=True, text=True, timeout=DEADLINE)

    result = healthy()
    expect("the health check finds it well", result.returncode == 0, result)
    gateway.stop()
    expect("SIGTERM ends it with 0", True)
    result = healthy()
    expect("the health check then fails, and says why", result.returncode == 1 and result.stderr, result)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if os.geteuid() != 0:
        sys.exit("tests/rootfs.py: only root may chroot")
    main()
