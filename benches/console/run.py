"""How long the console's pages take on a large store: `run.py BINARY [--keys N] [--records N] [--workspaces N]`, run by `make bench-console`.

The store is SQLite, filled by SQL with the rows that a gateway would have written; the requests are spread over the keys roughly as by Zipf's law. A page's
time is from the request to the last byte of the answer, on a connection that is open: the server's time and the loopback.
"""

import argparse
import http.client
import json
import pathlib
import sqlite3
import statistics
import subprocess
import tempfile
import time

ARGUMENTS = argparse.ArgumentParser()
ARGUMENTS.add_argument("binary", type=pathlib.Path)
ARGUMENTS.add_argument("--keys", type=int, default=1_000_000)
ARGUMENTS.add_argument("--records", type=int, default=10_000_000)
ARGUMENTS.add_argument("--workspaces", type=int, default=1_000)
ARGUMENTS.add_argument("--rounds", type=int, default=30)
ARGUMENTS.add_argument("--at-most", type=float, metavar="MS", help="fail if the median of a page takes longer")

CONFIG = """
[proxy]
listen = ["127.0.0.1:0"]
[admin]
listen = "127.0.0.1:0"
[log]
level = "warn"
"""
DAYS = 30
SPEED = "PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY; PRAGMA cache_size = -2000000; PRAGMA temp_store = MEMORY;"
# An id by its number, as SQL: sixteen bytes in the order of age.
ID = "cast(printf('%016x', {}) AS BLOB)"
WORKSPACE = "'ws-' || ({} % :workspaces)"
COUNTED = "count(*), sum(outcome = 'denied'), sum(status_code >= 500), sum(charged), sum(tokens_used), sum(bytes_in), sum(bytes_out), max(at), sum(charged), sum(response_time_us)"
COUNTS = "requests, denied, errors, charged, tokens, bytes_in, bytes_out, last_at, response_count, response_us_sum"


class Gateway:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary.resolve(), folder
        (folder / "keygate.toml").write_text(CONFIG)

    def start(self):
        command = [self.binary, "run", "--config", "keygate.toml", "--ready-json"]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, text=True)
        self.admin = json.loads(self.process.stdout.readline())["admin"]

    def stop(self):
        self.process.terminate()
        assert self.process.wait(60) == 0

    def token(self):
        command = [self.binary, "token", "--role", "platform", "--config", "keygate.toml"]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout.strip()


def fill(path, given):
    store = sqlite3.connect(path)
    store.executescript(SPEED)
    now = int(time.time() * 1e6)
    names = {"keys": given.keys, "workspaces": given.workspaces, "records": given.records, "now": now, "span": DAYS * 86_400_000_000 // given.records}
    counting = "WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < {})"
    store.execute(f"""{counting.format(':workspaces')} INSERT INTO workspaces (id, name, plan_id, end_users, created_at, updated_at, version)
        SELECT 'ws-' || n, '', 'default', 0, :now, :now, n + 1 FROM n""", names)
    store.execute(f"""{counting.format(':keys')} INSERT INTO keys (id, workspace_id, kind, scopes, resource_id, name, description, metadata, hint,
            search_text, rate_limit, daily_request_limit, limits, allowed_ips, is_active, digest, pepper_version, secret_id, created_by, created_at, updated_at, version)
        SELECT {ID.format('n')}, {WORKSPACE.format('n')}, 'service', 'app', {WORKSPACE.format('n')}, 'key ' || n, '', '{{}}', 'sk-service-Ab3d…9fQz', 'key ' || n,
            50, 100000, '[]', '[]', 1, cast(printf('%032x', n) AS BLOB), 1, n + 1, 'bench', :now - 1000 * (:keys - n), :now, :workspaces + n + 1 FROM n""", names)
    store.execute("UPDATE change_seq SET value = :workspaces + :keys + 1", names)
    store.commit()
    store.execute(f"""{counting.format(':records')} INSERT INTO usage (id, request_id, api_key_id, workspace_id, at, method, endpoint, route, status_code, outcome, denial,
            charged, degraded, response_time_us, ttfb_us, bytes_in, bytes_out, tokens_used, ip_address, user_agent, upstream, node)
        SELECT {ID.format('at')}, printf('r-%x', n), k.id, k.workspace_id, at, 'POST',
            '/v1/app/' || (d % 6), 'app', CASE WHEN d % 50 = 0 THEN 429 WHEN d % 1000 = 1 THEN 502 ELSE 200 END, CASE WHEN d % 50 = 0 THEN 'denied' ELSE 'served' END,
            CASE WHEN d % 50 = 0 THEN 'rate_limit_exceeded' END, d % 50 > 0, 0, 20000 + d % 900000, 10000 + d % 400000, 300 + d % 4000, 900 + d % 20000, d % 3000, '10.0.0.1',
            'OpenAI/Python 1.52.0', '10.1.2.3:9001', 'node-1'
        FROM (SELECT n, (n * 2654435761 % 4294967296) / 16 AS d, :now - (:records - n) * :span AS at FROM n)
        CROSS JOIN keys k ON k.rowid = 1 + min(cast(pow(:keys, d / 268435456.0) AS INTEGER) - 1, :keys - 1)""", names)
    store.commit()
    # A multiple of the golden ratio instead of a random number above, so that every run has the same rows; the rank is the inverse of it. Latency sketches are empty: their size does not depend on the number of records.
    for width in [60, 3600, 86400, 0]:
        start = f"at / {width * 1_000_000} * {width * 1_000_000}" if width else "0"
        # Minutes are kept for days only.
        since = " WHERE at >= :now - 172800000000" if width == 60 else ""
        for kind, subject in [(1, "api_key_id"), (2, "cast(workspace_id AS BLOB)")]:
            store.execute(f"""INSERT INTO usage_rollups (subject_kind, subject_id, width, start, {COUNTS}, sketch)
                SELECT {kind}, {subject}, {width}, {start} AS begin, {COUNTED}, x'' FROM usage{since} GROUP BY {subject}, begin""", names if since else {})
    for width in [86400, 0]:
        start = f"at / {width * 1_000_000} * {width * 1_000_000}" if width else "0"
        store.execute(f"""INSERT INTO usage_groups (workspace_id, kind, width, start, name, {COUNTS}, unreached, input_tokens, cached_tokens, cache_write_tokens,
                output_tokens, reasoning_tokens, audio_tokens, cost_nano)
            SELECT workspace_id, 1, {width}, {start} AS begin, cast(route AS BLOB), {COUNTED}, 0, 0, 0, 0, 0, 0, 0, 0 FROM usage GROUP BY workspace_id, begin""")
    store.commit()
    store.executescript("ANALYZE; PRAGMA journal_mode = WAL;")
    key = store.execute(f"SELECT lower(hex({ID.format('0')}))").fetchone()[0]
    store.close()
    return f"{key[:8]}-{key[8:12]}-{key[12:16]}-{key[16:20]}-{key[20:]}"


def measure(gateway, pages, rounds):
    connection = http.client.HTTPConnection(gateway.admin, timeout=300)
    home = f"http://{gateway.admin}"
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": home}
    connection.request("POST", "/console/sign-in", f"token={gateway.token()}", form)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 303, answer.status
    cookie = {"Cookie": answer.getheader("Set-Cookie").split(";")[0]}
    for name, path in pages.items():
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            connection.request("GET", path, headers=cookie)
            answer = connection.getresponse()
            size = len(answer.read())
            times.append((time.perf_counter() - begin) * 1e3)
            assert answer.status == 200, f"{path}: {answer.status}"
        yield name, times[0], statistics.median(times), max(times[1:], default=times[0]), size


def main():
    given = ARGUMENTS.parse_args()
    with tempfile.TemporaryDirectory(prefix="keygate-bench-") as folder:
        gateway = Gateway(given.binary, pathlib.Path(folder))
        gateway.start()
        gateway.stop()
        begin = time.perf_counter()
        key = fill(gateway.folder / "data/keygate.db", given)
        size = (gateway.folder / "data/keygate.db").stat().st_size
        print(f"{given.keys:,} keys of {given.workspaces:,} workspaces, {given.records:,} records: {size / 1e9:.1f} GB, filled in {time.perf_counter() - begin:.0f} s", flush=True)
        gateway.start()
        workspace = "/console/w/ws-0"
        pages = {"overview": workspace, "overview, 30 days": f"{workspace}?days=30", "keys": f"{workspace}/keys", "keys, searched": f"{workspace}/keys?search=key",
                 "keys, searched in vain": f"{workspace}/keys?search=nothing-like-it", "key": f"{workspace}/keys/{key}", "requests": f"{workspace}/keys/{key}/requests",
                 "requests with 502": f"{workspace}/keys/{key}/requests?status=502", "usage": f"{workspace}/usage", "limits and budgets": f"{workspace}/budgets",
                 "end users": f"{workspace}/end-users", "audit log": f"{workspace}/audit", "workspaces": "/console/workspaces", "workspace": "/console/workspaces/ws-0",
                 "plans": "/console/plans", "prices": "/console/prices", "nodes": "/console/node"}
        slow = []
        print("| page | first, ms | median, ms | slowest later, ms | KiB |\n|---|---|---|---|---|")
        for name, first, median, slowest, size in measure(gateway, pages, given.rounds):
            print(f"| {name} | {first:.1f} | {median:.1f} | {slowest:.1f} | {size / 1024:.0f} |", flush=True)
            slow += [name] if given.at_most and median > given.at_most else []
        gateway.stop()
        assert not slow, f"these take longer than {given.at_most} ms: {slow}"


main()
