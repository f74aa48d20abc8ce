"""The admin API held against its own OpenAPI document by schemathesis, which knows nothing of Keygate.

Run by `make test` with a fixed seed, and longer by `make test-openapi`. Starts a gateway on free ports.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
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
scopes = ["app"]
"""


def main():
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "keygate.toml").write_text(CONFIG)
        gateway = subprocess.Popen([BINARY, "run", "--ready-json", "--config", "keygate.toml"], cwd=folder, env={},
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            address = json.loads(gateway.stdout.readline())["admin"]
            token = pathlib.Path(folder, "data/admin.token").read_text().strip()
            # A call that needs a workspace finds that of the token.
            ask = urllib.request.Request(f"http://{address}/apikeys", headers={"Authorization": f"Bearer {token}"})
            urllib.request.urlopen(ask).close()
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
