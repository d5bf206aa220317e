"""The workloads of the closed loop, as data."""

from dataclasses import dataclass

LISTS = "/v2/00000000000000000000000000000001/products"
ELSE = "/v2/00000000000000000000000000000001/desktops"

CACHES = ("haproxy", "pingora", "nginx", "varnish")
LIMITS = ("bare hyper", "wire")
PROXIES = ("nginx plain", "haproxy", "pingora", "varnish")

TOKEN, SHORT_TOKEN = 4_800, 32
BODY, LONG_BODY = 600, 48_000
MANY = 10_000


@dataclass(frozen=True)
class Row:
    """A row of a workload's table: the server, the number of callers and the number of keys."""

    label: str
    peer: str
    keys: int = 1
    callers: int = 1


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
    traced: bool = False
    """Whether no two heads are the same, for each has a trace of its own."""
    mebibytes: int = 64
    """What each cache may take."""

    def peers(self) -> tuple[str, ...]:
        return tuple(row.peer for row in self.rows)

    def programs(self) -> tuple[str, ...]:
        """What loads the servers."""
        return ("wrk",)


def rows(peers, keys: int = 1, callers: int = 1) -> tuple[Row, ...]:
    return tuple(Row(peer, peer, keys, callers) for peer in ("gateway", *peers))


def hits(token: int, body: int) -> Workload:
    name = f"hits-{token}-{body}"
    return Workload(name, f"Hits, token of {token:,} bytes, body of {body:,} bytes, 64 connections",
                    rows(CACHES + LIMITS), token=token, body=body)


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
    return Workload(f"many-{token}", title, (*all_rows[:1], *alone, *all_rows[1:]), token=token, mebibytes=256)


WORKLOADS = (
    hits(TOKEN, BODY),
    hits(SHORT_TOKEN, BODY),
    hits(TOKEN, LONG_BODY),
    hits(SHORT_TOKEN, LONG_BODY),
    Workload("traced", "Hits, each head with a trace of its own, token of 4,800 bytes, body of 600 bytes, 64 connections",
             rows(CACHES + LIMITS), traced=True),
    connections(1),
    connections(1_000),
    many(TOKEN),
    many(SHORT_TOKEN),
    Workload("misses", "Misses: every key is new, token of 4,800 bytes, body of 600 bytes, 64 connections",
             rows(("nginx plain", "nginx", *PROXIES[1:])), asks_origin="afresh"),
    Workload("pass", "Pass-through: no product list, token of 4,800 bytes, body of 600 bytes, 64 connections",
             rows(PROXIES), path=ELSE, asks_origin="always"),
)
