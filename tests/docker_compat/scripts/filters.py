"""Every filter of a list takes the right ones.

Usage: filters.py SOCKET ADDRESS, of a daemon at this address that has the image `busybox:test` and nothing else that
matters.
"""

import http.client
import json
import socket
import sys
import time
from urllib.parse import quote


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


def create(name, **more):
    return call("POST", f"containers/create?name={name}", {"Image": "busybox:test", "Cmd": ["sleep", "1000"], **more})["Id"]


def containers(**filters):
    rows = call("GET", "containers/json?all=1&filters=" + quote(json.dumps(filters)))
    return " ".join(sorted(row["Names"][0][1:] for row in rows))


def versions(expect):
    """Clients of an older API are answered in it."""

    def at(minor, path, method="GET", body=None):
        connection = http.client.HTTPConnection("docker")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        connection.sock.connect(sys.argv[1])
        connection.request(method, f"/v1.{minor}/{path}", json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text) if text.strip() else None

    for minor, path, field, wanted in (
        (48, "info", "FirewallBackend", False), (49, "info", "FirewallBackend", True), (49, "info", "DiscoveredDevices", False),
        (50, "info", "DiscoveredDevices", True), (43, "images/busybox:test/json", "VirtualSize", True),
        (44, "images/busybox:test/json", "VirtualSize", False), (47, "networks/bridge", "EnableIPv4", False), (48, "networks/bridge", "EnableIPv4", True),
    ):
        expect(f"{path} at 1.{minor}: {field}", field in at(minor, path)[1], wanted)
    for minor, wanted in ((43, True), (44, False)):
        expect(f"images at 1.{minor}", "VirtualSize" in at(minor, "images/json")[1][0], wanted)
        expect(f"networks at 1.{minor}", "EnableIPv4" in at(minor, "networks")[1][0], False)
        expect(f"a container at 1.{minor}", "MacAddress" in at(minor, "containers/f-one/json")[1]["Config"], wanted)
        two = {"Image": "busybox:test", "NetworkingConfig": {"EndpointsConfig": {"bridge": {}, "fnet": {}}}}
        status, made = at(minor, "containers/create", "POST", two)
        expect(f"two networks at 1.{minor}", status, 400 if wanted else 201)
        if status == 201:
            at(minor, f"containers/{made['Id']}", "DELETE")
    expect("a version that is too new", at(52, "info")[0], 400)
    expect("a version that is too old", at(23, "info")[0], 400)
    # Since 1.42 a volume with a name is spared.
    for minor, wanted in ((42, None), (41, ["fspare"])):
        at(51, "volumes/create", "POST", {"Name": "fspare"})
        expect(f"volumes pruned at 1.{minor}", at(minor, "volumes/prune", "POST")[1]["VolumesDeleted"] or None, wanted)


def swarm(expect):
    """The filters of what a swarm has."""
    call("POST", "swarm/init", {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": sys.argv[2]})

    def ids(path, **filters):
        return {row["ID"] for row in call("GET", f"{path}?filters=" + quote(json.dumps(filters)))}

    def service(name, mode, labels):
        task = {"ContainerSpec": {"Image": "busybox:test", "Command": ["sleep", "1000"]}}
        return call("POST", "services/create", {"Name": name, "Labels": labels, "TaskTemplate": task, "Mode": mode})["ID"]

    def refused(path, **filters):
        try:
            ids(path, **filters)
        except AssertionError as error:
            return str(error)
        return "not refused"

    try:
        one = service("s-one", {"Replicated": {"Replicas": 2}}, {"k": "v"})
        two = service("s-two", {"Global": {}}, {"k": "w"})
        both = {one, two}
        for filters, wanted in (
            ({"name": ["s-"]}, both), ({"name": ["s-one"]}, {one}), ({"id": [two[:20]]}, {two}), ({"id": [one, two]}, both),
            ({"label": ["k"]}, both), ({"label": ["k=v"]}, {one}), ({"mode": ["global"]}, {two}), ({"mode": ["replicated"]}, {one}),
            ({"name": ["s-"], "label": ["k=w"]}, {two}), ({"runtime": ["container"]}, both), ({"name": ["nothing"]}, set()),
        ):
            expect(f"services {filters}", ids("services", **filters), wanted)

        node = call("GET", "nodes")[0]
        self, name = node["ID"], node["Description"]["Hostname"]
        call("POST", f"nodes/{self}/update?version={node['Version']['Index']}", {**node["Spec"], "Labels": {"zone": "a"}})
        for filters, wanted in (
            ({"id": [self[:20]]}, {self}), ({"name": [name]}, {self}), ({"name": ["nothing"]}, set()), ({"role": ["manager"]}, {self}),
            ({"role": ["worker"]}, set()), ({"membership": ["accepted"]}, {self}), ({"membership": ["pending"]}, set()),
            ({"node.label": ["zone=a"]}, {self}), ({"node.label": ["zone=b"]}, set()), ({"label": ["zone=a"]}, set()),
        ):
            expect(f"nodes {filters}", ids("nodes", **filters), wanted)

        end = time.monotonic() + 60
        while len(running := ids("tasks", **{"desired-state": ["running"]})) < 3 or any(
            row["Status"]["State"] != "running" for row in call("GET", "tasks")
        ):
            assert time.monotonic() < end, f"{len(running)} tasks"
            time.sleep(0.1)
        of = {name: {row["ID"] for row in call("GET", "tasks") if row["ServiceID"] == id} for name, id in (("one", one), ("two", two))}
        some = sorted(of["one"])[0]
        for filters, wanted in (
            ({"service": ["s-one"]}, of["one"]), ({"service": [two]}, of["two"]), ({"node": [self]}, running), ({"node": [name]}, running),
            ({"id": [some[:20]]}, {some}), ({"desired-state": ["shutdown"]}, set()), ({"name": ["s-two"]}, of["two"]),
            ({"service": ["s-one"], "desired-state": ["running"]}, of["one"]),
        ):
            expect(f"tasks {filters}", ids("tasks", **filters), wanted)

        for kind in ("secrets", "configs"):
            made = {name: call("POST", f"{kind}/create", {"Name": name, "Labels": labels, "Data": "aHVzaA=="})["ID"] for name, labels in (("d-one", {"k": "v"}), ("d-two", {}))}
            for filters, wanted in (
                ({"name": ["d-"]}, set(made.values())), ({"name": ["d-one"]}, {made["d-one"]}), ({"names": ["d-two"]}, {made["d-two"]}),
                ({"id": [made["d-two"][:20]]}, {made["d-two"]}), ({"label": ["k=v"]}, {made["d-one"]}), ({"label": ["none"]}, set()),
            ):
                expect(f"{kind} {filters}", ids(kind, **filters), wanted)
        for path in ("services", "nodes", "tasks", "secrets", "configs"):
            seen = refused(path, colour=["red"])
            expect(f"{path}, unknown", "invalid filter" in seen and "colour" in seen, True)
    finally:
        call("POST", "swarm/leave?force=1")


def main():
    wrong = []

    def expect(what, seen, wanted):
        if seen != wanted:
            wrong.append(f"{what}: {seen!r}, expected {wanted!r}")

    call("POST", "volumes/create", {"Name": "fdata", "Labels": {"k": "v"}})
    net = call("POST", "networks/create", {"Name": "fnet", "Labels": {"k": "v"}})["Id"]
    one = create("f-one", Labels={"k": "v", "n": "1"}, HostConfig={"Binds": ["fdata:/v"]})
    time.sleep(0.01)
    two = create("f-two", Labels={"k": "w"}, ExposedPorts={"80/tcp": {}}, HostConfig={"NetworkMode": "fnet", "PortBindings": {"80/tcp": [{"HostPort": "18095"}]}})
    time.sleep(0.01)
    create("f-three", Cmd=["sh", "-c", "exit 5"], Healthcheck={"Test": ["CMD", "true"], "Interval": 1_000_000_000})
    call("POST", "containers/f-two/start")
    call("POST", "containers/f-three/start")
    call("POST", "containers/f-three/wait")
    try:
        expect("name", containers(name=["f-t"]), "f-three f-two")
        expect("name, exact", containers(name=["^/?f-two$"]), "f-two")
        expect("id", containers(id=[one[:20], two]), "f-one f-two")
        expect("label", containers(label=["k"]), "f-one f-two")
        expect("label=value", containers(label=["k=v"]), "f-one")
        expect("two labels", containers(label=["k=v", "n=1"]), "f-one")
        expect("status", containers(status=["running"]), "f-two")
        expect("two statuses", containers(status=["created", "exited"]), "f-one f-three")
        expect("exited", containers(exited=["5"]), "f-three")
        expect("exited otherwise", containers(exited=["0"]), "")
        expect("volume", containers(volume=["fdata"]), "f-one")
        expect("volume by place", containers(volume=["/v"]), "f-one")
        expect("network", containers(network=["fnet"]), "f-two")
        expect("network by id", containers(network=[net]), "f-two")
        expect("ancestor", containers(ancestor=["busybox:test"]), "f-one f-three f-two")
        expect("ancestor, another", containers(ancestor=["nothing:1"]), "")
        expect("before", containers(before=["f-two"]), "f-one")
        expect("since", containers(since=["f-one"]), "f-three f-two")
        expect("publish", containers(publish=["18095"]), "f-two")
        expect("expose", containers(expose=["80/tcp"]), "f-two")
        expect("health", containers(health=["none"]), "f-one f-two")
        expect("is-task", containers(**{"is-task": ["true"]}), "")
        expect("is-task, not", containers(**{"is-task": ["false"]}), "f-one f-three f-two")
        expect("kinds together", containers(label=["k"], status=["running"]), "f-two")

        def named(path, field, **filters):
            rows = call("GET", f"{path}?filters=" + quote(json.dumps(filters)))
            rows = rows["Volumes"] if path == "volumes" else rows
            return " ".join(sorted(row[field] for row in rows))

        expect("volumes by label", named("volumes", "Name", label=["k=v"]), "fdata")
        expect("volumes by name", named("volumes", "Name", name=["fda"]), "fdata")
        expect("volumes by driver", named("volumes", "Name", driver=["nothing"]), "")
        expect("dangling volumes", named("volumes", "Name", dangling=["true"]), "")
        expect("volumes in use", named("volumes", "Name", dangling=["false"]), "fdata")
        expect("networks by label", named("networks", "Name", label=["k"]), "fnet")
        expect("networks by name", named("networks", "Name", name=["fne"]), "fnet")
        expect("networks by id", named("networks", "Name", id=[net[:12]]), "fnet")
        expect("networks by driver", named("networks", "Name", driver=["host"]), "host")
        expect("networks by type", named("networks", "Name", type=["custom"]), "fnet")
        expect("networks, builtin", named("networks", "Name", type=["builtin"]), "bridge host none")
        expect("networks by scope", named("networks", "Name", scope=["swarm"]), "")
        expect("dangling networks", named("networks", "Name", dangling=["true"]), "")

        def images(**filters):
            rows = call("GET", "images/json?filters=" + quote(json.dumps(filters)))
            return " ".join(sorted(tag for row in rows for tag in row["RepoTags"] or []))

        call("POST", "images/busybox:test/tag?repo=filtered&tag=1")
        expect("images by reference", images(reference=["filtered"]), "filtered:1")
        expect("images by pattern", images(reference=["filt*:1"]), "filtered:1")
        expect("images by nothing", images(reference=["filt*:2"]), "")
        expect("dangling images", images(dangling=["true"]), "")
        expect("images by label", images(label=["nothing"]), "")
        expect("images since", images(since=["busybox:test"]), "")
        call("DELETE", "images/filtered:1")

        def actions(**filters):
            connection = http.client.HTTPConnection("docker")
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(sys.argv[1])
            connection.request("GET", "/v1.51/events?since=1&until=" + str(int(time.time()) + 1) + "&filters=" + quote(json.dumps(filters)))
            text = connection.getresponse().read().decode()
            connection.close()
            return {json.loads(line)["Action"] for line in text.splitlines() if line.strip()}

        expect("events of a container", actions(container=["f-three"], event=["create", "start", "die"]), {"create", "start", "die"})
        expect("events of a volume", actions(type=["volume"], volume=["fdata"], event=["create"]), {"create"})
        call("POST", "networks/fnet/connect", {"Container": "f-one"})
        expect("events of a network", actions(type=["network"], network=["fnet"], event=["create", "connect"]), {"create", "connect"})
        expect("events by label", actions(label=["n=1"], event=["create"]), {"create"})
        expect("events by image", actions(image=["busybox:test"], event=["die"]), {"die"})
        expect("events by scope", actions(scope=["swarm"]), set())
        versions(expect)
    finally:
        for name in ("f-one", "f-two", "f-three"):
            call("DELETE", f"containers/{name}?force=1&v=1")
        call("DELETE", "networks/fnet")
        call("DELETE", "volumes/fdata")
    swarm(expect)
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


main()
