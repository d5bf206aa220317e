"""Starts and stops the compared servers and the origin."""

import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protocols import HTTP1, Protocol
from signed import AccessKey
from workloads import SAME, SIGNED, TAGGED

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GATEWAY = ROOT / "target/release/workspace-gateway"
SERVERS = HERE / "servers/target/release"

HAPROXY_RULES = {
    # Otherwise its cache does not take part.
    SIGNED: "http-request del-header Authorization",
    # wrk waits for this many bytes after a 304, wrongly (RFC 9112 §6.3). The other servers leave the header out.
    TAGGED: "http-after-response del-header Content-Length if { status 304 }",
}
"""What HAProxy needs for some requests."""

SERVER_CPU, LOAD_CPU = {0}, {1}
"""The measured server has a core of its own. The load, the origin and this script share the other core."""

PORTS = iter(range(20000, 32000, 3))
"""Ports outside the system's ephemeral range. None is used twice."""


@dataclass
class Setup:
    """The ports and files of a server."""

    directory: Path
    """Its own folder, on a tmpfs if there is one."""
    port: int
    origin: int
    mebibytes: int
    """The size of its cache."""
    answer: Path
    """A file with the gateway's response, for servers that only repeat it."""
    certificate: Path
    """The folder of make_certificate, if the protocol has TLS."""
    protocol: Protocol = HTTP1
    access_keys: tuple[AccessKey, ...] = ()
    heads: str = SAME

    def config(self, name: str) -> Path:
        """A copy of a file of configs/ with its @WORDS@ replaced."""
        words = {
            "PORT": self.port,
            "ORIGIN": self.origin,
            "MEBIBYTES": self.mebibytes,
            "DIRECTORY": self.directory,
            "METRICS": self.port + 1,
            "ADMIN": self.port + 2,
            "ACCESS_KEYS": "\n".join(key.config() for key in self.access_keys),
            "HAPROXY_RULE": HAPROXY_RULES.get(self.heads, ""),
            **self.protocol.words(self.certificate),
        }
        text = (HERE / "configs" / name).read_text()
        for word, value in words.items():
            text = text.replace(f"@{word}@", str(value))
        path = self.directory / name
        path.write_text(text)
        return path


def gateway(setup: Setup) -> list:
    return [GATEWAY, "serve", "--config", setup.config("gateway.toml")]


def haproxy(setup: Setup) -> list:
    return ["haproxy", "-db", "-f", setup.config("haproxy.cfg")]


def nginx(setup: Setup) -> list:
    return ["nginx", "-p", setup.directory, "-e", setup.directory / "nginx.log", "-c", setup.config("nginx.conf")]


def nginx_plain(setup: Setup) -> list:
    return ["nginx", "-p", setup.directory, "-e", setup.directory / "nginx.log", "-c", setup.config("nginx-plain.conf")]


def varnish(setup: Setup) -> list:
    parameters = {
        # One thread for each active connection.
        "thread_pools": 1,
        "thread_pool_min": 100,
        "thread_pool_max": 1200,
        "listen_depth": 4096,
        "timeout_idle": 75,
        # Room for tokens of a documented length.
        "http_req_hdr_len": "128k",
        "http_req_size": "160k",
        "workspace_client": "256k",
        "workspace_backend": "256k",
    }
    options = [word for name, value in parameters.items() for word in ("-p", f"{name}={value}")]
    where = ["-n", setup.directory, "-a", f"127.0.0.1:{setup.port},HTTP", "-T", "none"]
    memory = ["-s", f"malloc,{setup.mebibytes}m"]
    return ["varnishd", "-F", "-j", "none", *where, "-f", setup.config("varnish.vcl"), *memory, *options]


def pingora(setup: Setup) -> list:
    return [SERVERS / "pingora", f"127.0.0.1:{setup.port}", f"127.0.0.1:{setup.origin}", setup.mebibytes]


def bare_hyper(setup: Setup) -> list:
    version = "http2" if setup.protocol.http2 else "http1"
    return [SERVERS / "bare-hyper", f"127.0.0.1:{setup.port}", setup.answer, version]


def bare_proxy(setup: Setup) -> list:
    return [SERVERS / "bare-proxy", f"127.0.0.1:{setup.port}", f"127.0.0.1:{setup.origin}"]


def wire(setup: Setup) -> list:
    return [SERVERS / "wire", f"127.0.0.1:{setup.port}", setup.answer]


PEERS = {
    "gateway": gateway,
    "haproxy": haproxy,
    "nginx": nginx,
    "nginx plain": nginx_plain,
    "varnish": varnish,
    "pingora": pingora,
    "bare hyper": bare_hyper,
    "bare hyper proxy": bare_proxy,
    "wire": wire,
}
"""How to start each server. The gateway is first, because some repeat its response."""

PROGRAMS = {
    "haproxy": ("haproxy",),
    "nginx": ("nginx",),
    "nginx plain": ("nginx",),
    "varnish": ("varnishd",),
    # To build it.
    "pingora": ("cmake",),
}
"""What some of them need."""


class Server:
    """A process that listens on a port. It is a context manager that stops the process at its end."""

    def __init__(self, command: list, port: int, log: Path, cpus=SERVER_CPU, environment: dict[str, str] | None = None):
        self.port, self.log = port, log
        with log.open("wb") as output, pinned(cpus):
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                # A process group of its own, which is stopped as a whole.
                start_new_session=True,
            )
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.process.terminate()
            self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            pass  # It waits for requests in flight; there are none.
        finally:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # All processes have ended.
            self.process.wait()

    def is_up(self) -> "Server":
        """Waits until the server listens."""
        deadline = time.monotonic() + 20
        while not is_listening(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.process.args} does not listen; its log: {self.log.read_text()[-2000:]}")
            time.sleep(0.01)
        return self


@contextmanager
def pinned(cpus: set[int]):
    """Processes that are started within this context run on these cores."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def start(name: str, setup: Setup, **options) -> Server:
    """Starts one of PEERS."""
    setup.directory.mkdir()
    return Server(PEERS[name](setup), setup.port, setup.directory / "output", **options)


def start_origin(directory: Path, body_bytes: int) -> Server:
    """Starts the origin, on the core of the load."""
    port = free_port()
    command = [SERVERS / "origin", f"127.0.0.1:{port}", body_bytes]
    return Server(command, port, directory / "origin.output", cpus=LOAD_CPU)


def is_listening(port: int) -> bool:
    """Whether a process listens on a port. Does not connect to it."""
    wanted = f":{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(fields[1].endswith(wanted) and fields[3] == "0A" for fields in map(str.split, lines))


def free_port() -> int:
    """The first of three consecutive free ports."""
    return next(port for port in PORTS if all(is_free(port + offset) for offset in range(3)))


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
