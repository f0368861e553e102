"""Opens and drops many streams of a container, and sees that the daemon keeps nothing of them.

Usage: streams.py SOCKET, of a daemon that has the image `busybox:test`.
"""

import http.client
import json
import socket
import sys
import time

ROUNDS = 500


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


def files():
    return call("GET", "info")["NFd"]


def main():
    call("POST", "containers/create?name=streams", {"Image": "busybox:test", "Cmd": ["sleep", "1000"], "OpenStdin": True})
    call("POST", "containers/streams/start")
    try:
        opened("POST", "containers/streams/attach?stream=1&stdin=1&stdout=1", upgrade=True).close()
        before = files()
        for _ in range(ROUNDS):
            opened("POST", "containers/streams/attach?stream=1&stdin=1&stdout=1&stderr=1", upgrade=True).close()
            opened("GET", "containers/streams/logs?stdout=1&follow=1").close()
            opened("GET", "events").close()
        for _ in range(ROUNDS // 10):
            made = call("POST", "containers/streams/exec", {"Cmd": ["sleep", "0.01"], "AttachStdout": True})
            opened("POST", f"exec/{made['Id']}/start", b"{}", upgrade=True).close()
        end = time.monotonic() + 30
        while files() > before + 5:
            assert time.monotonic() < end, f"{before} files were open, now {files()}"
            time.sleep(0.1)
        info = call("GET", "info")
        assert info["NEventsListener"] == 0, info["NEventsListener"]
        print(f"{before} files open before, {files()} after {3 * ROUNDS} streams")
    finally:
        call("DELETE", "containers/streams?force=1")


main()
