"""The running servers of a comparison: an origin, and the peers in front of it."""

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import http_client
import load
from peers import Server, Setup, free_port, start, start_origin


class Field:
    """A context manager that stops all servers at its end."""

    def __init__(self, body_bytes: int, mebibytes: int = 64):
        self.mebibytes = mebibytes
        self.servers: dict[str, Server] = {}
        with ExitStack() as stack:
            memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
            self.directory = Path(tempfile.mkdtemp(prefix="peers-", dir=memory))
            stack.callback(shutil.rmtree, self.directory)
            self.origin = stack.enter_context(start_origin(self.directory, body_bytes)).is_up()
            self.stack = stack.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stack.__exit__(*error)

    def setup(self, name: str) -> Setup:
        """The place of a peer."""
        directory = self.directory / name.replace(" ", "-")
        return Setup(directory, free_port(), self.origin.port, self.mebibytes, self.directory / "answer")

    def peer(self, name: str, **options) -> Server:
        """The server of a peer. It is started at the first use."""
        if name not in self.servers:
            self.servers[name] = self.stack.enter_context(start(name, self.setup(name), **options)).is_up()
        return self.servers[name]

    def record(self, requests: load.Requests) -> None:
        """Stores the gateway's hit, for the servers that only repeat it."""
        target, token = next(requests.pairs())
        port = self.peer("gateway").port
        http_client.get(port, target, token)
        (self.directory / "answer").write_bytes(b"".join(http_client.get(port, target, token)))

    def prime(self, server: Server, requests: load.Requests) -> None:
        """Sends each request once, and compares a response with the origin's."""
        with http_client.Client(server.port) as client:
            for target, token in requests.pairs():
                client.get(target, token)
            _, body = client.get(target, token)
        if body != http_client.get(self.origin.port, target)[1]:
            raise RuntimeError(f"the body differs from the origin's: {body[:200]!r}; see {server.log}")

    def pids(self) -> list[int]:
        """The process ids of all servers, without their children."""
        return [self.origin.pid, *(server.pid for server in self.servers.values())]

    def calls(self) -> int:
        """The number of requests that the origin has received."""
        return http_client.calls(self.origin.port)
