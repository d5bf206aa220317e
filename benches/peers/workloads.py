"""The workloads of the closed loop, as data."""

from dataclasses import dataclass

from protocols import HTTP1, HTTP2, HTTP2_TLS, TLS, Protocol

LISTS = "/v2/00000000000000000000000000000001/products"
ELSE = "/v2/00000000000000000000000000000001/desktops"

CACHES = ("haproxy", "pingora", "nginx", "varnish")
LIMITS = ("bare hyper", "wire")
PROXIES = ("nginx plain", "haproxy", "pingora", "varnish", "bare hyper proxy")

TOKEN, SHORT_TOKEN = 4_800, 32
BODY, LONG_BODY = 600, 48_000
MANY = 10_000

SAME = "same"
"""All requests are the same bytes, unless they have other keys or callers."""
TRACED = "traced"
"""No two heads are the same, for each has a trace of its own."""
TAGGED = "tagged"
"""All have the entity tag of the response in If-None-Match."""
SIGNED = "signed"
"""Signed, with no token. No head comes twice."""
SIGNED_AGAIN = "signed again"
"""Signed, with one access key, one question and 600 dates. Each head comes again after 600 requests."""


@dataclass(frozen=True)
class Row:
    """A row of a workload's table: the server, the number of callers and the number of keys."""

    label: str
    peer: str
    keys: int = 1
    callers: int = 1
    heads: str = ""
    """How the heads differ, if not as the workload says."""


@dataclass(frozen=True)
class Workload:
    """The rows of a workload. The others are compared with the first one."""

    name: str
    title: str
    rows: tuple[Row, ...]
    token: int = TOKEN
    body: int = BODY
    connections: int = 64
    path: str = LISTS
    asks_origin: str = "never"
    """How often the origin is called. never: for hardly any request; always: for each one, because nothing is stored;
    afresh: for each one, because each has a new key."""
    heads: str = SAME
    """How the heads differ."""
    protocol: Protocol = HTTP1
    streams: int = 1
    """Requests in progress on a connection."""
    mebibytes: int = 64
    """What each cache may take."""
    warm_up: int = 0
    """Seconds of load before each measurement."""

    def peers(self) -> tuple[str, ...]:
        return tuple(row.peer for row in self.rows)

    def programs(self) -> tuple[str, ...]:
        """What loads the servers, and makes their certificate."""
        return (("h2load", "nghttp") if self.protocol.http2 else ("wrk",)) + ("openssl",) * self.protocol.tls


def rows(peers, keys: int = 1, callers: int = 1) -> tuple[Row, ...]:
    return tuple(Row(peer, peer, keys, callers) for peer in ("gateway", *peers))


def hits(token: int, body: int) -> Workload:
    name = f"hits-{token}-{body}"
    return Workload(name, f"Hits, token of {token:,} bytes, body of {body:,} bytes, 64 connections",
                    rows(CACHES + LIMITS), token=token, body=body)


def different(name: str, title: str, heads: str, peers: tuple[str, ...], *others: Row) -> Workload:
    """Heads that differ in some way. The gateway is also measured with others, in the same rounds."""
    all_rows = rows(peers)
    return Workload(name, title, (*all_rows[:1], *others, *all_rows[1:]), heads=heads)


def http2(name: str, token: int, protocol: Protocol, peers) -> Workload:
    how = "HTTP/2 and TLS 1.3" if protocol.tls else "HTTP/2 in plaintext"
    title = f"Hits with {how}, token of {token:,} bytes, body of 600 bytes, 8 connections × 8 streams"
    return Workload(name, title, rows(peers), token=token, connections=8, protocol=protocol, streams=8)


def connections(number: int) -> Workload:
    noun = "connection" if number == 1 else "connections"
    return Workload(f"connections-{number}", f"Hits, token of 4,800 bytes, body of 600 bytes, {number:,} {noun}",
                    rows(CACHES + LIMITS), connections=number)


def many(token: int) -> Workload:
    alone = (
        Row("gateway, one key and caller", "gateway"),
        Row("gateway, one key", "gateway", 1, MANY),
        Row("gateway, one caller", "gateway", MANY, 1),
    )
    all_rows = rows(CACHES, MANY, MANY)
    title = f"Hits, 10,000 keys × 10,000 callers, token of {token:,} bytes, body of 600 bytes, 64 connections"
    # The three rows with many heads are of one gateway, and together they are more than it remembers.
    return Workload(f"many-{token}", title, (*all_rows[:1], *alone, *all_rows[1:]), token=token, mebibytes=256, warm_up=2)


WORKLOADS = (
    hits(TOKEN, BODY),
    hits(SHORT_TOKEN, BODY),
    hits(TOKEN, LONG_BODY),
    hits(SHORT_TOKEN, LONG_BODY),
    different("traced",
              "Hits, each head with a trace of its own, token of 4,800 bytes, body of 600 bytes, 64 connections",
              TRACED, CACHES + LIMITS, Row("gateway, same bytes", "gateway", heads=SAME)),
    different("signed", "Hits, signed as by the Python SDK, each head new, body of 600 bytes, 64 connections",
              SIGNED, ("haproxy", *LIMITS), Row("gateway, 600 heads", "gateway", heads=SIGNED_AGAIN),
              Row("gateway, token of 4,800 bytes, same bytes", "gateway", heads=SAME)),
    different("if-none-match", "304 to the entity tag of the response, token of 4,800 bytes, 64 connections",
              TAGGED, CACHES + LIMITS, Row("gateway, without the tag", "gateway", heads=SAME)),
    http2("http2", TOKEN, HTTP2, ("haproxy", "nginx", "bare hyper")),
    http2("http2-32", SHORT_TOKEN, HTTP2, ("haproxy", "nginx", "bare hyper")),
    http2("http2-tls", TOKEN, HTTP2_TLS, ("haproxy", "nginx")),
    Workload("tls", "Hits with TLS 1.3 and HTTP/1.1, token of 4,800 bytes, body of 600 bytes, 64 connections",
             rows(("haproxy", "nginx")), protocol=TLS),
    connections(1),
    connections(1_000),
    many(TOKEN),
    many(SHORT_TOKEN),
    Workload("misses", "Misses: every key is new, token of 4,800 bytes, body of 600 bytes, 64 connections",
             rows(("nginx plain", "nginx", *PROXIES[1:])), asks_origin="afresh"),
    Workload("pass", "Pass-through: no product list, token of 4,800 bytes, body of 600 bytes, 64 connections",
             rows(PROXIES), path=ELSE, asks_origin="always"),
)
