"""The clients that people use, through a gateway: OpenAI, Anthropic and LangChain streaming, gRPC, WebSocket, curl, h2.

Run by `make test-clients`, which installs them. Starts a backend that answers as those APIs do, and the gateway in front.
"""

import asyncio
import http.server
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import urllib.request

import anthropic
import openai
import websockets
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

import rpc

BINARY = sys.argv[1]
WORDS = ["Hello", " from", " behind", " the", " gateway"]


class Backend(http.server.BaseHTTPRequestHandler):
    """Streams the same five words in the format of whichever API is asked."""

    protocol_version = "HTTP/1.1"
    seen = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, dict(self.headers), body))
        asks_usage = body.get("stream_options", {}).get("include_usage", False)
        events = self.anthropic() if self.path.endswith("/messages") else self.openai(asks_usage)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events:
            data = event.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self):
        body = json.dumps({"path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def openai(self, asks_usage):
        common = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        for word in WORDS:
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            yield "data: " + json.dumps({**common, "choices": [choice]}) + "\n\n"
        if asks_usage:
            usage = {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50}
            yield "data: " + json.dumps({**common, "choices": [], "usage": usage}) + "\n\n"
        yield "data: [DONE]\n\n"

    def anthropic(self):
        message = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "m", "stop_reason": None,
                   "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
        rows = [{"type": "message_start", "message": message},
                {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}]
        rows += [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": w}} for w in WORDS]
        rows += [{"type": "content_block_stop", "index": 0},
                 {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                  "usage": {"output_tokens": 5}},
                 {"type": "message_stop"}]
        for row in rows:
            yield f"event: {row['type']}\ndata: {json.dumps(row)}\n\n"

    def log_message(self, *_):
        pass


class Gateway:
    """A gateway in a folder of its own, with a key."""

    def __init__(self, folder, http_port, ws_port, grpc_port):
        config = pathlib.Path(folder, "keygate.toml")
        pem = pathlib.Path(folder, "gateway.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-keyout", pem.with_suffix(".key"), "-out", pem, "-days", "2", "-subj", "/CN=gateway.test",
                        "-addext", "subjectAltName=DNS:gateway.test,IP:127.0.0.1"], check=True, capture_output=True)
        self.certificate = pem.read_bytes()
        pem.write_bytes(self.certificate + pem.with_suffix(".key").read_bytes())
        parts = ['[proxy]\nlisten = ["127.0.0.1:0"]\nlisten_h2c = ["127.0.0.1:0"]\nlisten_tls = ["127.0.0.1:0"]\n'
                 'certificates = ["gateway.pem"]\n[admin]\nlisten = "127.0.0.1:0"\n'
                 f'[[upstreams]]\nname = "grpc"\nservers = ["127.0.0.1:{grpc_port}"]\nprotocol = "http2"\n'
                 '[[routes]]\nname = "grpc"\npath = "/pkg.Echo/{rest*}"\nupstream = "grpc"\nscopes = ["app"]\n']
        for name, port in (("app", http_port), ("ws", ws_port)):
            parts.append(f'[[upstreams]]\nname = "{name}"\nservers = ["127.0.0.1:{port}"]\n'
                         f'[[routes]]\nname = "{name}"\npath = "/{name}/{{rest*}}"\nupstream = "{name}"\nscopes = ["app"]\n')
        for name in ("openai", "anthropic"):
            parts.append(f'[[routes]]\nname = "{name}"\npath = "/{name}/{{rest*}}"\nupstream = "app"\nscopes = ["app"]\n'
                         f'meter = "llm"\nhold = 40\nerrors = "{name}"\n')
        config.write_text("".join(parts))
        self.folder = pathlib.Path(folder)
        self.process = subprocess.Popen([BINARY, "run", "--ready-json", "--config", "keygate.toml"], cwd=folder,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={})
        self.ready = json.loads(self.process.stdout.readline())
        self.token = pathlib.Path(folder, "data/admin.token").read_text().strip()
        self.secret = self.admin("POST", "/apikeys", {"name": "clients", "type": "service", "scopes": ["app"]})["api_key"]

    def admin(self, method, path, body=None):
        request = urllib.request.Request(f"http://{self.ready['admin']}{path}", method=method,
                                         data=None if body is None else json.dumps(body).encode(),
                                         headers={"Authorization": f"Bearer {self.token}",
                                                  "Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["data"]

    def stop(self):
        self.process.terminate()
        assert self.process.wait(30) == 0


def check_openai(gateway):
    client = openai.OpenAI(base_url=f"http://{gateway.ready['proxy']}/app/v1", api_key=gateway.secret, max_retries=0)
    stream = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
    assert [chunk.choices[0].delta.content for chunk in stream] == WORDS
    wrong = openai.OpenAI(base_url=f"http://{gateway.ready['proxy']}/app/v1", api_key="nonsense", max_retries=0)
    try:
        wrong.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        raise AssertionError("a wrong key was served")
    except openai.AuthenticationError as error:
        assert error.status_code == 401, error


def check_anthropic(gateway):
    client = anthropic.Anthropic(base_url=f"http://{gateway.ready['proxy']}/app", api_key=gateway.secret, max_retries=0)
    with client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as stream:
        assert list(stream.text_stream) == WORDS
    path, headers, _ = Backend.seen[-1]
    assert path == "/app/v1/messages" and "x-api-key" not in {name.lower() for name in headers}, headers


def budget_key(gateway, name, tokens):
    """A key with this many tokens in a month."""
    limits = [{"count": "tokens", "per": "month", "max": tokens}]
    return gateway.admin("POST", "/apikeys", {"name": name, "scopes": ["app"], "limits": limits})["api_key"]


def check_budgets(gateway):
    """SDKs stream as ever, see what is left of a budget of tokens, and understand its end, without asking again."""
    hello = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    client = openai.OpenAI(base_url=f"http://{gateway.ready['proxy']}/openai/v1", api_key=budget_key(gateway, "budget-1", 120))
    left = []
    for _ in range(2):
        raw = client.chat.completions.with_raw_response.create(**hello, stream=True)
        left.append(int(raw.headers["x-ratelimit-remaining-tokens"]))
        chunks = list(raw.parse())
        # The event with the usage, for which the gateway has asked, is not the client's.
        assert [chunk.choices[0].delta.content for chunk in chunks] == WORDS
        assert all(chunk.usage is None for chunk in chunks)
        assert raw.headers["x-ratelimit-limit-tokens"] == "120"
    assert left[0] - left[1] == 50, left
    before = len(Backend.seen)
    try:
        client.chat.completions.create(**hello)
        raise AssertionError("a budget was passed")
    except openai.RateLimitError as error:
        assert "tokens" in error.message and error.body["details"]["data"]["count"] == "tokens", error.body
    assert len(Backend.seen) == before

    client = anthropic.Anthropic(base_url=f"http://{gateway.ready['proxy']}/anthropic", api_key=budget_key(gateway, "budget-2", 60))
    for _ in range(5):
        with client.messages.stream(**hello, max_tokens=9) as stream:
            assert list(stream.text_stream) == WORDS
    small = anthropic.Anthropic(base_url=f"http://{gateway.ready['proxy']}/anthropic", api_key=budget_key(gateway, "budget-3", 6))
    with small.messages.stream(**hello, max_tokens=9) as stream:
        assert list(stream.text_stream) == WORDS
    try:
        small.messages.create(**hello, max_tokens=9)
        raise AssertionError("a budget was passed")
    except anthropic.RateLimitError as error:
        assert error.body["error"]["type"] == "rate_limit_error", error.body


def check_langchain(gateway):
    """LangChain's models do the same."""
    options = {"model": "m", "base_url": f"http://{gateway.ready['proxy']}/openai/v1",
               "api_key": budget_key(gateway, "langchain-1", 200), "include_response_headers": True}
    left = []
    for asks in (False, True, False):
        model = ChatOpenAI(**options, stream_usage=asks)
        chunks = list(model.stream("hi"))
        assert [chunk.text for chunk in chunks if chunk.text] == WORDS, chunks
        headers = next(chunk.response_metadata["headers"] for chunk in chunks if "headers" in chunk.response_metadata)
        assert headers["x-ratelimit-limit-tokens"] == "200", headers
        left.append(int(headers["x-ratelimit-remaining-tokens"]))
        # The usage is shown to a model that asks for it, and to no other.
        usage = [chunk.usage_metadata["total_tokens"] for chunk in chunks if chunk.usage_metadata]
        assert usage == ([50] if asks else []), chunks
    assert left[0] - left[2] == 100, left
    before = len(Backend.seen)
    try:
        model.invoke("hi")
        raise AssertionError("a budget was passed")
    except openai.RateLimitError as error:
        assert error.body["details"]["data"]["count"] == "tokens", error.body
    assert len(Backend.seen) == before

    model = ChatAnthropic(model="m", base_url=f"http://{gateway.ready['proxy']}/anthropic", max_tokens=9,
                          api_key=budget_key(gateway, "langchain-2", 50))
    seen = []
    # LangChain does not hand these headers on, so they are read where its client gets them.
    model._client._client.event_hooks = {"response": [lambda answer: seen.append(answer.headers)]}
    for _ in range(2):
        chunks = list(model.stream("hi"))
        assert [chunk.text for chunk in chunks if chunk.text] == WORDS, chunks
        assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 5, chunks
    left = [int(headers["x-ratelimit-remaining-tokens"]) for headers in seen]
    assert left[0] - left[1] == 6, left
    while left[-1] >= 0:
        try:
            list(model.stream("hi"))
        except anthropic.RateLimitError as error:
            assert error.body["error"]["type"] == "rate_limit_error", error.body
            break
        left.append(int(seen[-1]["x-ratelimit-remaining-tokens"]))
    assert len(left) < 9, "the budget ends"


async def check_websocket(gateway):
    url = f"ws://{gateway.ready['proxy']}/ws/echo"
    headers = {"Authorization": f"Bearer {gateway.secret}"}
    async with websockets.connect(url, additional_headers=headers) as socket:
        for message in ("hello", "x" * 200_000, b"\0\xff"):
            await socket.send(message)
            assert await socket.recv() == message
        key = next(key for key in gateway.admin("GET", "/apikeys")["items"] if key["name"] == "clients")
        gateway.admin("PUT", f"/apikeys/{key['id']}", {"is_active": False})
        try:
            await asyncio.wait_for(socket.recv(), 10)
            raise AssertionError("a disabled key kept its socket")
        except websockets.ConnectionClosed:
            pass
    try:
        await websockets.connect(url, additional_headers=headers)
        raise AssertionError("a disabled key got a socket")
    except websockets.InvalidStatus as refused:
        assert refused.response.status_code == 401, refused


def check_curl(gateway):
    trusted = ["--cacert", str(gateway.folder / "gateway.pem")]
    for flags, scheme, address in (([], "http", "proxy"), (["--http2-prior-knowledge"], "http", "proxy_h2c"),
                                   (["--http1.1", *trusted], "https", "proxy_tls"),
                                   (["--http2", *trusted], "https", "proxy_tls")):
        command = ["curl", "-sS", *flags, "-w", " %{http_version} %{http_code}", "-H", f"X-API-Key: {gateway.secret}",
                   f"{scheme}://{gateway.ready[address]}/app/x"]
        body, version, status = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rsplit(" ", 2)
        assert (json.loads(body)["path"], status) == ("/app/x", "200") and version in ("1.1", "2"), (body, version, status)
        assert (version == "2") == any("http2" in flag for flag in flags)
    # Sends all of a large body before it looks at the answer that came long before.
    command = ["curl", "-sS", "-H", "X-API-Key: nonsense", "-H", "Expect:", "-T", "-", "-o", "/dev/null", "-w",
               "%{http_code}", f"http://{gateway.ready['proxy']}/app/x"]
    done = subprocess.run(command, input=b"x" * 20_000_000, capture_output=True, check=True)
    assert done.stdout == b"401", done


async def main():
    backend = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    threading.Thread(target=backend.serve_forever, daemon=True).start()

    async def echo(socket):
        try:
            async for message in socket:
                await socket.send(message)
        except websockets.ConnectionClosed:
            pass  # the gateway ended it with its key, which is what is tried

    async with websockets.serve(echo, "127.0.0.1", 0, max_size=None) as server:
        with tempfile.TemporaryDirectory() as folder:
            service = rpc.Service()
            gateway = Gateway(folder, backend.server_port, server.sockets[0].getsockname()[1], service.port)
            passed = 0
            for check in (check_curl, check_openai, check_anthropic, check_budgets, check_langchain):
                await asyncio.to_thread(check, gateway)
                passed += 1
            for check in (rpc.check_h2, rpc.check_grpc):
                await asyncio.to_thread(check, gateway, service)
                passed += 1
            await check_websocket(gateway)
            gateway.stop()
    print(f"{passed + 1} passed, 0 failed")


asyncio.run(main())
