"""Follows pages of the documentation: runs their shell blocks as they stand there, one page after the other, and compares the output.

`follow.py BINARY [PAGE…]`. A page is followed in a folder of its own by one shell, so that variables and background jobs live on.

- Addresses on this machine are replaced by free ones: `127.0.0.1:8080`, `:8081` and so on. Nothing listens on a fixed port.
- A block that is only `keygate run …` is what the reader leaves running in another terminal: it is started in the background, and the next
  block waits until the gateway is ready. A second one replaces the first.
- A `text` or `json` block after a `sh` block is its output: each of its lines must be in the output, in this order; `…` stands for anything.
- `<!-- not followed: WHY -->` before a block leaves it out.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import servers

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(sys.argv[1]).resolve()
PATIENCE = 60
TUTORIAL = "docs/tutorial/first-request.md"
# What a page begins with besides the binary: servers that are started for it, or the gateway and the key of the tutorial.
PAGES = {
    "README.md": [],
    TUTORIAL: [],
    "docs/how-to/fastapi.md": [],
    "docs/how-to/openai.md": [],
    "docs/how-to/mcp.md": [],
    "docs/how-to/command-line.md": ["tutorial"],
    "docs/how-to/gitops.md": ["tutorial"],
    "docs/how-to/plans.md": ["tutorial"],
    "docs/how-to/rotate-a-key.md": ["tutorial"],
    "docs/how-to/rotate-the-pepper.md": ["tutorial"],
    "docs/how-to/import-keys.md": [],
    "docs/how-to/backup.md": ["tutorial"],
    "docs/how-to/upgrade.md": ["tutorial"],
    "docs/how-to/tls.md": ["tutorial"],
    "docs/how-to/load-balancers.md": ["tutorial"],
    "docs/how-to/existing-proxy.md": ["tutorial"],
    "docs/how-to/several-nodes.md": ["postgres", "redis"],
}
BLOCK = re.compile(r"^(?P<note><!-- not followed: [^\n]* -->\n)?```(?P<kind>sh|text|json)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def accepts(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def eventually(what, look):
    until = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < until, what
        time.sleep(0.05)


class Page:
    """A shell in which a page is followed."""

    def __init__(self, name, folder, started):
        self.name, self.folder = name, folder
        self.ports = {told: port for server in started for told, port in server.ports.items()}
        self.places = {there: here for server in started for there, here in server.places.items()}
        tools = folder / ".tools"
        tools.mkdir()
        (tools / "keygate").symlink_to(BINARY)
        path = f"{tools}:{pathlib.Path(sys.prefix) / 'bin'}:{os.environ['PATH']}:/usr/sbin"
        self.output = folder / ".output"
        self.output.touch()
        self.log = (folder / ".log").open("a")
        # A group of its own, so that everything the page leaves running can be ended.
        # A page that leaves addresses to the defaults gets free ones, too.
        environment = {"PATH": path, "HOME": str(folder), "KEYGATE_PROXY_DRAIN_IDLE": "0ms",
                       "KEYGATE_PROXY_LISTEN": self.placed("127.0.0.1:8080"), "KEYGATE_ADMIN_LISTEN": self.placed("127.0.0.1:8081")}
        self.shell = subprocess.Popen(["bash", "-eu", "-o", "pipefail"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=self.log, text=True, start_new_session=True, env=environment)
        self.gateway = None

    def placed(self, text):
        """The text with the addresses and names of this run."""
        text = re.sub(r"\b127\.0\.0\.1:(\d{4,5})\b", lambda found: f"127.0.0.1:{self.port(found.group(1))}", text)
        text = re.sub(r"(\bport(?:_value:)?[ =])(\d{4,5})\b", lambda found: f"{found.group(1)}{self.port(found.group(2))}", text)
        for there, here in self.places.items():
            text = text.replace(there, here)
        return text

    def port(self, told):
        """The free port that stands for one of the page."""
        if told not in self.ports:
            self.ports[told] = free_port()
        return self.ports[told]

    def run(self, block):
        """Runs a block, and returns what it printed."""
        is_gateway = re.fullmatch(r"(?:[A-Z_]+=\S+ )*keygate run[^\n&]*\n", block) is not None
        text = self.placed(block)
        if is_gateway:
            self.stop_gateway()
            text = f"{text.rstrip()} & echo $! >{self.folder}/.gateway\n"
        before = self.output.stat().st_size
        self.shell.stdin.write(f"{{\n{text}}} >>{self.output} 2>&1\necho followed\n")
        self.shell.stdin.flush()
        late = threading.Timer(PATIENCE, self.end)
        late.start()
        line = self.shell.stdout.readline()
        late.cancel()
        with self.output.open() as output:
            output.seek(before)
            said = output.read()
        assert line == "followed\n", f"{self.name}: this block fails or does not end:\n{block}\n{said}{(self.folder / '.log').read_text()}"
        if is_gateway:
            self.gateway = int((self.folder / ".gateway").read_text())
            eventually(f"{self.name}: the gateway is ready", lambda: self.is_ready(self.port("8081")))
        elif re.search(r" &(?: +#.*)?$", block, re.MULTILINE):
            for port in re.findall(r"(?:127\.0\.0\.1:|port(?:_value:)?[ =])(\d{4,5})", text):
                eventually(f"{self.name}: port {port} accepts", lambda port=port: accepts(int(port)))
        return said

    @staticmethod
    def is_ready(port):
        def answers(scheme):
            command = ["curl", "-skf", "-o", "/dev/null", f"{scheme}://127.0.0.1:{port}/readyz"]
            return subprocess.run(command, check=False).returncode == 0

        return answers("http") or answers("https")

    def stop_gateway(self):
        if self.gateway:
            # The shell is its parent and collects it.
            self.shell.stdin.write(f"kill {self.gateway} 2>/dev/null || true; wait {self.gateway} 2>/dev/null || true; echo stopped\n")
            self.shell.stdin.flush()
            self.shell.stdout.readline()
            self.gateway = None

    def end(self):
        """Ends the shell and everything that it has started."""
        try:
            os.killpg(self.shell.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self):
        self.end()
        self.shell.wait()
        self.log.close()


def missing(page, expected, said):
    """The first line of what the page shows that was not printed, in the page's order."""
    rest = said
    for line in filter(None, (line.strip() for line in page.placed(expected).splitlines())):
        found = re.search("[^\n]*".join(re.escape(part) for part in line.strip("…").split("…")), rest)
        if not found:
            return line
        rest = rest[found.end():]
    return None


def compare(page, expected, block, said):
    """What only reads usage is run again until it says what the page shows: records are stored a moment after the answer."""
    reads_usage = all(re.match(r"curl .*/(logs|stats|usage)", line) and " -d " not in line for line in block.splitlines())
    until = time.monotonic() + (PATIENCE if reads_usage else 0)
    while line := missing(page, expected, said):
        assert time.monotonic() < until, f"{page.name} shows this line:\n{line}\nbut this was printed:\n{said}"
        said = page.run(block)


def begin_as_in_the_tutorial(page):
    """Runs the blocks of the tutorial until its key is in a variable."""
    for block in BLOCK.finditer((ROOT / TUTORIAL).read_text()):
        if block["kind"] == "sh":
            page.run(block["text"])
            if "\nID=" in block["text"]:
                return
    raise AssertionError(f"{TUTORIAL} sets no ID")


def follow(name, folder):
    followed, last = 0, None
    with contextlib.ExitStack() as running:
        started = []
        for what in PAGES[name]:
            if what != "tutorial":
                started.append(servers.start(what, folder, free_port()))
                running.callback(started[-1].stop)
        page = Page(name, folder, started)
        running.callback(page.close)
        if "tutorial" in PAGES[name]:
            begin_as_in_the_tutorial(page)
        for block in BLOCK.finditer((ROOT / name).read_text()):
            if block["note"]:
                last = None
            elif block["kind"] == "sh":
                last = block["text"], page.run(block["text"])
                followed += 1
            elif last:
                compare(page, block["text"], *last)
                last = None
    assert followed, f"{name} has no block that can be followed"
    return followed


def main():
    pages = sys.argv[2:] or list(PAGES)
    for name in pages:
        begun = time.monotonic()
        folder = pathlib.Path(tempfile.mkdtemp(prefix="keygate-page-"))
        try:
            followed = follow(name, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{name}: {followed} blocks followed in {time.monotonic() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    main()
