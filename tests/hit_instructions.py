#!/usr/bin/env python3
"""Counts the instructions of a hit, of the whole program, with valgrind's callgrind.

The program runs with one thread in front of an upstream of this script. One client repeats a request with a token of
4,800 bytes, which the fast path answers from memory. The instructions of so many hits and of three times as many are
counted, so that what the program does besides does not count.

    tests/hit_instructions.py PROGRAM [LIMIT]
"""

import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import socket

HITS = 1000
DEADLINE = 60
BODY = json.dumps({"products": [{"product_id": f"workspace.c{number}", "cpu": "4"} for number in range(12)]}).encode()
TOKEN = "t" * 4800
TARGET = "/v2/00000000000000000000000000000001/products?limit=10"


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass


def start(program: str, folder: pathlib.Path, upstream: str) -> tuple[subprocess.Popen, tuple[str, int]]:
    """Starts the program, and returns it with its address for clients."""
    listeners = "".join(f'{name} = "127.0.0.1:0"\n' for name in ["proxy", "metrics", "admin"])
    config = f'[listen]\n{listeners}[upstream]\nworkspace_url = "{upstream}"\nappstream_url = "{upstream}"\n[log]\nformat = "json"\n'
    (folder / "config.toml").write_text(config)
    callgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", "--log-file=/dev/null"]
    command = [*callgrind, program, "serve", "--config", str(folder / "config.toml")]
    environment = {**os.environ, "TOKIO_WORKER_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    for line in process.stderr:
        entry = json.loads(line)
        if entry.get("message") == "ready":
            host, port = entry["proxy"].rsplit(":", 1)
            threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()
            return process, (host, int(port))
    sys.exit("the program has ended before it was ready")


def exchange(client: socket.socket) -> bytes:
    """Sends the request. Returns the head of the response."""
    client.sendall(f"GET {TARGET} HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {TOKEN}\r\n\r\n".encode())
    received = b""
    while not received.endswith(BODY):
        piece = client.recv(65536)
        if not piece:
            sys.exit(f"the connection was closed: {received!r}")
        received += piece
    return received


def counted(process: subprocess.Popen, folder: pathlib.Path, number: int) -> int:
    """The instructions since the last time."""
    subprocess.run(["callgrind_control", "--dump", str(process.pid)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file, end = folder / f"out.{number}", time.monotonic() + DEADLINE
    while time.monotonic() < end:
        lines = file.read_text().splitlines() if file.exists() else []
        total = next((line for line in reversed(lines) if line.startswith("totals:")), None)
        if total:
            return int(total.split()[1])
        time.sleep(0.05)
    sys.exit(f"callgrind has not written {file}")


def main() -> int:
    program, limit = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        process, address = start(program, folder, f"http://127.0.0.1:{upstream.server_port}")
        try:
            client = socket.create_connection(address)
            for _ in range(300):
                last = exchange(client)
            if b"workspace-gateway; hit" not in last:
                sys.exit(f"this is no hit: {last[:500]!r}")
            counted(process, folder, 1)
            totals = []
            for number, hits in enumerate([HITS, 3 * HITS], 2):
                for _ in range(hits):
                    exchange(client)
                totals.append(counted(process, folder, number))
        finally:
            process.terminate()
            process.wait(DEADLINE)
    each = (totals[1] - totals[0]) / (2 * HITS)
    print(f"{each:.0f} instructions for each hit" + (f", at most {limit}" if limit else ""))
    return 1 if limit and each > limit else 0


if __name__ == "__main__":
    sys.exit(main())
