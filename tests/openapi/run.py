"""The admin API held against its own OpenAPI document by schemathesis, which knows nothing of Keygate.

Run by `make test` with a fixed seed, and longer by `make test-openapi`. Starts a gateway on free ports.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

BINARY, *MORE = sys.argv[1:]
FOLDER = pathlib.Path(__file__).parent

CONFIG = """
[proxy]
listen = ["127.0.0.1:0"]
[admin]
listen = "127.0.0.1:0"
[plans.default]
api_ops_rate_limit = 10_000_000
end_user_quota = 10
[[upstreams]]
name = "nobody"
servers = ["127.0.0.1:9"]
[[routes]]
name = "app"
path = "/{rest*}"
upstream = "nobody"
resource = "any"
meter = "llm"
end_user = "header:X-End-User"
"""


def fill(ready, token):
    """Makes the workspace of the token, a key, and an end user for calls to find."""
    body = json.dumps({"name": "first", "scopes": ["app"]}).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"http://{ready['admin']}/apikeys", body, headers)) as answer:
        secret = json.load(answer)["data"]["api_key"]
    headers = {"Authorization": f"Bearer {secret}", "X-End-User": "first"}
    try:
        urllib.request.urlopen(urllib.request.Request(f"http://{ready['proxy']}/", headers=headers)).close()
    except urllib.error.HTTPError as error:
        # The backend is not there; the end user is, by then.
        assert error.code in (502, 503), error


def main():
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "keygate.toml").write_text(CONFIG)
        gateway = subprocess.Popen([BINARY, "run", "--ready-json", "--config", "keygate.toml"], cwd=folder,
                                   env={"KEYGATE_SECRETS_ENCRYPTION_KEYS": "1:" + "01" * 32},
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            ready = json.loads(gateway.stdout.readline())
            address = ready["admin"]
            token = pathlib.Path(folder, "data/admin.token").read_text().strip()
            fill(ready, token)
            environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(FOLDER)}
            program = pathlib.Path(sys.executable).with_name("schemathesis")
            command = [program, "--config-file", FOLDER / "schemathesis.toml", "run", f"http://{address}/openapi.json",
                       "--header", f"Authorization: Bearer {token}", "--no-color", "--checks", "all",
                       "--continue-on-failure", *MORE]
            verdict = subprocess.run(command, cwd=folder, env=environment).returncode
        finally:
            gateway.terminate()
            ended = gateway.wait(30)
    assert ended == 0, f"the gateway ended with {ended}"
    return verdict


if __name__ == "__main__":
    sys.exit(main())
