"""Servers that pages of the documentation need: each on a free port, in the folder of the page, ended with it."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import time

PATIENCE = 60
# Keygate grants nothing for a second of what it finds in a Redis that may just have lost its counts (docs/explanation/redis.md).
YOUNG = 2
NOBODY = 65534


def programs_of_postgres():
    """The folder with the programs of PostgreSQL's server: Debian's newest, or one of PATH."""
    folders = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders += [pathlib.Path(folder) for folder in os.environ["PATH"].split(":")]
    found = [folder for folder in folders if all((folder / name).exists() for name in ("initdb", "postgres"))]
    assert found, "PostgreSQL's server programs are missing: apt-get install postgresql"
    return found[0]


def accepts(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A server process. `stands_for` is the port of the page that it stands for, or `places` what else is replaced there."""

    def __init__(self, command, port, folder, stands_for=None, places=None, **more):
        self.ports, self.places = {stands_for: port}, places or {}
        with (folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, **more)
        until = time.monotonic() + PATIENCE
        while not accepts(port):
            assert self.process.poll() is None and time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.05)

    def stop(self):
        self.process.kill()
        self.process.wait()


def redis(folder, port):
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--requirepass", "hunter2", "--save", ""]
    server = Server(command, port, folder, stands_for="6379")
    until = time.monotonic() + PATIENCE
    while uptime(port) < YOUNG:
        if time.monotonic() > until:
            server.stop()
            raise AssertionError("Redis does not say how long it has been running")
        time.sleep(0.05)
    return server


def uptime(port):
    """For how many seconds the Redis of a page has been running, by its own clock."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as link:
        link.sendall(b"AUTH hunter2\r\nINFO server\r\nQUIT\r\n")
        said = b"".join(iter(lambda: link.recv(65536), b""))
    found = re.search(rb"uptime_in_seconds:(\d+)", said)
    return int(found[1]) if found else 0


def postgres(folder, port):
    """A database `keygate` of a user `keygate`, whose password is the one of the page."""
    programs, data = programs_of_postgres(), folder / "data"
    password = folder / "password"
    password.write_text("trial")
    # PostgreSQL refuses to run as root.
    more = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    if more:
        for path in (folder, password):
            shutil.chown(path, NOBODY, NOBODY)
        folder.parent.chmod(0o755)
    initdb = [programs / "initdb", "-D", data, "-U", "keygate", "-A", "scram-sha-256", "--pwfile", password, "--no-sync", "-E", "UTF8"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **more)
    command = [programs / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"]
    server = Server(command, port, folder, places={"@127.0.0.1/keygate": f"@127.0.0.1:{port}/keygate"}, **more)
    create = [programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "keygate", "keygate"]
    # It accepts connections a moment before it serves them.
    until = time.monotonic() + PATIENCE
    while (made := subprocess.run(create, capture_output=True, env={**os.environ, "PGPASSWORD": "trial"})).returncode:
        if time.monotonic() > until:
            server.stop()
            raise AssertionError(made.stderr.decode())
        time.sleep(0.05)
    return server


def start(what, folder, port):
    own = folder / f".{what}"
    own.mkdir()
    return {"postgres": postgres, "redis": redis}[what](own, port)
