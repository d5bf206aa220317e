#!/usr/bin/env python3
"""Renders deploy/kustomize and the Helm chart, and checks what is rendered. It needs no cluster.

- Each object is valid in the oldest and in the newest version of Kubernetes that the manifests are for. Objects of the
  Prometheus operator are checked against tests/operator_schemas.json.
- Each pod has the security properties and the resources that `must_be_secure` lists.
- `workspace-gateway check` accepts each config.toml.
- The chart and the overlays render the same stand-alone gateway, and the same fleet.
- The sidecar is the same container as the stand-alone gateway, where nothing makes it differ.
- The chart refuses wrong values, and says which.
- The rules for the Prometheus operator are those of deploy/prometheus/rules.yml.

    tests/kubernetes.py PROGRAM   kubectl and helm must be in PATH; for the Python packages see .ci/requirements.txt
    tests/kubernetes.py --write   makes the PrometheusRule of deploy/kustomize from rules.yml
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
KUSTOMIZE, CHART = ROOT / "deploy/kustomize", ROOT / "deploy/helm/workspace-gateway"
RULES = ROOT / "deploy/prometheus/rules.yml"
MADE_RULES = KUSTOMIZE / "components/monitoring/prometheus-rule.yaml"
SECRETS = "/run/secrets/workspace-gateway/"
VERSIONS = "1.29", "1.37"
OF_OPERATOR = "PodMonitor", "ServiceMonitor", "PrometheusRule"
# The release has the name of the objects in deploy/kustomize, so that both are called the same.
RELEASE = "workspace-gateway"
REQUIRED = "region=cn-north-4", "image.repository=registry.example/workspace-gateway"
FLEET = "fleet.enabled=true", "replicas=3"
EVERYTHING = {
    "region": "cn-north-4",
    "image": {"repository": "r.example/w", "digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "pull"}],
    "settings": {
        "mode": "cache",
        "upstream": {"max_calls": 64},
        "cache": {"ttl": {"max_stale": "0.5%", "min": "30s"}, "keyed_headers": ["x-language", "x-b"]},
        "listen": {"fast_path": False},
        "fleet": {"name": "a"},
        "limits": {"max_connections": 1000000, "half_close": "0s"},
        "log": {"format": "text"},
        "operation": [{"name": "ListProducts", "defaults": {"limit": "100", 'of"fset': '<"0&>'}}],
        "quota": [{"service": "workspace", "policy": "user", "limit": 200, "window": "5m"}],
    },
    "accessKeys": {"secret": "keys", "ids": ["EXAMPLEAK0EXAMPLEAK0", "EXAMPLEAK1EXAMPLEAK1"]},
    "adminToken": {"secret": "admin"},
    "fleet": {"enabled": True},
    "monitoring": {"scrape": "podMonitor", "rules": True, "labels": {"release": "prometheus"}, "interval": "15s"},
    "networkPolicy": {
        "ingress": [{"ports": [{"port": "proxy"}]}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}], "ports": [{"port": 3128}]}],
    },
    "env": [{"name": "HTTPS_PROXY", "value": "http://10.0.0.1:3128"}],
    "podLabels": {"a": "b"},
    "podAnnotations": {"c": "d"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}
# What is set, and what Helm says.
WRONG = [
    ("replicas=0", "at '/replicas': minimum: got 0, want 1"),
    ("replica=2", "at '': additional properties 'replica' not allowed"),
    ("region=CN", "at '/region': 'CN' does not match pattern"),
    ("region=null", "at '/region': got null, want string"),
    ("image.repository=null", "at '/image/repository': got null, want string"),
    ("image.digest=latest", "at '/image/digest': 'latest' does not match pattern"),
    ("settings.chache.ttl=1m", "at '/settings': additional properties 'chache' not allowed"),
    ("settings.listen.proxy=:80", "at '/settings/listen/proxy': value must be 'set by the chart'"),
    ("settings.cache.snapshot=/a", "at '/settings/cache/snapshot': value must be 'set by the chart'"),
    ("settings.access_key=a", "at '/settings/access_key': value must be 'set by the chart'"),
    ("tls.secret=", "at '/tls/secret': '' does not match pattern"),
    ("accessKeys.ids={AK}", "at '/accessKeys/secret': minLength: got 0, want 1"),
    ("accessKeys.secret=keys", "at '/accessKeys/secret': maxLength: got 4, want 0"),
    ("fleet.engine=http://a", "at '/fleet/engine': 'http://a' does not match pattern"),
    ("monitoring.scrape=both", "at '/monitoring/scrape': value must be one of 'annotations', 'podMonitor',"),
    ("resources.limits.memory=1G", "at '/resources/limits/memory': '1G' does not match pattern"),
    ("resources=null", "at '': missing property 'resources'"),
    ("podSecurityContext.runAsNonRoot=false", "at '/podSecurityContext/runAsNonRoot': value must be true"),
    ("podSecurityContext.runAsUser=0", "at '/podSecurityContext/runAsUser': minimum: got 0, want 1"),
    ("podSecurityContext.seccompProfile.type=Unconfined", "at '/podSecurityContext/seccompProfile/type': value"),
    ("securityContext.readOnlyRootFilesystem=false", "at '/securityContext/readOnlyRootFilesystem': value must be"),
    ("securityContext.capabilities.add={ALL}", "at '/securityContext/capabilities': additional properties 'add'"),
    ("securityContext=null", "at '': missing property 'securityContext'"),
]


def version():
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]


def run(*command, fails=False):
    """Runs a command. Returns its output, or if it has to fail, its error."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if (done.returncode != 0) != fails:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stderr if fails else done.stdout


def made_rules():
    """The text of the PrometheusRule in deploy/kustomize. The rules keep their comments."""
    head = """\
# Made from deploy/prometheus/rules.yml by `python3 tests/kubernetes.py --write`. Change that file instead.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: workspace-gateway
  labels:
    app.kubernetes.io/name: workspace-gateway
spec:
"""
    rules = RULES.read_text()
    return head + textwrap.indent(rules[rules.index("groups:\n") :], "  ")


def objects(text):
    """The objects of a rendering, by kind and name."""
    found = [document for document in yaml.safe_load_all(text) if document]
    by_name = {(document["kind"], document["metadata"]["name"]): document for document in found}
    assert len(by_name) == len(found), "an object is there twice"
    return by_name


def kustomize(folder):
    return objects(run("kubectl", "kustomize", folder))


def arguments(*values):
    return [word for value in values for word in ("--set", value)]


def helm(*values, chart=CHART, file=None):
    files = ["--values", file] if file else []
    return objects(run("helm", "template", RELEASE, chart, "--namespace", "gateway", *files, *arguments(*values)))


def pod_of(document):
    """The metadata and the specification of a workload's pods, or None."""
    template = document.get("spec", {}).get("template", {})
    return (template.get("metadata", {}), template["spec"]) if "spec" in template else None


def gateway_in(rendered):
    """The pods with the gateway, and its container."""
    for document in rendered.values():
        if pod := pod_of(document):
            for container in pod[1].get("initContainers", []) + pod[1].get("containers", []):
                if container["name"] == "workspace-gateway":
                    return pod[1], container
    raise AssertionError("no gateway")


def config_maps_of(pod):
    return [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]


def security_of(pod, container):
    """What is in force for a container. Its own context takes precedence."""
    return {**pod.get("securityContext", {}), **container.get("securityContext", {})}


def must_be_valid(rendered):
    schemas = json.loads((ROOT / "tests/operator_schemas.json").read_text())
    for (kind, name), document in rendered.items():
        try:
            if kind in OF_OPERATOR:
                schema = {"$ref": f"#/definitions/{kind}", "definitions": schemas["definitions"]}
                jsonschema.validate(document, schema)
            else:
                for release in VERSIONS:
                    kubernetes_validate.validate(document, release, strict=True)
        except (jsonschema.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            where = list(getattr(error, "absolute_path", []))
            sys.exit(f"{kind} {name} is not valid: {error.message} at {where}")


def must_be_secure(rendered):
    for key, document in rendered.items():
        if not (pod := pod_of(document)):
            continue
        _, pod = pod
        assert pod.get("automountServiceAccountToken") is False, (key, "has a token for the Kubernetes API")
        assert not [name for name in pod if name.startswith("host")], (key, "uses a namespace of the node")
        missing = {name for name in config_maps_of(pod) if ("ConfigMap", name) not in rendered}
        assert not missing, (key, missing)
        volumes = [kind for volume in pod["volumes"] for kind in volume if kind != "name"]
        assert set(volumes) <= {"configMap", "emptyDir", "projected", "secret"}, (key, volumes)
        for container in pod.get("initContainers", []) + pod["containers"]:
            security, where = security_of(pod, container), (*key, container["name"])
            assert security.get("runAsNonRoot") is True, (where, "may run as root")
            assert security.get("runAsUser", 1) != 0, (where, "runs as root")
            assert security.get("seccompProfile") == {"type": "RuntimeDefault"}, (where, security)
            assert security.get("allowPrivilegeEscalation") is False, (where, "may gain privileges")
            assert security.get("capabilities") == {"drop": ["ALL"]}, (where, security)
            assert security.get("readOnlyRootFilesystem") is True, (where, "may write to its root")
            resources = container.get("resources", {})
            assert set(resources.get("requests", {})) == {"cpu", "memory"}, (where, resources)
            assert "memory" in resources.get("limits", {}), (where, resources)


def must_be_accepted(rendered, program, secrets):
    """Has the gateway check the settings, with files in place of the Secrets. Returns the effective settings."""
    data = [document["data"] for (kind, _), document in rendered.items() if kind == "ConfigMap"]
    [text] = (files["config.toml"] for files in data if "config.toml" in files)
    config = secrets / "config.toml"
    config.write_text(text.replace(SECRETS, f"{secrets}/"))
    return tomllib.loads(run(program, "check", "--config", config))


def make_secrets(folder):
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=workspace-gateway"
    run("openssl", "req", *options.split(), "-keyout", folder / "tls.key", "-out", folder / "tls.crt")
    shutil.copy(folder / "tls.crt", folder / "engine-ca.crt")
    (folder / "access-keys").mkdir()
    keys = [f"access-keys/{id}" for id in EVERYTHING["accessKeys"]["ids"]]
    for name in ["fleet-secret", "engine-password", "admin-token", *keys]:
        (folder / name).write_text("0" * 31 + "1")
        (folder / name).chmod(0o600)


def comparable(value):
    """Without the labels that only Helm sets, with settings instead of their text, and with volumes in one order."""
    if isinstance(value, list):
        items = [comparable(item) for item in value]
        has_names = items and all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: item["name"]) if has_names else items
    if isinstance(value, dict):
        of_app = {f"app.kubernetes.io/{name}" for name in ("instance", "version", "managed-by")}
        return {
            key: tomllib.loads(item) if key == "config.toml" else comparable(item)
            for key, item in value.items()
            if key not in of_app | {"helm.sh/chart"}
        }
    return value


def must_agree(left, right, where):
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted({*left, *right}, key=str):
            must_agree(left.get(key), right.get(key), (*where, key))
    elif left != right:
        sys.exit(f"{' '.join(map(str, where))}: {left} and {right}")


def sidecar_must_be_the_gateway(sidecar, standalone):
    (_, container), (other_pod, other) = gateway_in(sidecar), gateway_in(standalone)
    for field in "image", "startupProbe", "livenessProbe", "readinessProbe":
        must_agree(container[field], other[field], ("sidecar and stand-alone", field))
    wanted = {key: value for key, value in security_of(other_pod, other).items() if key != "fsGroup"}
    must_agree(container["securityContext"], wanted, ("sidecar and stand-alone", "securityContext"))
    assert container["env"][0] == other["env"][0] and container["ports"][0] in other["ports"], container


def limits_must_be_those_of_the_files(sidecar, standalone, fleet):
    """tests/deploy.rs reads the memory limits from these files."""
    base, of_sidecar = KUSTOMIZE / "base/deployment.yaml", KUSTOMIZE / "components/sidecar/gateway.yaml"
    for rendered, file in (sidecar, of_sidecar), (standalone, base), (fleet, base):
        _, container = gateway_in(objects(file.read_text()))
        assert gateway_in(rendered)[1]["resources"] == container["resources"], file


def own_kustomization(folder):
    """Follows deploy/README.md in a folder of its own. Returns what is rendered there."""
    guide = (ROOT / "deploy/README.md").read_text().split("### Your own kustomization\n")[1].split("\n### ")[0]
    (folder / "kustomization.yaml").write_text(guide.split("```yaml\n")[1].split("```")[0])
    shutil.copytree(KUSTOMIZE, folder / "workspace-gateway/deploy/kustomize")
    (folder / "config.toml").write_text('region = "eu-west-101"\n')
    rendered = kustomize(folder)
    assert rendered["ConfigMap", "workspace-gateway"]["data"] == {"config.toml": 'region = "eu-west-101"\n'}
    assert gateway_in(rendered)[1]["image"] == f"registry.yours/workspace-gateway:{version()}"
    assert {("PodMonitor", "workspace-gateway"), ("PrometheusRule", "workspace-gateway")} <= rendered.keys()
    metadata, _ = pod_of(rendered["Deployment", "workspace-gateway"])
    assert not metadata["annotations"], "two ways lead Prometheus to the gateway"
    return rendered


def rules_must_be_the_same(monitored, chart):
    if MADE_RULES.read_text() != made_rules():
        sys.exit(f"{MADE_RULES.relative_to(ROOT)} differs from rules.yml: run python3 tests/kubernetes.py --write")
    rules = yaml.safe_load(RULES.read_text())
    for rendered in monitored, chart:
        must_agree(rendered["PrometheusRule", "workspace-gateway"]["spec"], rules, ("rules",))


def wrong_values_must_be_refused():
    for value, message in WRONG:
        error = run("helm", "template", RELEASE, CHART, *arguments(*REQUIRED, value), fails=True)
        assert message in error, (value, message, error)
    error = run("helm", "template", RELEASE, CHART, fails=True)
    assert "at '': missing property 'region'" in error and "at '/image': missing property 'repository'" in error, error
    # The schema knows the sections of the configuration.
    reference = (ROOT / "config/workspace-gateway.toml").read_text()
    known = {*tomllib.loads(reference), *re.findall(r"^# \[\[(\w+)\]\]$", reference, flags=re.MULTILINE), "region"}
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["settings"]["properties"]) == known, known


def notes_must_have_the_clients_lines():
    command = "helm", "install", "edge", CHART, "--namespace", "shop", "--dry-run=client"
    notes = run(*command, *arguments(*REQUIRED)).split("\nNOTES:\n")[1]
    for line in [
        "https://edge-workspace-gateway.shop.svc\n",
        '-H "X-Auth-Token: $TOKEN" https://edge-workspace-gateway.shop.svc/v2/$PROJECT/products\n',
        "HUAWEICLOUD_SDK_REGION_WORKSPACE_CN_NORTH_4=https://edge-workspace-gateway.shop.svc\n",
        'workspace-gateway/client: "true"\n',
        "kubectl -n shop port-forward deployment/edge-workspace-gateway 9091\n",
    ]:
        assert line in notes, (line, notes)


def versions_must_be_that_of_the_program(rendered):
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    tags = {gateway_in(objects)[1]["image"].split(":")[1] for objects in rendered}
    assert {chart["version"], chart["appVersion"], *tags} == {version()}, (chart, tags)


def main(program, scratch):
    overlays = {name: kustomize(KUSTOMIZE / "overlays" / name) for name in ("sidecar", "standalone", "fleet")}
    everything = scratch / "everything.yaml"
    everything.write_text(json.dumps(EVERYTHING))
    charts = {
        "default values": helm(*REQUIRED),
        "a fleet": helm(*REQUIRED, *FLEET),
        "everything": helm(file=everything),
        "everything, without a fleet": helm("monitoring.scrape=serviceMonitor", "fleet.enabled=false", file=everything),
    }
    run("helm", "lint", "--strict", CHART, "--values", everything)
    run("helm", "package", CHART, "--destination", scratch)
    [package] = scratch.glob("*.tgz")
    must_agree(helm(file=everything, chart=package), charts["everything"], ("the packaged chart",))
    own = scratch / "own"
    own.mkdir()
    monitored = own_kustomization(own)

    secrets = scratch / "secrets"
    secrets.mkdir()
    make_secrets(secrets)
    effective = {}
    for name, rendered in [*overlays.items(), ("your own kustomization", monitored), *charts.items()]:
        must_be_valid(rendered)
        must_be_secure(rendered)
        effective[name] = must_be_accepted(rendered, program, secrets)
        print(f"{name}: {len(rendered)} objects are valid and secure, and the gateway accepts config.toml")
    assert effective["everything"]["limits"]["max_connections"] == 1000000, "a number does not arrive"
    [operation] = (item for item in effective["everything"]["operation"] if item["name"] == "ListProducts")
    assert operation["defaults"] == EVERYTHING["settings"]["operation"][0]["defaults"], operation
    assert [effective[name]["log"]["format"] for name in ("default values", "everything")] == ["json", "text"]

    must_agree(comparable(charts["default values"]), comparable(overlays["standalone"]), ("chart and kustomize",))
    gateways = {key: value for key, value in overlays["fleet"].items() if not key[1].endswith("-valkey")}
    must_agree(comparable(charts["a fleet"]), comparable(gateways), ("chart and kustomize, fleet",))
    print("the chart and the overlays agree, stand-alone and as a fleet")
    sidecar_must_be_the_gateway(overlays["sidecar"], overlays["standalone"])
    limits_must_be_those_of_the_files(**overlays)
    rules_must_be_the_same(monitored, charts["everything"])
    wrong_values_must_be_refused()
    print(f"the chart refuses {len(WRONG)} wrong values, and names each")
    notes_must_have_the_clients_lines()
    versions_must_be_that_of_the_program([*overlays.values(), charts["default values"]])
    print("NOT CHECKED: a cluster. Nothing was applied to an API server")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        MADE_RULES.write_text(made_rules())
        sys.exit()
    import jsonschema
    import kubernetes_validate
    import yaml

    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1], pathlib.Path(scratch))
