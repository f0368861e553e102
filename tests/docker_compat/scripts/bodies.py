"""Sends every route bodies that it does not expect, and sees that it is refused in good order.

Usage: bodies.py SOCKET, of a daemon that has the image `busybox:test`.
"""

import http.client
import json
import socket
import sys

LARGE = (5 << 20) + 1
READ = """
_ping version info events?until=1 system/df containers/json containers/nothing/json containers/nothing/top
containers/nothing/logs?stdout=1 containers/nothing/changes containers/nothing/export containers/nothing/stats
containers/nothing/archive?path=/ containers/nothing/attach/ws exec/nothing/json images/json images/search?term=a
images/get?names=nothing images/nothing/json images/nothing/history images/nothing/get distribution/nothing:1/json networks
networks/nothing volumes volumes/nothing plugins plugins/nothing/json swarm swarm/unlockkey nodes nodes/nothing services
services/nothing services/nothing/logs?stdout=1 tasks tasks/nothing tasks/nothing/logs?stdout=1 secrets secrets/nothing
configs configs/nothing nothing
""".split()
CHANGE = """
auth containers/create containers/prune containers/nothing/start containers/nothing/stop containers/nothing/restart
containers/nothing/kill containers/nothing/update containers/nothing/rename?name=a1 containers/nothing/pause
containers/nothing/unpause containers/nothing/attach containers/nothing/wait containers/nothing/resize?h=1&w=1
containers/nothing/exec exec/nothing/start exec/nothing/resize?h=1&w=1 images/prune images/nothing/push
images/nothing/tag?repo=a build/prune commit networks/create networks/prune networks/nothing/connect
networks/nothing/disconnect volumes/create volumes/prune plugins/pull plugins/create plugins/nothing/enable swarm/join
swarm/leave swarm/update?version=1 swarm/unlock nodes/nothing/update?version=1 services/create
services/nothing/update?version=1 secrets/create secrets/nothing/update?version=1 configs/create
configs/nothing/update?version=1 session nothing
""".split()
# Their bodies are archives, which have no limit, and may be refused before they were read.
ARCHIVES = ["build", "images/load", "images/create"]
REMOVE = "containers/nothing images/nothing networks/nothing volumes/nothing nodes/nothing services/nothing secrets/nothing configs/nothing plugins/nothing nothing".split()


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(sys.argv[1])


def call(method, path, body=None, headers=None, chunked=False):
    connection = Connection("docker")
    connection.request(method, "/v1.51/" + path, body, headers or {}, encode_chunked=chunked)
    answer = connection.getresponse()
    status, text = answer.status, answer.read()
    connection.close()
    return status, text


def main():
    problems, count = [], 0
    head = {"Content-Type": "application/json"}

    def check(what, method, path, allowed, *more, **named):
        nonlocal count
        count += 1
        try:
            status, text = call(method, path, *more, **named)
        except BrokenPipeError:
            if path not in ARCHIVES:
                problems.append(f"{what}: {method} {path}: the connection was closed")
            return
        except OSError as error:
            problems.append(f"{what}: {method} {path}: {error!r}")
            return
        if not allowed(status):
            problems.append(f"{what}: {method} {path}: {status} {text[:200]!r}")
        if status >= 400 and method != "HEAD" and b'"message"' not in text:
            problems.append(f"{what}: {method} {path}: {status} without a message: {text[:200]!r}")

    # 501 and 503 say what there is not, or not now. Anything else beyond 499 would be our own fault.
    def good(status):
        return status < 500 or status in (501, 503)

    large = b'{"a": "' + b"x" * LARGE + b'"}'
    for path in READ:
        # The daemon may ask a registry that is not there.
        asks = path.startswith(("distribution", "images/search"))
        allowed = (lambda status: True) if asks else good
        check("no body", "GET", path, allowed)
        check("a body", "GET", path, allowed, b"{}", head)
    for path in CHANGE:
        # Without a server the default registry is asked, which may not be there.
        fine = (lambda status: True) if path == "auth" else good
        check("no body", "POST", path, fine)
        check("an empty document", "POST", path, fine, b"{}", head)
        check("a list", "POST", path, fine, b"[1, 2]", head)
        check("rubbish", "POST", path, fine, b"\x00\xff{{{", head)
        check("a key twice", "POST", path, fine, b'{"Image": "a", "Image": "b", "Name": 1, "Name": {}}', head)
        check("deep nesting", "POST", path, fine, b"[" * 100_000, head)
        check("too large", "POST", path, lambda status: status == 413, large, head)
        chunks = (b"x" * (1 << 20) for _ in range(6))
        check("too large in chunks", "POST", path, lambda status: status == 413, chunks, head | {"Transfer-Encoding": "chunked"}, True)
        check("in chunks", "POST", path, fine, iter([b"{", b"}"]), head | {"Transfer-Encoding": "chunked"}, True)
        check("a form", "POST", path, lambda status: status == 400, b"a=b", {"Content-Type": "application/x-www-form-urlencoded"})
    for path in ARCHIVES:
        check("no archive", "POST", path, lambda status: status < 600)
        check("rubbish", "POST", path, lambda status: status < 600, b"\x00\xff" * 5000, {"Content-Type": "application/x-tar"})
    for path in REMOVE:
        check("no body", "DELETE", path, good)
        check("a body", "DELETE", path, good, b"{}", head)
    for method in ("PATCH", "OPTIONS", "TRACE"):
        check("an odd method", method, "info", good)
    # What was said about the connection holds: it is not left in the middle of something.
    connection = Connection("docker")
    for _ in range(3):
        connection.request("POST", "/v1.51/containers/create", b"{", head)
        answer = connection.getresponse()
        assert answer.status == 400, answer.status
        json.loads(answer.read())
    connection.close()
    status, text = call("GET", "_ping")
    assert (status, text) == (200, b"OK")
    print("\n".join(problems))
    print(f"{count} requests, {len(problems)} answered badly")
    sys.exit(1 if problems else 0)


main()
