"""Makes the calls of golden/answers.json to a daemon and prints them with what it answers.

Usage: record.py SOCKET ARCHIVE < golden/answers.json, with Docker's own daemon at SOCKET and the
image `busybox:test` in ARCHIVE. Ids are written as <ID>; the things that the calls need are made before and removed after.
"""

import http.client
import json
import re
import socket
import sys


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(sys.argv[1])


def call(method, path, body=None, raw=None):
    connection = Connection("docker", timeout=60)
    data = raw if raw is not None else (json.dumps(body) if body is not None else None)
    connection.request(method, path, data, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def message(text):
    try:
        text = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        pass
    text = re.sub(r"\b[0-9a-f]{64}\b", "<ID>", text)
    # The processors of whoever answers.
    text = re.sub(r"to \d+\.00, as there are only \d+ CPUs", "to <N>.00, as there are only <N> CPUs", text)
    text = re.sub(r"available: 0-\d+", "available: 0-<N>", text)
    return re.sub(r"\b[0-9a-f]{12}\b", "<ID>", text).strip()


def inventory():
    """The names of all that there is."""
    lists = [
        ("container", "/containers/json?all=1", lambda answer: [row["Id"] for row in answer]),
        ("network", "/networks", lambda answer: [row["Id"] for row in answer]),
        ("volume", "/volumes", lambda answer: [row["Name"] for row in answer["Volumes"] or []]),
        ("image", "/images/json?all=1", lambda answer: [name for row in answer for name in [row["Id"]] + (row["RepoTags"] or [])]),
    ]
    return {f"{kind} {name}" for kind, path, names in lists for name in names(json.loads(call("GET", "/v1.41" + path)[1]))}


def main():
    table = json.load(sys.stdin)
    with open(sys.argv[2], "rb") as archive:
        call("POST", "/v1.41/images/load", raw=archive.read())
    for step in table["before"]:
        status, text = call(step["method"], "/v1.41" + step["path"], step.get("body"))
        assert status < 300, (step, status, text)
    there = inventory()
    for entry in table["calls"]:
        path = entry["path"] if entry["path"].startswith("/v") else "/v1.41" + entry["path"]
        try:
            status, text = call(entry["method"], path, entry.get("body"), entry.get("raw"))
        except TimeoutError:
            status, text = 0, "no end in sight: " + path
        entry["status"], entry["message"] = status, message(text)
        # Who refuses a call has made nothing of it.
        now = inventory()
        if status >= 400 and now != there:
            entry["made"] = sorted(there ^ now)
        there = now
    for step in table["after"]:
        call(step["method"], "/v1.41" + step["path"])
    json.dump(table, sys.stdout, indent=1, ensure_ascii=False)
    print()


main()
