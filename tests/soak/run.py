"""A gateway under mixed load for a long time: whatever it takes for a request it must give back.

Run by `make soak`. Requests, refusals, large answers, uploads, streams, aborted requests and WebSockets come over many connections at
once. Now and then all load stops; then the gateway must hold no connection, no request in flight and no descriptor more than before,
and a key with a limit of concurrent requests must have all of them free. Its memory in these pauses may not grow.

Everything is on loopback. The load is bounded by --seconds and --requests, whichever ends first.
"""

import argparse
import asyncio
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

LARGE = 256 * 1024
PLACES = 4
# A pause in which the connections and requests of the load must end.
QUIET_WITHIN = 30
# What memory may grow by between the second and the last third of the pauses; in the first, caches are filled.
GROWTH, SLACK_KIB = 1.10, 8 * 1024
# Idle connections to the backend, the journal's segments and the store may keep some descriptors open.
DESCRIPTORS_SLACK = 16

CONFIG = """
[proxy]
listen = ["127.0.0.1:0"]
[admin]
listen = "127.0.0.1:0"
[plans.default]
api_ops_rate_limit = 1_000_000
end_user_quota = 10
[[upstreams]]
name = "app"
servers = ["127.0.0.1:%d"]
idle_timeout = "1s"
[[routes]]
name = "app"
path = "/app/{rest*}"
upstream = "app"
scopes = ["app"]
[[routes]]
name = "metered"
path = "/metered/{rest*}"
upstream = "app"
scopes = ["app"]
meter = "llm"
"""


class Backend:
    """Answers by path: a little, much, a stream, or a WebSocket that echoes."""

    async def serve(self, reader, writer):
        try:
            while await self.answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def answer(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1]
        length = re.search(rb"\r\ncontent-length: (\d+)", head)
        if b"\r\nupgrade: " in head:
            return await self.echo(reader, writer)
        if length:
            await reader.readexactly(int(length[1]))
        if path.endswith(b"/large"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
            writer.write(bytes(LARGE))
        elif path.endswith(b"/stream"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number in range(20):
                event = b'data: {"choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n' % number
                writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                await writer.drain()
                await asyncio.sleep(0.002)
            writer.write(b"0\r\n\r\n")
        elif path.endswith(b"/slow"):
            await asyncio.sleep(1)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        return True

    async def echo(self, reader, writer):
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        return False


class Gateway:
    """The gateway and what can be seen of it from outside."""

    def __init__(self, binary, folder, config):
        pathlib.Path(folder, "keygate.toml").write_text(config)
        self.process = subprocess.Popen([binary, "run", "--ready-json", "--config", "keygate.toml"], cwd=folder, env={},
                                        stdout=subprocess.PIPE, stderr=open(pathlib.Path(folder, "log"), "w"))
        line = self.process.stdout.readline()
        if not line:
            sys.exit(pathlib.Path(folder, "log").read_text())
        ready = json.loads(line)
        self.admin_at, (host, port) = ready["admin"], ready["proxy"].rsplit(":", 1)
        self.at = (host, int(port))
        self.token = pathlib.Path(folder, "data/admin.token").read_text().strip()

    def key(self, name, **limits):
        body = {"name": name, "type": "service", "scopes": ["app"], "rate_limit": 1_000_000, "daily_request_limit": 1_000_000_000,
                **limits}
        request = urllib.request.Request(f"http://{self.admin_at}/apikeys", json.dumps(body).encode(), {
            "Authorization": f"Bearer {self.token}", "Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["data"]["api_key"]

    def metric(self, name):
        with urllib.request.urlopen(f"http://{self.admin_at}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[ {{]", line))

    def memory(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class Load:
    """Clients, each with one connection after the other."""

    def __init__(self, gateway, most):
        self.gateway, self.left = gateway, most
        self.secret = gateway.key("free")
        self.spent = gateway.key("spent", daily_request_limit=1)
        self.placed = gateway.key("places", concurrency_limit=PLACES)
        self.counts = {}
        self.running = asyncio.Event()

    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1
        self.left -= 1

    async def client(self, number):
        chance = random.Random(number)
        while True:
            await self.running.wait()
            reader, writer = await asyncio.open_connection(*self.gateway.at)
            try:
                for _ in range(chance.randrange(1, 200)):
                    if not self.running.is_set() or not await self.one(chance, reader, writer):
                        break
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                sys.exit(f"the gateway closed a connection: {error!r}")
            finally:
                writer.close()

    def request(self, path, secret=None, body=b"", more=""):
        return (f"POST /{path} HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer {secret or self.secret}\r\n{more}"
                f"Content-Length: {len(body)}\r\n\r\n").encode() + body

    async def one(self, chance, reader, writer):
        """One request. False: its connection is used up."""
        kind = chance.choices(["small", "refused", "unknown", "large", "upload", "stream", "metered", "websocket", "abort",
                               "abort-upload"], [60, 12, 6, 6, 5, 4, 3, 1, 2, 1])[0]
        self.count(kind)
        if kind == "refused":
            writer.write(self.request("app/x", self.spent))
        elif kind == "unknown":
            # A malformed one, of which any number may come from an address.
            writer.write(self.request("app/x", "unknown"))
        elif kind == "upload":
            writer.write(self.request("app/x", body=bytes(chance.randrange(200_000))))
        elif kind == "websocket":
            return await self.websocket(chance, reader, writer)
        elif kind == "abort-upload":
            writer.write(self.request("app/x", body=bytes(100_000))[:50_000])
            await writer.drain()
            return False
        elif kind == "abort":
            writer.write(self.request(chance.choice(["app/large", "app/stream", "metered/stream"])))
            await reader.read(chance.randrange(1, 40_000))
            return False
        else:
            writer.write(self.request({"small": "app/x", "large": "app/large", "stream": "app/stream",
                                       "metered": "metered/stream"}[kind]))
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        if length:
            await reader.readexactly(int(length[1]))
        else:
            await reader.readuntil(b"\r\n0\r\n\r\n")
        wanted = {"refused": (b"200", b"429"), "unknown": (b"401", b"429")}.get(kind, (b"200",))
        if head.split(b" ", 2)[1] not in wanted:
            sys.exit(f"{kind}: {head.decode()}")
        return True

    async def websocket(self, chance, reader, writer):
        writer.write(f"GET /app/ws HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer {self.secret}\r\nUpgrade: websocket\r\n"
                     "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                     .encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in head:
            sys.exit(f"websocket: {head.decode()}")
        frame = b"\x82\x84\0\0\0\0ping"
        for _ in range(chance.randrange(20)):
            writer.write(frame)
            if await reader.readexactly(len(frame)) != frame:
                sys.exit("websocket: another echo")
        return False

    async def places(self):
        """As many concurrent requests of the limited key as it may have."""
        async def one():
            reader, writer = await asyncio.open_connection(*self.gateway.at)
            writer.write(self.request("app/slow", self.placed))
            head = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            return head.split(b" ", 2)[1]
        return await asyncio.gather(*[one() for _ in range(PLACES)])


async def quiet(gateway):
    """Waits until nothing is left of the load. Returns what is."""
    names = ["keygate_requests_in_flight", "keygate_connections", "keygate_bytes_in_flight",
             "keygate_upstream_requests_in_flight", "keygate_held_units"]
    ends = time.monotonic() + QUIET_WITHIN
    while True:
        left = {name: value for name in names if (value := gateway.metric(name)) != 0}
        if not left or time.monotonic() > ends:
            return left
        await asyncio.sleep(0.2)


async def settled(gateway, most):
    """The descriptors, once idle connections to the backend have been closed."""
    ends = time.monotonic() + QUIET_WITHIN
    while (now := gateway.descriptors()) > most and time.monotonic() < ends:
        await asyncio.sleep(0.2)
    return now


async def soak(args, folder):
    backend = await asyncio.start_server(Backend().serve, "127.0.0.1", 0, backlog=4_096)
    gateway = Gateway(args.binary, folder, CONFIG % backend.sockets[0].getsockname()[1])
    try:
        load = Load(gateway, args.requests)
        descriptors = gateway.descriptors() + DESCRIPTORS_SLACK
        clients = [asyncio.create_task(load.client(number)) for number in range(args.connections)]
        began, memory = time.monotonic(), []
        while time.monotonic() - began < args.seconds and load.left > 0:
            load.running.set()
            # The pauses are more frequent in a short run, so that there are enough of them to compare.
            done, _ = await asyncio.wait(clients, timeout=max(args.seconds / 30, 5), return_when=asyncio.FIRST_COMPLETED)
            for failed in done:
                failed.result()
            load.running.clear()
            if left := await quiet(gateway):
                sys.exit(f"after the load had ended: {left}")
            if (now := await settled(gateway, descriptors)) > descriptors:
                sys.exit(f"{now} descriptors are open, {descriptors - DESCRIPTORS_SLACK} were before")
            if (got := await load.places()) != [b"200"] * PLACES:
                sys.exit(f"of {PLACES} concurrent requests: {got}")
            memory.append(gateway.memory())
            print(f"{time.monotonic() - began:6.0f} s  {sum(load.counts.values()):>9} requests  {memory[-1] / 1024:6.1f} MiB  "
                  f"{now} descriptors", flush=True)
        for client in clients:
            client.cancel()
        print(json.dumps(load.counts))
        third = len(memory) // 3
        if third > 0:
            before, last = (sorted(part)[third // 2] for part in (memory[-2 * third:-third], memory[-third:]))
            if last > before * GROWTH + SLACK_KIB:
                sys.exit(f"memory has grown from {before} KiB to {last} KiB")
    finally:
        gateway.process.terminate()
        ended = gateway.process.wait(60)
    if ended != 0:
        sys.exit(f"the gateway ended with {ended}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--seconds", type=float, default=3_600)
    parser.add_argument("--requests", type=int, default=100_000_000)
    parser.add_argument("--connections", type=int, default=100)
    args = parser.parse_args()
    args.binary = os.path.abspath(args.binary)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(soak(args, folder))


if __name__ == "__main__":
    main()
