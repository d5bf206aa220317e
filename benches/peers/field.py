"""The servers of one comparison while they run: an origin, and before it as many peers as were asked for."""

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import ask
import load
from peers import Server, Setup, free_port, start, start_origin


class Field:
    """A `with` around it stops them all."""

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
        """Where a peer is to be."""
        directory = self.directory / name.replace(" ", "-")
        return Setup(directory, free_port(), self.origin.port, self.mebibytes, self.directory / "answer")

    def peer(self, name: str, **options) -> Server:
        """The server of a peer, which is started when it is asked for first."""
        if name not in self.servers:
            self.servers[name] = self.stack.enter_context(start(name, self.setup(name), **options)).is_up()
        return self.servers[name]

    def record(self, questions: load.Questions) -> None:
        """Keeps what the gateway answers from memory, for those that only repeat it."""
        target, token = next(questions.pairs())
        port = self.peer("gateway").port
        ask.get(port, target, token)
        (self.directory / "answer").write_bytes(b"".join(ask.get(port, target, token)))

    def prime(self, server: Server, questions: load.Questions) -> None:
        """Asks everything once, and once more for what the origin says, which has to come."""
        with ask.Client(server.port) as client:
            for target, token in questions.pairs():
                client.get(target, token)
            _, body = client.get(target, token)
        if body != ask.get(self.origin.port, target)[1]:
            raise RuntimeError(f"not what the origin says: {body[:200]!r}; see {server.log}")

    def pids(self) -> list[int]:
        """Of all that runs here, without what that has started."""
        return [self.origin.pid, *(server.pid for server in self.servers.values())]

    def calls(self) -> int:
        """How often the origin was asked."""
        return ask.calls(self.origin.port)
