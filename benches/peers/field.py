"""The running servers of a comparison: an origin, and the peers in front of it."""

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import http_client
import protocols
from peers import Server, Setup, free_port, start, start_origin
from protocols import HTTP1, TLS, Protocol
from signed import AccessKey
from workloads import SAME


class Field:
    """A context manager that stops all servers at its end."""

    def __init__(
        self,
        body_bytes: int,
        mebibytes: int = 64,
        protocol: Protocol = HTTP1,
        access_keys: tuple[AccessKey, ...] = (),
        heads: str = SAME,
    ):
        self.mebibytes, self.protocol, self.access_keys, self.heads = mebibytes, protocol, access_keys, heads
        self.servers: dict[str, Server] = {}
        with ExitStack() as stack:
            memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
            self.directory = Path(tempfile.mkdtemp(prefix="peers-", dir=memory))
            stack.callback(shutil.rmtree, self.directory)
            self.certificate = self.directory / "certificate"
            if protocol.tls:
                protocols.make_certificate(self.certificate)
            self.origin = stack.enter_context(start_origin(self.directory, body_bytes)).is_up()
            self.stack = stack.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stack.__exit__(*error)

    def setup(self, name: str) -> Setup:
        """The place of a peer."""
        return Setup(
            self.directory / name.replace(" ", "-"),
            free_port(),
            self.origin.port,
            self.mebibytes,
            self.directory / "answer",
            self.certificate,
            self.protocol,
            self.access_keys,
            self.heads,
        )

    def peer(self, name: str, **options) -> Server:
        """The server of a peer. It is started at the first use."""
        if name not in self.servers:
            self.servers[name] = self.stack.enter_context(start(name, self.setup(name), **options)).is_up()
        return self.servers[name]

    def record(self, requests, status: int = 200) -> None:
        """Stores the gateway's hit, for the servers that only repeat it. The gateway has HTTP/1.1 on any port."""
        target, fields = next(requests.each())
        with http_client.Client(self.peer("gateway").port, TLS if self.protocol.tls else HTTP1) as client:
            if status == 200:
                client.get(target, fields)
            (self.directory / "answer").write_bytes(b"".join(client.get(target, fields, status)))

    def prime(self, server: Server, requests) -> str | None:
        """Sends each request once and the last one twice, and compares the last response with the origin's. Returns its
        entity tag, if the protocol is HTTP/1.1."""
        tag = None
        if self.protocol.http2:
            for target, fields in requests.each():
                http_client.get_http2(server.port, self.protocol, target, fields)
            body = http_client.get_http2(server.port, self.protocol, target, fields)
        else:
            with http_client.Client(server.port, self.protocol) as client:
                for target, fields in requests.each():
                    client.get(target, fields)
                head, body = client.get(target, fields)
            tag = http_client.field(head, "etag")
        if body != http_client.get(self.origin.port, target)[1]:
            raise RuntimeError(f"the body differs from the origin's: {body[:200]!r}; see {server.log}")
        return tag

    def check_not_modified(self, server: Server, requests) -> None:
        """Checks that a request with the entity tag of the response is answered with a 304."""
        with http_client.Client(server.port, self.protocol) as client:
            client.get(*next(requests.each()), status=304)

    def pids(self) -> list[int]:
        """The process ids of all servers, without their children."""
        return [self.origin.pid, *(server.pid for server in self.servers.values())]

    def calls(self) -> int:
        """The number of requests that the origin has received."""
        return http_client.calls(self.origin.port)
