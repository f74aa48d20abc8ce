"""Renders the Helm chart with Helm itself, validates every object against Kubernetes' schemas, and compares it with the binary.

Run by `make check-deploy`.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

import helm_python
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(sys.argv[1]).resolve()
FOLDER = ROOT / "conf/helm/keygate"
KUBERNETES = "1.31"
SECRET = {"existingSecret": "keygate"}
AFTER_DRAINING = 15


def rendered(values):
    """The objects of the chart with these values, by kind and name."""
    chart = helm_python.Chart.load(FOLDER)
    texts = chart.render(values, name="gw", namespace="apis")
    documents = [document for name, text in texts.items() if name.endswith(".yaml") for document in yaml.safe_load_all(text)]
    objects = {(found["kind"], found["metadata"]["name"]): found for found in documents if found}
    for found in objects.values():
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
    return objects


def seconds(text):
    return float(re.fullmatch(r"([\d.]+)s", text).group(1))


def certificate(folder):
    """A certificate and its key, named as in a Secret of the type kubernetes.io/tls."""
    files = ["-keyout", folder / "tls.key", "-out", folder / "tls.crt"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=admin", *files]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def check_admin_tls(objects):
    pod = objects["StatefulSet", "gw"]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS", probe
    assert pod["metadata"]["annotations"]["prometheus.io/scheme"] == "https"
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volume = mounted[variables["KEYGATE_ADMIN_CERTIFICATES"]]
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume}
    assert secrets[volume] == "admin-tls-of-us", secrets


def check(objects, replicas):
    kinds = sorted(kind for kind, _ in objects)
    assert kinds == sorted(["ConfigMap", "Service", "Service", "Service", "StatefulSet"] + ["PodDisruptionBudget"] * (replicas > 1)), kinds
    nodes = objects["StatefulSet", "gw"]["spec"]
    assert nodes["replicas"] == replicas and ("Service", nodes["serviceName"]) in objects
    pod, labels = nodes["template"]["spec"], nodes["template"]["metadata"]["labels"]
    container = pod["containers"][0]
    for (kind, name), found in objects.items():
        if kind == "Service":
            assert found["spec"]["selector"].items() <= labels.items(), name
            ports = {port["name"] for port in container["ports"]}
            assert all(port["targetPort"] in ports for port in found["spec"]["ports"]), name
    variables = {entry["name"]: entry.get("value", "x") for entry in container["env"]}
    drain = seconds(variables["KEYGATE_PROXY_DRAIN_TIMEOUT"])
    assert pod["terminationGracePeriodSeconds"] >= drain + AFTER_DRAINING, "it may finish what it serves"
    mounts = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert any(variables["KEYGATE_USAGE_JOURNAL_DIR"].startswith(path) for path in mounts), "the journal is on a volume"
    # The binary takes the config and every variable.
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "keygate.toml"
        config.write_text(objects["ConfigMap", "gw"]["data"]["keygate.toml"])
        if "KEYGATE_ADMIN_CERTIFICATES" in variables:
            certificate(pathlib.Path(folder))
            variables["KEYGATE_ADMIN_CERTIFICATES"] = folder
        subprocess.run([BINARY, "check"], env={**variables, "KEYGATE_CONFIG": str(config)}, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([BINARY, *container["args"], "--help"], check=True, stdout=subprocess.DEVNULL)


def main():
    report = helm_python.lint(FOLDER, strict=True)
    assert not report["errors"] and all(message["severity"] < 2 for message in report["messages"]), report
    check(rendered({}), 1)
    check(rendered({"replicas": 3, **SECRET, "env": {"KEYGATE_LOG_LEVEL": "debug"}}), 3)
    encrypted = rendered({"admin": {"tlsSecret": "admin-tls-of-us"}})
    check(encrypted, 1)
    check_admin_tls(encrypted)
    try:
        rendered({"replicas": 2})
    except helm_python.HelmError as error:
        assert "existingSecret" in str(error), error
    else:
        raise AssertionError("two nodes without shared secrets are not refused")
    print("the chart renders, and Kubernetes and the binary take what it renders")


if __name__ == "__main__":
    main()
