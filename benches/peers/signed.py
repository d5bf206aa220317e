"""Requests signed as the Python SDK signs them: SDK-HMAC-SHA256 over the method, path, query, five headers and no body.
They are signed before a run, for wrk.lua to put together."""

import hashlib
import hmac
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

DATES = 1_200
"""Dates, one second apart, around now. The gateway accepts 900 s on both sides: 300 s remain for a run."""
QUESTIONS = 50
HEADS_PER_SECOND = 200_000
"""More than wrk can send."""

HOST = "workspace.example"
"""Signed, and so the same for all servers."""
NAMES = "content-type;host;user-agent;x-project-id;x-sdk-date"
NO_BODY = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class AccessKey:
    """An access key of the gateway's configuration."""

    number: int

    @property
    def id(self) -> str:
        return f"EXAMPLEAK{self.number:04}"

    @property
    def secret(self) -> str:
        return f"ExampleSecretKeyExampleSecretKey{self.number:08}"

    @cached_property
    def secret_bytes(self) -> bytes:
        return self.secret.encode()

    def config(self) -> str:
        return f'[[access_key]]\nid = "{self.id}"\nsecret = "{self.secret}"\n'


def keys_of_a_round(seconds: int) -> int:
    """The number of access keys with which no head of a round comes twice."""
    return -(-HEADS_PER_SECOND * seconds // (DATES * QUESTIONS))


@dataclass(frozen=True)
class Signed:
    """One head for each access key, date and question."""

    path: str
    file: Path
    access_keys: tuple[AccessKey, ...]
    dates: int = DATES
    questions: int = QUESTIONS

    def __len__(self) -> int:
        return len(self.access_keys) * self.dates * self.questions

    def each(self):
        """What fills a cache and proves each access key: targets and headers."""
        date = next(iter(dates(self.dates)))
        for number in range(self.questions):
            yield self.request(self.access_keys[0], date, number)
        for key in self.access_keys[1:]:
            yield self.request(key, date, 0)

    def request(self, key: AccessKey, date: str, number: int) -> tuple[str, dict[str, str]]:
        question = f"{number:04}"
        return self.target(question), fields(self.path, date, key.id, signature(key, self.to_sign(date, question)))

    def target(self, question: str) -> str:
        return f"{self.path}?product_id={question}"

    def to_sign(self, date: str, question: str) -> bytes:
        """The string that an access key signs. It is the same for all of them."""
        headers = {name.lower(): value for name, value in fields(self.path, date, "", "").items()}
        lines = "".join(f"{name}:{headers[name]}\n" for name in NAMES.split(";"))
        canonical = f"GET\n{self.path}/\nproduct_id={question}\n{lines}\n{NAMES}\n{NO_BODY}"
        return f"SDK-HMAC-SHA256\n{date}\n{hashlib.sha256(canonical.encode()).hexdigest()}".encode()

    def write(self) -> "Signed":
        """Signs all heads. A record has what differs: question, date, access key and signature, without separators."""
        questions = [f"{number:04}" for number in range(self.questions)]
        with self.file.open("w") as file:
            for date in dates(self.dates):
                texts = [(question, self.to_sign(date, question)) for question in questions]
                for key in self.access_keys:
                    file.writelines(f"{question}{date}{key.id}{signature(key, text)}" for question, text in texts)
        return self

    def environment(self) -> dict[str, str]:
        """The environment for wrk.lua: the file, and a head with names in place of what differs."""
        headers = fields(self.path, "@DATE@", "@ACCESS@", "@SIGNATURE@")
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"GET {self.target('@QUESTION@')} HTTP/1.1\r\n{lines}\r\n"
        return {"PEERS_SIGNED": str(self.file), "PEERS_SIGNED_HEAD": head}


def signature(key: AccessKey, text: bytes) -> str:
    return hmac.digest(key.secret_bytes, text, "sha256").hex()


def fields(path: str, date: str, access: str, signature: str) -> dict[str, str]:
    """The headers that the SDK and its HTTP library send."""
    return {
        "Host": HOST,
        "User-Agent": "huaweicloud-usdk-python/3.0",
        "Accept-Encoding": "gzip, deflate",
        "Accept": "*/*",
        "Connection": "keep-alive",
        "Content-Type": "application/json",
        "X-Project-Id": path.split("/")[2],
        "X-Sdk-Date": date,
        "Authorization": f"SDK-HMAC-SHA256 Access={access}, SignedHeaders={NAMES}, Signature={signature}",
    }


def dates(count: int):
    """The middle one is now."""
    first = int(time.time()) - count // 2
    for second in range(first, first + count):
        yield time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
