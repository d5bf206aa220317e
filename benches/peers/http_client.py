"""A client that sends one request after the other on a connection, to fill caches and to check responses."""

import socket


def token(size: int, caller: int) -> str:
    """The token of a caller, made like in wrk.lua and stampede.rs."""
    return "t" * (size - 8) + f"{caller:08}"


class Client:
    """A connection to a server on loopback."""

    def __init__(self, port: int):
        self.host = f"127.0.0.1:{port}"
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def get(self, target: str, credential: str = "") -> tuple[bytes, bytes]:
        """Returns the head, with the empty line, and the body of a response. It must be a 200."""
        field = f"X-Auth-Token: {credential}\r\n" if credential else ""
        self.socket.sendall(f"GET {target} HTTP/1.1\r\nHost: {self.host}\r\n{field}\r\n".encode())
        text = b""
        while b"\r\n\r\n" not in text:
            text += self.more()
        head, _, body = text.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"{self.host}{target} was answered {head.decode('latin-1')!r} {body[:200]!r}")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if b"content-length" in fields:
            while len(body) < int(fields[b"content-length"]):
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


def unchunked(text: bytes) -> bytes:
    """Decodes a chunked body."""
    body = b""
    while text:
        size, _, text = text.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        body, text = body + text[:length], text[length + 2 :]
    return body


def get(port: int, target: str, credential: str = "") -> tuple[bytes, bytes]:
    """Sends one request on a new connection."""
    with Client(port) as client:
        return client.get(target, credential)


def calls(origin: int) -> int:
    """The number of requests that the origin has received."""
    return int(get(origin, "/calls")[1])
