"""gRPC through a gateway, as grpcio speaks it, and HTTP/2 as the h2 library does: every kind of call, and its end."""

import concurrent.futures
import socket
import ssl
import threading

import grpc
import h2.config
import h2.connection
import h2.events

WAIT = 20


class Service(grpc.GenericRpcHandler):
    """Messages are bytes as they are. What happened to the last call is told by events."""

    def __init__(self):
        self.ended = threading.Event()
        self.go_on = threading.Event()
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
        self.server.add_generic_rpc_handlers((self,))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def service(self, details):
        kind = details.method.rsplit("/", 1)[-1]
        return {"Say": grpc.unary_unary_rpc_method_handler(self.say),
                "Count": grpc.unary_stream_rpc_method_handler(self.count),
                "Sum": grpc.stream_unary_rpc_method_handler(self.sum),
                "Echo": grpc.stream_stream_rpc_method_handler(self.echo),
                "Hang": grpc.unary_stream_rpc_method_handler(self.hang)}.get(kind)

    def say(self, message, context):
        given = dict(context.invocation_metadata())
        assert "authorization" not in given and given["x-keygate-key-id"], given
        if message == b"fail":
            context.set_trailing_metadata((("x-why", "asked to"),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wish")
        context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-bin-bin", b"\0\xff")))
        return message[::-1]

    def count(self, message, _context):
        yield b"0"
        # The first must be there before the others are sent.
        assert self.go_on.wait(WAIT)
        for n in range(1, int(message)):
            yield b"%d" % n

    def sum(self, messages, _context):
        return b"%d" % sum(map(int, messages))

    def echo(self, messages, _context):
        yield from messages

    def hang(self, _message, context):
        context.add_callback(self.ended.set)
        yield b"begun"
        assert self.ended.wait(WAIT)


def check_calls(channel, service, secret):
    metadata = (("authorization", f"Bearer {secret}"),)
    path = "/pkg.Echo/"

    say = channel.unary_unary(path + "Say")
    answer, call = say.with_call(b"x" * 100_000 + b"abc", metadata=metadata, timeout=WAIT)
    assert answer == b"cba" + b"x" * 100_000
    assert dict(call.initial_metadata())["x-first"] == "1"
    last = dict(call.trailing_metadata())
    assert (last["x-last"], last["x-bin-bin"]) == ("2", b"\0\xff"), last
    error = failed(say, b"fail", metadata)
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "as you wish"), error
    assert dict(error.trailing_metadata())["x-why"] == "asked to"
    assert failed(say, b"x", (("authorization", "Bearer nonsense"),)).code() == grpc.StatusCode.UNAUTHENTICATED
    assert failed(channel.unary_unary("/pkg.Echo/Nothing"), b"x", metadata).code() == grpc.StatusCode.UNIMPLEMENTED

    service.go_on.clear()
    counted = channel.unary_stream(path + "Count")(b"50", metadata=metadata, timeout=WAIT)
    assert next(counted) == b"0"
    service.go_on.set()
    assert [int(n) for n in counted] == list(range(1, 50)) and counted.code() == grpc.StatusCode.OK

    total = channel.stream_unary(path + "Sum")((b"%d" % n for n in range(1000)), metadata=metadata, timeout=WAIT)
    assert total == b"%d" % sum(range(1000))

    # Each message is sent once the one before has come back.
    turns = Turns(30)
    echoed = channel.stream_stream(path + "Echo")(turns, metadata=metadata, timeout=WAIT)
    for n, message in enumerate(echoed):
        assert message == b"%d" % n
        turns.next()
    assert echoed.code() == grpc.StatusCode.OK

    service.ended.clear()
    hanging = channel.unary_stream(path + "Hang")(b"", metadata=metadata, timeout=WAIT)
    assert next(hanging) == b"begun"
    hanging.cancel()
    assert service.ended.wait(WAIT), "the backend hears that the client cancelled"

    service.ended.clear()
    late = channel.unary_stream(path + "Hang")(b"", metadata=metadata, timeout=1)
    assert next(late) == b"begun"
    try:
        next(late)
        raise AssertionError("it had a deadline")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert service.ended.wait(WAIT), "the backend hears that the deadline passed"


class Turns:
    """Messages of which the next is there when it is asked for."""

    def __init__(self, most):
        self.ready = threading.Semaphore(1)
        self.most = most
        self.sent = 0

    def next(self):
        self.ready.release()

    def __iter__(self):
        return self

    def __next__(self):
        assert self.ready.acquire(timeout=WAIT)
        if self.sent == self.most:
            raise StopIteration
        self.sent += 1
        return b"%d" % (self.sent - 1)


def failed(method, message, metadata):
    try:
        method(message, metadata=metadata, timeout=WAIT)
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call was to fail")


def check_grpc(gateway, service):
    with grpc.insecure_channel(gateway.ready["proxy_h2c"]) as channel:
        check_calls(channel, service, gateway.secret)
    trusted = grpc.ssl_channel_credentials(root_certificates=gateway.certificate)
    with grpc.secure_channel(gateway.ready["proxy_tls"], trusted) as channel:
        check_calls(channel, service, gateway.secret)


def check_h2(gateway, _service):
    """Several streams of one connection, windows kept, over both listeners."""
    host, port = gateway.ready["proxy_h2c"].rsplit(":", 1)
    with socket.create_connection((host, int(port)), WAIT) as plain:
        check_streams(plain, gateway)
    host, port = gateway.ready["proxy_tls"].rsplit(":", 1)
    context = ssl.create_default_context(cadata=gateway.certificate.decode())
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection((host, int(port)), WAIT) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            assert secure.selected_alpn_protocol() == "h2"
            check_streams(secure, gateway)


def check_streams(line, gateway):
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    common = [(":scheme", "http"), (":authority", "gateway.test"), ("x-api-key", gateway.secret)]
    for stream in (1, 3, 5):
        connection.send_headers(stream, [(":method", "GET"), (":path", f"/app/{stream}"), *common], end_stream=True)
    connection.send_headers(7, [(":method", "GET"), (":path", "/app/7"), *common[:2]], end_stream=True)
    line.sendall(connection.data_to_send())
    statuses, bodies, ended = {}, {}, set()
    while len(ended) < 4:
        data = line.recv(65536)
        assert data, "the gateway closed"
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                statuses[event.stream_id] = dict(event.headers)[":status"]
            elif isinstance(event, h2.events.DataReceived):
                bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                ended.add(event.stream_id)
        line.sendall(connection.data_to_send())
    assert statuses == {1: "200", 3: "200", 5: "200", 7: "401"}, statuses
    assert all(f"/app/{n}".encode() in bodies[n] for n in (1, 3, 5)) and b"api_key_missing" in bodies[7], bodies
