"""Opens and drops many streams of a container, and sees that the daemon keeps nothing of them.

Usage: streams.py SOCKET, of a daemon that has the image `busybox:test`. SHOAL_STREAMS says how many times.
"""

import http.client
import json
import os
import socket
import struct
import sys
import time

ROUNDS = int(os.environ.get("SHOAL_STREAMS", "500"))
MEMORY_MAX_KB = 16 << 10  # what caches and the allocator may take, however many streams there were


def call(method, path, body=None):
    connection = http.client.HTTPConnection("docker")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(30)
    connection.sock.connect(sys.argv[1])
    connection.request(method, "/v1.51/" + path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status < 300, (path, answer.status, text)
    return json.loads(text) if text.strip() else None


def opened(method, path, body=b"", upgrade=False):
    """A request whose answer has begun, as a raw socket."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(30)
    stream.connect(sys.argv[1])
    head = f"{method} /v1.51/{path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    head += "Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else ""
    stream.sendall(head.encode() + b"\r\n" + body)
    status = stream.recv(4096).split(b" ", 2)[1]
    assert status in (b"101", b"200"), (path, status)
    return stream


def exact(stream, length):
    data = b""
    while len(data) < length:
        piece = stream.recv(length - len(data))
        assert piece, data
        data += piece
    return data


def frames_behind_the_head(container):
    """What a process says at once comes whole behind the answer's head, each stream in frames of its own."""
    for _ in range(50):
        made = call("POST", f"containers/{container}/exec", {"Cmd": ["sh", "-c", "echo out; echo err >&2"], "AttachStdout": True, "AttachStderr": True})
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(30)
        stream.connect(sys.argv[1])
        body = b'{"Detach": false, "Tty": false}'
        head = f"POST /v1.51/exec/{made['Id']}/start HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        stream.sendall(head.encode() + b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + body)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += exact(stream, 1)
        assert answer.startswith(b"HTTP/1.1 101 ") and b"application/vnd.docker.multiplexed-stream" in answer, answer
        said = {}
        for _ in range(2):
            kind, length = struct.unpack(">BxxxL", exact(stream, 8))
            said[kind] = exact(stream, length)
        assert said == {1: b"out\n", 2: b"err\n"}, said
        assert stream.recv(1) == b"", "more than it said"
        stream.close()


def files():
    return call("GET", "info")["NFd"]


def memory():
    """Resident memory of the daemon in kB."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def one():
    opened("POST", "containers/streams/attach?stream=1&stdin=1&stdout=1&stderr=1", upgrade=True).close()
    opened("GET", "containers/streams/logs?stdout=1&follow=1").close()
    opened("GET", "events").close()


def main():
    call("POST", "containers/create?name=streams", {"Image": "busybox:test", "Cmd": ["sleep", "1000"], "OpenStdin": True})
    call("POST", "containers/streams/start")
    try:
        opened("POST", "containers/streams/attach?stream=1&stdin=1&stdout=1", upgrade=True).close()
        frames_behind_the_head("streams")
        before = files()
        for _ in range(100):
            one()
        memory_before, tasks_before = memory(), call("GET", "info")["NGoroutines"]
        for _ in range(ROUNDS):
            one()
        for _ in range(ROUNDS // 10):
            made = call("POST", "containers/streams/exec", {"Cmd": ["sleep", "0.01"], "AttachStdout": True})
            opened("POST", f"exec/{made['Id']}/start", b"{}", upgrade=True).close()
        end = time.monotonic() + 30
        while files() > before + 5:
            assert time.monotonic() < end, f"{before} files were open, now {files()}"
            time.sleep(0.1)
        while call("GET", "info")["NGoroutines"] > tasks_before + 20:
            assert time.monotonic() < end, f"{tasks_before} tasks before, now {call('GET', 'info')['NGoroutines']}"
            time.sleep(0.1)
        grown = memory() - memory_before
        assert grown < MEMORY_MAX_KB, f"{grown} kB more than before"
        info = call("GET", "info")
        assert info["NEventsListener"] == 0, info["NEventsListener"]
        print(f"{before} files open before, {files()} after {3 * ROUNDS} streams, {grown} kB more")
    finally:
        call("DELETE", "containers/streams?force=1")


main()
