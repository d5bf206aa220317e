#!/usr/bin/env python3
"""Runs every query of the Grafana dashboard, and of the Prometheus rules, by a real Prometheus that scrapes a real gateway.

The gateway is that of `workspace-gateway demo`, which stays up after its scenes (a stampede, an outage, a 429, refused
callers), and is then asked on and on here. Prometheus runs with deploy/prometheus/prometheus.yml, only faster and for this
target. Held to: no query fails, none of the dashboard's comes back empty or as NaN only, each variable of it has values, each
rule is evaluated, each recording rule has recorded something, what any rule selects is there, every family that is
named anywhere exists, and rules_test.yml has every alert.

    tests/dashboard.py PROGRAM       takes `prometheus` from Debian; less than a minute
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
# For the demo to play its scenes; and for all queries to have answers, once it has.
SCENES, ANSWERS = 30, 25
PAUSE = 0.2
# What Grafana would fill in. Two samples of one second each are enough for a rate; the rest is room for a busy machine.
VARIABLES = {
    "__rate_interval": "8s",
    "__range": "30s",
    "__interval": "1s",
    "datasource": "prometheus",
    "job": "workspace-gateway",
    "instance": ".+",
}
FAMILY = re.compile(r"\b(?:workspace_gateway|process)_\w+")
RECORDED = re.compile(r"\b[a-z_]+:\w+:\w+")
SELECTOR = re.compile(r"\b(?:workspace_gateway_\w+|process_\w+|up)\{[^}]*\}")


class Process:
    """A program of which a line is awaited. It is killed at the end, whatever comes between."""

    def __init__(self, command, stream):
        self.said, self.news = [], threading.Condition()
        self.child = subprocess.Popen(command, **{stream: subprocess.PIPE}, text=True, env=self.environment())
        self.stream = getattr(self.child, stream)
        threading.Thread(target=self.read, daemon=True).start()

    @staticmethod
    def environment():
        return {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}

    def read(self):
        for line in itertools.chain(self.stream, [None]):
            with self.news:
                self.said.append(line)
                self.news.notify_all()

    def says(self, pattern, seconds):
        """The match of the first line that has one."""

        def found():
            return next((match for line in self.said if line and (match := re.search(pattern, line))), None)

        with self.news:
            self.news.wait_for(lambda: found() or None in self.said, seconds)
        return found() or sys.exit(f"{self.child.args[0]} has not said {pattern}:\n" + "".join(filter(None, self.said)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()


class Load:
    """Asks the gateway for all that it does, again and again, on some connections."""

    CONNECTIONS = 3

    def __init__(self, address, token, project):
        self.address, self.token, self.project = address, token, project
        self.number, self.over, self.failed = itertools.count(), threading.Event(), []
        self.threads = [threading.Thread(target=self.run) for _ in range(self.CONNECTIONS)]

    def asks(self, number):
        """What the n-th round asks: path, and token."""
        v2, v1 = f"/v2/{self.project}", f"/v1/{self.project}"
        yield from [(f"{v2}/products?limit=2", self.token)] * 20
        yield f"{v1}/product?limit=2", self.token
        # Questions that nobody has asked before, and one that expires.
        yield f"{v2}/products?offset={number}", self.token
        yield f"{v1}/product?offset={number}", self.token
        yield f"{v2}/products/sharer?limit=3", self.token
        # To be forwarded as it is, to pass through, to be refused by upstream, from memory and at once.
        yield f"{v2}/products?os_type=a+b", self.token
        yield f"{v2}/desktops", self.token
        yield f"{v1}/apps", self.token
        yield f"{v2}/products", f"wrong-{number}"
        yield f"{v2}/products", "wrong"
        yield "/nowhere", self.token

    def run(self):
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            while not self.over.is_set():
                for path, token in self.asks(next(self.number)):
                    connection.request("GET", path, headers={"x-auth-token": token})
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
        self.over.set()
        for thread in self.threads:
            thread.join()


class Prometheus:
    """Prometheus' HTTP API."""

    def __init__(self, address):
        self.address = address

    def get(self, path, **parameters):
        connection = http.client.HTTPConnection(self.address, timeout=10)
        connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        if answer["status"] != "success":
            raise ValueError(answer.get("error", "it gives no reason"))
        return answer["data"]

    def has(self, expression, begun=None):
        """Whether a query has any figure, at a moment or since then."""
        if begun is None:
            found = self.get("query", query=expression)["result"]
            values = [series["value"][1] for series in found]
        else:
            found = self.get("query_range", query=expression, start=begun, end=time.time(), step=1)["result"]
            values = [value for series in found for _, value in series["values"]]
        return any(value != "NaN" for value in values)


def filled_in(text):
    text = re.sub(r"\$\{?(\w+)(?::\w+)?\}?", lambda found: VARIABLES.get(found[1], found[0]), text)
    if "$" in text:
        sys.exit(f"a variable that this test doesn't know: {text}")
    return text


def panels(of):
    for panel in of:
        yield panel
        yield from panels(panel.get("panels", []))


class Pending:
    """What has to have an answer yet: by name, and how to see it. Gone as soon as it has one."""

    def __init__(self):
        self.asks, self.why = {}, {}

    def add(self, name, ask):
        if name in self.asks:
            sys.exit(f"{name}: there are two of them")
        self.asks[name] = ask

    def look(self):
        for name, ask in list(self.asks.items()):
            try:
                if ask():
                    del self.asks[name]
                else:
                    self.why[name] = "is empty"
            except ValueError as error:
                self.why[name] = f"fails: {error}"


def dashboard_queries(dashboard, prometheus, pending, begun):
    """Each target of each panel, and each variable."""
    count = 0
    for panel in panels(dashboard["panels"]):
        for target in panel.get("targets", []):
            expression = filled_in(target["expr"])
            since = None if target.get("instant") else begun
            name = f"panel {panel['id']} ({panel['title']}), {target['refId']}: {target['expr']}"
            pending.add(name, lambda expression=expression, since=since: prometheus.has(expression, since))
            count += 1
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "query":
            continue
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", filled_in(variable["definition"])).groups()
        ask = lambda series=series, label=label: prometheus.get(f"label/{label}/values", **{"match[]": series})
        pending.add(f"variable {variable['name']}", ask)
        count += 1
    return count


def rule_queries(prometheus, pending):
    """Each rule has been evaluated well, and what it records is there. Alerts may have nothing to tell."""
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    for number, rule in enumerate(rules):
        name = f"rule {number} ({rule['name']})"

        def ask(number=number, rule=rule):
            now = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]][number]
            if now["health"] == "err":
                raise ValueError(now["lastError"])
            if rule["type"] == "recording":
                return now["health"] == "ok" and prometheus.has(rule["name"])
            prometheus.get("query", query=rule["query"])
            return now["health"] == "ok"

        pending.add(name, ask)
    # An alert on a label that nothing has would never fire, and never fail.
    for selector in sorted({found for rule in rules for found in SELECTOR.findall(rule["query"])}):
        pending.add(f"what rules select: {selector}", lambda selector=selector: prometheus.has(selector))
    return rules


def unknown_families(texts, page, rules):
    """Families that are named and don't exist."""
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
        invitation = demo.says(r"X-Auth-Token: (\S+)' 'http://([^/]+)/v2/(\w+)/", SCENES)
        token, gateway, project = invitation.groups()
        target = demo.says(r"http://([^/]+)/metrics", SCENES)[1]

        config = (PROMETHEUS / "prometheus.yml").read_text()
        for real, here in [("15s", "1s"), ("127.0.0.1:9090", target), ("rules.yml", str(PROMETHEUS / "rules.yml"))]:
            if real not in config:
                sys.exit(f"prometheus.yml has no {real} any more")
            config = re.sub(rf"(?<=[ \"]){re.escape(real)}(?=[\"\n])", here, config)
        (scratch / "prometheus.yml").write_text(config)
        command = ["prometheus", f"--config.file={scratch}/prometheus.yml", f"--storage.tsdb.path={scratch}/data"]
        daemon = stack.enter_context(Process([*command, "--web.listen-address=127.0.0.1:0"], "stderr"))
        prometheus = Prometheus(daemon.says(r'msg="Listening on" address=(\S+)', SCENES)[1])
        daemon.says("Server is ready to receive web requests", SCENES)

        begun = time.time()
        load = stack.enter_context(Load(gateway, token, project))
        pending = Pending()
        queries = dashboard_queries(dashboard, prometheus, pending, begun)
        rules = rule_queries(prometheus, pending)
        while pending.asks and not load.failed and time.time() < begun + ANSWERS:
            pending.look()
            time.sleep(PAUSE)
        connection = http.client.HTTPConnection(target, timeout=10)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()

    texts = [target["expr"] for panel in panels(dashboard["panels"]) for target in panel.get("targets", [])]
    texts += [variable.get("definition", "") for variable in dashboard["templating"]["list"]]
    texts += [rule["query"] for rule in rules]
    wrong = [f"the load failed: {error}" for error in load.failed]
    wrong += [f"{name}: {pending.why[name]}" for name in pending.asks]
    wrong += [f"there is no {name}" for name in sorted(set(unknown_families(texts, page, rules)))]
    shown = (PROMETHEUS / "rules_test.yml").read_text()
    alerts = [rule["name"] for rule in rules if rule["type"] == "alerting"]
    wrong += [f"rules_test.yml does not show {name} fire" for name in alerts if f'alertname="{name}"' not in shown]
    if wrong:
        sys.exit("\n".join(wrong))
    rounds = next(load.number)
    print(f"{queries} queries of the dashboard have figures, {len(rules)} rules are evaluated; {rounds} rounds of load")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(str(pathlib.Path(sys.argv[1]).resolve()))
