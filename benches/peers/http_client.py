"""Clients that send one request after the other on a connection, to fill caches and to check responses."""

import socket
import subprocess

import protocols
from protocols import HTTP1, Protocol


def token(size: int, caller: int) -> str:
    """The token of a caller, made like in wrk.lua and stampede.rs."""
    return "t" * (size - 8) + f"{caller:08}"


class Client:
    """A connection to a server on loopback, with HTTP/1.1."""

    def __init__(self, port: int, protocol: Protocol = HTTP1):
        self.host = f"127.0.0.1:{port}"
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if protocol.tls:
            self.socket = protocols.client_context().wrap_socket(self.socket)
            protocols.check_suite(*self.socket.cipher()[:2])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def get(self, target: str, fields: dict[str, str] | None = None, status: int = 200) -> tuple[bytes, bytes]:
        """Returns the head, with the empty line, and the body of a response. It must have this status."""
        lines = [f"{name}: {value}\r\n" for name, value in {"Host": self.host, **(fields or {})}.items()]
        self.socket.sendall(f"GET {target} HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
        text = b""
        while b"\r\n\r\n" not in text:
            text += self.more()
        head, _, body = text.partition(b"\r\n\r\n")
        if not head.startswith(f"HTTP/1.1 {status} ".encode()):
            raise RuntimeError(f"{self.host}{target} was answered {head.decode('latin-1')!r} {body[:200]!r}")
        length = field(head, "content-length")
        if status == 304:
            pass  # RFC 9112 §6.3: it has no body, whatever its headers say.
        elif length is not None:
            while len(body) < int(length):
                body += self.more()
        else:
            while not body.endswith(b"0\r\n\r\n"):
                body += self.more()
            body = unchunked(body)
        return head + b"\r\n\r\n", body

    def more(self) -> bytes:
        data = self.socket.recv(1 << 18)
        if not data:
            raise RuntimeError(f"{self.host} has hung up")
        return data


def field(head: bytes, name: str) -> str | None:
    """The value of a header."""
    lines = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
    return next((value.decode() for key, _, value in lines if key.lower() == name.encode()), None)


def unchunked(text: bytes) -> bytes:
    """Decodes a chunked body."""
    body = b""
    while text:
        size, _, text = text.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        body, text = body + text[:length], text[length + 2 :]
    return body


def get(port: int, target: str, fields: dict[str, str] | None = None) -> tuple[bytes, bytes]:
    """Sends one request on a new connection."""
    with Client(port) as client:
        return client.get(target, fields)


def get_http2(port: int, protocol: Protocol, target: str, fields: dict[str, str]) -> bytes:
    """The body of a response with HTTP/2. There must be one."""
    options = [word for name, value in fields.items() for word in ("-H", f"{name.lower()}: {value}")]
    command = ["nghttp", "--no-dep", *options, f"{protocol.scheme}://127.0.0.1:{port}{target}"]
    return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout


def calls(origin: int) -> int:
    """The number of requests that the origin has received."""
    return int(get(origin, "/calls")[1])
