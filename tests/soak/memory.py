"""What a client's connection takes of the gateway's memory: idle after a request, and with an answer that is a stream.

Run by `make soak-memory`. Everything is on loopback. This process and the gateway need two descriptors for each stream (`ulimit -n`): with
less, there are fewer streams.
"""

import asyncio
import os
import resource
import sys
import tempfile

from run import Gateway

BINARY, *COUNTS = sys.argv[1:]
IDLE, STREAMS = [1_000, 4_000], [int(count) for count in COUNTS] or [5_000, 20_000]
# Descriptors for everything but connections.
SPARE = 2_000
# So many connections are opened at a time.
AT_ONCE = 200
EVENT = b"data: " + b"x" * 322 + b"\n\n"

CONFIG = """
[proxy]
listen = ["127.0.0.1:0"]
max_connections = %(connections)d
max_connections_per_address = %(connections)d
idle_timeout = "600s"
[admin]
listen = "127.0.0.1:0"
[plans.default]
api_ops_rate_limit = 1_000_000
end_user_quota = 10
[[upstreams]]
name = "app"
servers = ["127.0.0.1:%(backend)d"]
[[routes]]
path = "/{rest*}"
upstream = "app"
scopes = ["app"]
"""


class Backend:
    """Answers at once, or with a stream that goes on when it is told to."""

    def __init__(self):
        self.streams = []

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b" /stream " in head:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                    self.streams.append(writer)
                    send(writer)
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()


def send(writer):
    writer.write(b"%x\r\n%s\r\n" % (len(EVENT), EVENT))


async def connect(gateway, secret, path):
    reader, writer = await asyncio.open_connection(*gateway.at)
    writer.write(f"GET /{path} HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer {secret}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b"ok" if path == "idle" else b"\n\n\r\n")
    return reader, writer


async def measure(gateway, backend, path, count):
    secret = gateway.key(f"{path} {count}")
    (await connect(gateway, secret, "idle"))[1].close()
    await asyncio.sleep(2)
    before, open_ones = gateway.memory(), []
    while len(open_ones) < count:
        here = min(AT_ONCE, count - len(open_ones))
        open_ones += await asyncio.gather(*[connect(gateway, secret, path) for _ in range(here)])
    for _ in range(3 if path == "stream" else 0):
        for writer in backend.streams:
            send(writer)
        for reader, _ in open_ones:
            await reader.readuntil(b"\n\n\r\n")
    await asyncio.sleep(2)
    each = (gateway.memory() - before) / count
    print(f"{count:>6} {path:<7} {each:6.1f} KiB each, {gateway.memory() / 1024:.0f} MiB in all", flush=True)


async def all_of_one(path, count):
    """Each count on a gateway of its own: memory that was given back would not show."""
    backend = Backend()
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0, backlog=4_096)
    at = {"connections": count + 1_000, "backend": server.sockets[0].getsockname()[1]}
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(os.path.abspath(BINARY), folder, CONFIG % at)
        try:
            await measure(gateway, backend, path, count)
        finally:
            gateway.process.kill()
            gateway.process.wait()


def main():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = (hard - SPARE) // 2
    for count in IDLE:
        asyncio.run(all_of_one("idle", min(count, most)))
    for count in STREAMS:
        asyncio.run(all_of_one("stream", min(count, most)))


if __name__ == "__main__":
    main()
