#!/usr/bin/env python3
"""Runs every query of the Grafana dashboard and the Prometheus rules in a real Prometheus that scrapes a gateway.

The gateway is that of `workspace-gateway demo`, which keeps running after its scenes (a stampede, an outage, a 429,
denied callers). This program sends it more requests. Prometheus runs with deploy/prometheus/prometheus.yml, with
shorter intervals and this target. The checks:

- No query fails. Each query of the dashboard has a result that is not NaN, and each variable has values. Shares of stale
  answers may be NaN, because they need more requests than are sent here.
- Prometheus reads the OpenMetrics format, and has exemplars from it.
- Each rule is evaluated, each recording rule has a result, and each series that a rule selects exists.
- Each metric family that is named exists, and rules_test.yml has every alert.

    tests/dashboard.py PROGRAM       needs Debian's `prometheus`; takes less than a minute
"""

import contextlib
import http.client
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "deploy/grafana/dashboard.json"
PROMETHEUS = ROOT / "deploy/prometheus"
# Time limits in seconds: for the scenes of the demo, and after them for all queries to have results.
SCENES, RESULTS = 30, 25
POLL_INTERVAL = 0.2
# The values that Grafana would fill in. A rate needs two samples, one second apart; the rest is a margin.
VARIABLES = {
    "__rate_interval": "8s",
    "__range": "30s",
    "__interval": "1s",
    "datasource": "prometheus",
    "job": "workspace-gateway",
    "instance": ".+",
}
# The trace that all requests of the load are part of. It is sampled.
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
FAMILY = re.compile(r"\b(?:workspace_gateway|process)_\w+")
RECORDED = re.compile(r"\b[a-z_]+:\w+:\w+")
# NaN while there is too little evidence.
NEEDS_EVIDENCE = "workspace_gateway_stale_answers_ratio"
SELECTOR = re.compile(r"\b(?:workspace_gateway_\w+|process_\w+|up)\{[^}]*\}")


class Process:
    """A program whose output is read. It is killed at the end, also after an error."""

    def __init__(self, command, stream):
        self.lines, self.changed = [], threading.Condition()
        self.child = subprocess.Popen(command, **{stream: subprocess.PIPE}, text=True, env=self.environment())
        self.stream = getattr(self.child, stream)
        threading.Thread(target=self.read, daemon=True).start()

    @staticmethod
    def environment():
        return {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}

    def read(self):
        for line in itertools.chain(self.stream, [None]):
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()

    def wait_for(self, pattern, seconds):
        """Waits for a line that matches and returns the match."""

        def found():
            return next((match for line in self.lines if line and (match := re.search(pattern, line))), None)

        with self.changed:
            self.changed.wait_for(lambda: found() or None in self.lines, seconds)
        printed = "".join(filter(None, self.lines))
        return found() or sys.exit(f"{self.child.args[0]} has not printed {pattern}:\n{printed}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()


class Load:
    """Sends all kinds of requests to the gateway, repeatedly, on some connections."""

    CONNECTIONS = 3

    def __init__(self, address, token, project):
        self.address, self.token, self.project = address, token, project
        self.number, self.stopped, self.failed = itertools.count(), threading.Event(), []
        self.threads = [threading.Thread(target=self.run) for _ in range(self.CONNECTIONS)]

    def requests(self, number):
        """The requests of a round: path and token."""
        v2, v1 = f"/v2/{self.project}", f"/v1/{self.project}"
        yield from [(f"{v2}/products?limit=2", self.token)] * 20
        yield f"{v1}/product?limit=2", self.token
        # New requests, and one whose entry expires.
        yield f"{v2}/products?offset={number}", self.token
        yield f"{v1}/product?offset={number}", self.token
        yield f"{v2}/products/sharer?limit=3", self.token
        # Bypass, pass-through, a denial by upstream, a remembered denial, and a 404 of the gateway.
        yield f"{v2}/products?os_type=a+b", self.token
        yield f"{v2}/desktops", self.token
        yield f"{v1}/apps", self.token
        yield f"{v2}/products", f"wrong-{number}"
        yield f"{v2}/products", "wrong"
        yield "/nowhere", self.token

    def run(self):
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            while not self.stopped.is_set():
                for path, token in self.requests(next(self.number)):
                    connection.request("GET", path, headers={"x-auth-token": token, "traceparent": TRACEPARENT})
                    connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            self.failed.append(error)
        finally:
            connection.close()

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join()


class Prometheus:
    """Prometheus' HTTP API."""

    def __init__(self, address):
        self.address = address

    def get(self, path, **parameters):
        connection = http.client.HTTPConnection(self.address, timeout=10)
        connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        response = json.loads(connection.getresponse().read())
        connection.close()
        if response["status"] != "success":
            raise ValueError(response.get("error", "no reason given"))
        return response["data"]

    def has_result(self, expression, begun=None):
        """Whether a query has a value that is not NaN, now or at any time since `begun`."""
        if begun is None:
            found = self.get("query", query=expression)["result"]
            values = [series["value"][1] for series in found]
        else:
            found = self.get("query_range", query=expression, start=begun, end=time.time(), step=1)["result"]
            values = [value for series in found for _, value in series["values"]]
        return any(value != "NaN" or NEEDS_EVIDENCE in expression for value in values)


def with_variables(text):
    text = re.sub(r"\$\{?(\w+)(?::\w+)?\}?", lambda found: VARIABLES.get(found[1], found[0]), text)
    if "$" in text:
        sys.exit(f"unknown variable: {text}")
    return text


def panels(of):
    for panel in of:
        yield panel
        yield from panels(panel.get("panels", []))


class Pending:
    """The queries without a result so far, by name. A query is removed when it has one."""

    def __init__(self):
        self.queries, self.errors = {}, {}

    def add(self, name, query):
        if name in self.queries:
            sys.exit(f"{name} occurs twice")
        self.queries[name] = query

    def poll(self):
        for name, query in list(self.queries.items()):
            try:
                if query():
                    del self.queries[name]
                else:
                    self.errors[name] = "is empty"
            except ValueError as error:
                self.errors[name] = f"fails: {error}"


def dashboard_queries(dashboard, prometheus, pending, begun):
    """Adds each target of each panel, and each variable."""
    count = 0
    for panel in panels(dashboard["panels"]):
        for target in panel.get("targets", []):
            expression = with_variables(target["expr"])
            since = None if target.get("instant") else begun
            name = f"panel {panel['id']} ({panel['title']}), {target['refId']}: {target['expr']}"
            pending.add(name, lambda expression=expression, since=since: prometheus.has_result(expression, since))
            count += 1
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "query":
            continue
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", with_variables(variable["definition"])).groups()
        query = lambda series=series, label=label: prometheus.get(f"label/{label}/values", **{"match[]": series})
        pending.add(f"variable {variable['name']}", query)
        count += 1
    return count


def rule_queries(prometheus, pending):
    """Adds a check that each rule is evaluated without error and each recording rule has a result."""
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    for number, rule in enumerate(rules):
        name = f"rule {number} ({rule['name']})"

        def query(number=number, rule=rule):
            now = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]][number]
            if now["health"] == "err":
                raise ValueError(now["lastError"])
            if rule["type"] == "recording":
                return now["health"] == "ok" and prometheus.has_result(rule["name"])
            prometheus.get("query", query=rule["query"])
            return now["health"] == "ok"

        pending.add(name, query)
    # An alert on a label that does not exist would never fire.
    for selector in sorted({found for rule in rules for found in SELECTOR.findall(rule["query"])}):
        pending.add(f"selector of a rule: {selector}", lambda selector=selector: prometheus.has_result(selector))
    return rules


def exemplar_query(prometheus, begun, pending):
    """Adds a check that Prometheus has the trace of a hit, which is only in the OpenMetrics format."""
    buckets = 'workspace_gateway_request_duration_seconds_bucket{result="hit"}'

    def query():
        found = prometheus.get("query_exemplars", query=buckets, start=begun, end=time.time())
        return any(exemplar["labels"]["trace_id"] == TRACE for series in found for exemplar in series["exemplars"])

    pending.add("exemplars of hits", query)


def unknown_families(texts, page, rules):
    """Yields the families that are named and do not exist."""
    known = set(re.findall(r"^# TYPE (\w+)", page, re.MULTILINE))
    histograms = set(re.findall(r"^# TYPE (\w+) histogram", page, re.MULTILINE))
    known |= {name + part for name in histograms for part in ("_bucket", "_sum", "_count")}
    recorded = {rule["name"] for rule in rules}
    for text in texts:
        yield from set(RECORDED.findall(text)) - recorded
        yield from set(FAMILY.findall(RECORDED.sub("", text))) - known


def main(program):
    dashboard = json.loads(DASHBOARD.read_text())
    with contextlib.ExitStack() as stack:
        scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dashboard-")))
        demo = stack.enter_context(Process([program, "demo"], "stdout"))
        example = demo.wait_for(r"X-Auth-Token: (\S+)' 'http://([^/]+)/v2/(\w+)/", SCENES)
        token, gateway, project = example.groups()
        target = demo.wait_for(r"http://([^/]+)/metrics", SCENES)[1]

        config = (PROMETHEUS / "prometheus.yml").read_text()
        rules = str(PROMETHEUS / "rules.yml")
        for original, replacement in [("15s", "1s"), ("127.0.0.1:9090", target), ("rules.yml", rules)]:
            if original not in config:
                sys.exit(f"prometheus.yml does not contain {original}")
            config = re.sub(rf"(?<=[ \"]){re.escape(original)}(?=[\"\n])", replacement, config)
        (scratch / "prometheus.yml").write_text(config)
        features = "--enable-feature=exemplar-storage"
        command = ["prometheus", features, f"--config.file={scratch}/prometheus.yml", f"--storage.tsdb.path={scratch}/data"]
        daemon = stack.enter_context(Process([*command, "--web.listen-address=127.0.0.1:0"], "stderr"))
        prometheus = Prometheus(daemon.wait_for(r'msg="Listening on" address=(\S+)', SCENES)[1])
        daemon.wait_for("Server is ready to receive web requests", SCENES)

        begun = time.time()
        load = stack.enter_context(Load(gateway, token, project))
        pending = Pending()
        queries = dashboard_queries(dashboard, prometheus, pending, begun)
        rules = rule_queries(prometheus, pending)
        exemplar_query(prometheus, begun, pending)
        while pending.queries and not load.failed and time.time() < begun + RESULTS:
            pending.poll()
            time.sleep(POLL_INTERVAL)
        connection = http.client.HTTPConnection(target, timeout=10)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()

    texts = [target["expr"] for panel in panels(dashboard["panels"]) for target in panel.get("targets", [])]
    texts += [variable.get("definition", "") for variable in dashboard["templating"]["list"]]
    texts += [rule["query"] for rule in rules]
    wrong = [f"the load failed: {error}" for error in load.failed]
    wrong += [f"{name}: {pending.errors[name]}" for name in pending.queries]
    wrong += [f"there is no {name}" for name in sorted(set(unknown_families(texts, page, rules)))]
    tests = (PROMETHEUS / "rules_test.yml").read_text()
    alerts = [rule["name"] for rule in rules if rule["type"] == "alerting"]
    wrong += [f"rules_test.yml has no test of {name}" for name in alerts if f'alertname="{name}"' not in tests]
    if wrong:
        sys.exit("\n".join(wrong))
    rounds = next(load.number)
    print(f"{queries} queries of the dashboard have results, {len(rules)} rules are evaluated; {rounds} rounds of load")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(str(pathlib.Path(sys.argv[1]).resolve()))
