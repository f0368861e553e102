"""What users of Docker's SDK for Python write, against the socket in DOCKER_HOST.

Usage: sdk.py ARCHIVE, where ARCHIVE is a `docker save` of the image `busybox:test`.
Each function is a check; all of them run, and the exit code says whether all held.
"""

import io
import os
import sys
import tarfile
import threading
import time
import traceback

import docker
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound
from docker.types import (
    EndpointSpec,
    Healthcheck,
    LogConfig,
    Mount,
    Resources,
    RestartPolicy,
    ServiceMode,
    Ulimit,
    UpdateConfig,
)

IMAGE = "busybox:test"
client = docker.from_env(timeout=60)


def until(what, ask, seconds=30):
    """Asks until the answer is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seen = ask()
        if seen:
            return seen
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


def fails(status, call, *words, **named):
    """The call is refused with this status; returns docker's text."""
    try:
        call(*words, **named)
    except APIError as error:
        assert error.status_code == status, f"{error.status_code}: {error.explanation}"
        return error.explanation
    raise AssertionError("was not refused")


def system():
    assert client.ping()
    version = client.version()
    assert version["ApiVersion"] == "1.51" and version["MinAPIVersion"] == "1.24", version
    info = client.info()
    assert info["OSType"] == "linux" and info["NCPU"] > 0 and info["MemTotal"] > 0
    assert info["ID"] and info["Name"] and info["ServerVersion"] == version["Version"]
    usage = client.df()
    assert set(usage) >= {"LayersSize", "Images", "Containers", "Volumes", "BuildCache"}


def images():
    image = client.images.get(IMAGE)
    assert IMAGE in image.tags and image.id.startswith("sha256:")
    assert any(IMAGE in found.tags for found in client.images.list())
    assert image.tag("busybox", "again")
    assert "busybox:again" in client.images.get(image.id).tags
    assert client.images.list(filters={"reference": "busybox:again"})
    archive = b"".join(image.save(named=True))
    names = tarfile.open(fileobj=io.BytesIO(archive)).getnames()
    assert "manifest.json" in names, names
    client.images.remove("busybox:again")
    assert "busybox:again" not in client.images.get(image.id).tags
    loaded = client.images.load(archive)
    assert loaded[0].id == image.id
    assert image.history()
    try:
        client.images.get("nothing:here")
    except ImageNotFound as error:
        assert error.explanation == "No such image: nothing:here", error.explanation
    else:
        raise AssertionError("found an image that is not there")
    assert client.images.prune(filters={"dangling": True})["SpaceReclaimed"] >= 0


def run_to_the_end():
    assert client.containers.run(IMAGE, "echo hello", remove=True) == b"hello\n"
    said = client.containers.run(
        IMAGE, ["sh", "-c", "echo out; echo err >&2"], remove=True, stdout=True, stderr=True
    )
    assert sorted(said.splitlines()) == [b"err", b"out"], said
    try:
        client.containers.run(IMAGE, ["sh", "-c", "echo bad >&2; exit 3"], remove=True)
    except ContainerError as error:
        assert error.exit_status == 3 and error.stderr == b"bad\n", error
    else:
        raise AssertionError("an exit code was lost")
    said = client.containers.run(
        IMAGE,
        ["sh", "-c", "echo $A $PWD; id -u; hostname; cat /proc/mounts | grep -c /scratch"],
        remove=True,
        environment={"A": "b c"},
        working_dir="/tmp",
        user="7:8",
        hostname="there",
        tmpfs={"/scratch": "size=1m"},
        mem_limit="64m",
        nano_cpus=500_000_000,
        cap_drop=["ALL"],
        ulimits=[Ulimit(name="nofile", soft=100, hard=100)],
        log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": "1m"}),
    )
    assert said == b"b c /tmp\n7\nthere\n1\n", said


def life_of_a_container():
    container = client.containers.create(
        IMAGE,
        ["sh", "-c", "trap 'exit 4' TERM; while :; do echo tick; sleep 0.1; done"],
        name="life",
        labels={"a": "b"},
        detach=True,
        healthcheck=Healthcheck(test=["CMD", "true"], interval=100_000_000),
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 0},
    )
    try:
        assert container.status == "created"
        container.start()
        container.reload()
        assert container.status == "running" and container.attrs["State"]["Pid"] > 0
        assert container.short_id and container.image.id == client.images.get(IMAGE).id
        assert [c.name for c in client.containers.list(filters={"label": "a=b"})] == ["life"]
        until("health", lambda: client.containers.get("life").health == "healthy")
        lines = container.logs(stream=True, follow=True)
        assert next(lines) == b"tick\n" and next(lines) == b"tick\n"
        lines.close()
        assert container.logs(tail=1, timestamps=True).endswith(b"Z tick\n")
        assert container.top()["Titles"][0] in ("UID", "PID", "USER")
        container.pause()
        container.reload()
        assert container.status == "paused"
        container.unpause()
        container.rename("life2")
        assert client.containers.get("life2").id == container.id
        container.update(mem_limit="128m", memswap_limit="256m")
        container.reload()
        assert container.attrs["HostConfig"]["Memory"] == 128 << 20
        container.kill("SIGTERM")
        ended = container.wait(timeout=20)
        assert ended["StatusCode"] == 4, ended
        container.restart()
        container.stop(timeout=1)
        container.reload()
        assert container.status == "exited" and container.attrs["State"]["ExitCode"] == 4
        assert container.diff() in (None, []) or isinstance(container.diff(), list)
    finally:
        container.remove(force=True, v=True)
    fails(404, client.containers.get, "life2")


def statistics():
    container = client.containers.run(IMAGE, ["sh", "-c", "while :; do :; done"], detach=True)
    try:
        once = container.stats(stream=False)
        assert once["cpu_stats"]["cpu_usage"]["total_usage"] > once["precpu_stats"]["cpu_usage"]["total_usage"]
        assert once["memory_stats"]["usage"] > 0 and once["pids_stats"]["current"] >= 1
        assert "eth0" in once["networks"], once.get("networks")
        stream = container.stats(decode=True)
        first, second = next(stream), next(stream)
        assert second["read"] > first["read"]
        stream.close()
    finally:
        container.remove(force=True)


def exec_and_attach():
    container = client.containers.run(IMAGE, "cat", stdin_open=True, detach=True)
    try:
        code, output = container.exec_run(["sh", "-c", "echo $X; pwd; exit 5"], environment={"X": "y"}, workdir="/tmp")
        assert (code, output) == (5, b"y\n/tmp\n"), (code, output)
        code, (out, err) = container.exec_run(["sh", "-c", "echo out; echo err >&2"], demux=True)
        assert (code, out, err) == (0, b"out\n", b"err\n")
        _, pieces = container.exec_run(["sh", "-c", "echo a; echo b"], stream=True)
        assert b"".join(pieces) == b"a\nb\n"
        _, socket = container.exec_run(["cat"], stdin=True, socket=True, tty=True)
        socket._sock.sendall(b"typed\n")
        seen = b""
        while b"typed\r\ntyped\r\n" not in seen:
            piece = socket._sock.recv(4096)
            assert piece, seen
            seen += piece
        socket._sock.close()
        made = client.api.exec_create(container.id, ["sleep", "30"])
        client.api.exec_start(made["Id"], detach=True)
        state = client.api.exec_inspect(made["Id"])
        assert state["Running"] and state["ExitCode"] is None, state
        socket = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
        socket._sock.sendall(b"hello\n")
        assert socket._sock.recv(4096)[-6:] == b"hello\n"
        socket._sock.close()
        websocket_of(container)
        code, _ = container.exec_run("/nothing")
        assert code in (126, 127), code
        assert "is not running" in fails(409, client.containers.create(IMAGE, name="idle").exec_run, "true")
        client.containers.get("idle").remove()
    finally:
        container.remove(force=True)


def websocket_of(container):
    """The SDK opens websockets over TCP alone; here it gets a connection to the socket."""
    import socket

    import websocket

    def connect(url):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(30)
        connection.connect(os.environ["DOCKER_HOST"].removeprefix("unix://"))
        assert "/attach/ws" in url, url
        return websocket.create_connection("ws://docker" + url[url.index("/v1.") :], socket=connection)

    client.api._create_websocket_connection = connect
    stream = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1}, ws=True)
    stream.send("over a websocket\n")
    seen = b""
    while b"over a websocket\n" not in seen:
        piece = stream.recv()
        assert piece, seen
        seen += piece if isinstance(piece, bytes) else piece.encode()
    stream.close()


def files():
    container = client.containers.create(IMAGE, ["cat", "/tmp/note"])
    try:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            entry = tarfile.TarInfo("note")
            entry.size = 5
            archive.addfile(entry, io.BytesIO(b"hello"))
        assert container.put_archive("/tmp", packed.getvalue())
        pieces, status = container.get_archive("/tmp/note")
        assert status["name"] == "note" and status["size"] == 5, status
        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
            assert archive.extractfile("note").read() == b"hello"
        fails(404, container.get_archive, "/nothing")
        container.start()
        assert container.wait()["StatusCode"] == 0
        assert container.logs() == b"hello"
        assert {"Path": "/tmp/note", "Kind": 1} in container.diff(), container.diff()
        whole = tarfile.open(fileobj=io.BytesIO(b"".join(container.export())))
        assert "tmp/note" in [name.lstrip("./") for name in whole.getnames()]
        image = container.commit("busybox", "noted", message="a note", conf={"Cmd": ["cat", "/tmp/note"]})
        assert client.containers.run(image.id, remove=True) == b"hello"
        client.images.remove("busybox:noted")
    finally:
        container.remove(force=True)


def volumes():
    volume = client.volumes.create("data", labels={"a": "b"})
    try:
        client.containers.run(IMAGE, ["sh", "-c", "echo kept > /v/file"], volumes={"data": {"bind": "/v"}}, remove=True)
        mounts = [Mount("/w", "data", read_only=True)]
        assert client.containers.run(IMAGE, "cat /w/file", mounts=mounts, remove=True) == b"kept\n"
        assert [v.name for v in client.volumes.list(filters={"label": "a=b"})] == ["data"]
        assert client.volumes.get("data").attrs["Mountpoint"]
        holder = client.containers.create(IMAGE, volumes=["data:/v"])
        assert "volume is in use" in fails(409, volume.remove)
        holder.remove()
    finally:
        volume.remove()
    fails(404, client.volumes.get, "data")
    assert client.volumes.prune()["SpaceReclaimed"] >= 0


def networks():
    network = client.networks.create("net", driver="bridge", labels={"a": "b"})
    try:
        server = client.containers.run(
            IMAGE, "httpd -f -p 80 -h /etc", name="server", network="net", detach=True, ports={"80/tcp": None}
        )
        said = client.containers.run(IMAGE, "wget -qO- http://server/hostname", network="net", remove=True)
        assert said.decode().strip() == server.id[:12], said
        server.reload()
        assert int(server.ports["80/tcp"][0]["HostPort"]) > 0, server.ports
        network.reload()
        assert [c.name for c in network.containers] == ["server"]
        assert [n.name for n in client.networks.list(names=["net"])] == ["net"]
        network.disconnect(server)
        network.connect(server, aliases=["web"])
        said = client.containers.run(IMAGE, "wget -qO- http://web/hostname", network="net", remove=True)
        assert said.decode().strip() == server.id[:12]
        fails(403, network.remove)
        server.remove(force=True)
    finally:
        for left in client.containers.list(all=True, filters={"name": "server"}):
            left.remove(force=True)
        network.remove()
    assert {n.name for n in client.networks.list()} >= {"bridge", "host", "none"}


def events():
    seen = []
    stream = client.events(decode=True, filters={"type": "container", "image": IMAGE})

    def collect():
        for event in stream:
            seen.append(event["Action"])
            if event["Action"] == "destroy":
                return

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    since = int(time.time())
    # The stream is open once its head has come, which the call above has waited for.
    client.containers.run(IMAGE, "true", remove=True)
    reader.join(20)
    stream.close()
    assert [a for a in ("create", "start", "die", "destroy") if a in seen] == ["create", "start", "die", "destroy"], seen
    past = client.events(since=since, until=int(time.time()) + 1, decode=True, filters={"event": "die"})
    assert any(event["Action"] == "die" for event in past)


def services():
    client.swarm.init(advertise_addr=sys.argv[2])
    try:
        assert client.swarm.attrs["JoinTokens"]["Worker"].startswith("SWMTKN-1-")
        assert [n.attrs["Spec"]["Role"] for n in client.nodes.list()] == ["manager"]
        client.networks.create("over", driver="overlay", attachable=True)
        config = client.configs.create(name="conf", data=b"text")
        secret = client.secrets.create(name="word", data=b"hush", labels={"a": "b"})
        assert client.secrets.get(secret.id).name == "word"
        assert client.configs.get(config.id).name == "conf"
        service = client.services.create(
            IMAGE,
            command=["sh", "-c", "cat /run/secrets/word; echo; sleep 1000"],
            name="web",
            mode=ServiceMode("replicated", 2),
            networks=["over"],
            env=["A=b"],
            labels={"tier": "front"},
            secrets=[docker.types.SecretReference(secret.id, "word")],
            configs=[docker.types.ConfigReference(config.id, "conf", "/conf")],
            endpoint_spec=EndpointSpec(ports={18080: 80}),
            resources=Resources(mem_limit=64 << 20),
            restart_policy=RestartPolicy("any", delay=0),
            update_config=UpdateConfig(parallelism=2, delay=0, order="start-first"),
            stop_grace_period=100_000_000,
        )

        def running(count):
            tasks = service.tasks(filters={"desired-state": "running"})
            return len(tasks) == count and all(t["Status"]["State"] == "running" for t in tasks) and tasks

        until("two tasks", lambda: running(2))
        assert service.scale(3)
        tasks = until("three tasks", lambda: running(3))
        assert {t["Slot"] for t in tasks} == {1, 2, 3}
        service.reload()
        assert service.attrs["Spec"]["Mode"]["Replicated"]["Replicas"] == 3
        until("logs", lambda: b"".join(service.logs(stdout=True)).count(b"hush") == 3)
        service.update(env=["A=c"], fetch_current_spec=True)
        until("the update", lambda: all("A=c" in t["Spec"]["ContainerSpec"]["Env"] for t in running(3) or [{"Spec": {"ContainerSpec": {"Env": []}}}]))

        def updated():
            service.reload()
            return service.attrs["UpdateStatus"]["State"] == "completed"

        # That it is over is written down, too: whoever asks for more before is out of sequence.
        until("the end of the update", updated)
        assert service.force_update()
        assert [s.name for s in client.services.list(filters={"label": "tier=front"})] == ["web"]
        assert "name conflicts" in fails(409, client.services.create, IMAGE, name="web")
        service.remove()
        fails(404, client.services.get, "web")
        until("the end of the tasks", lambda: not client.containers.list(filters={"label": "com.docker.swarm.service.name=web"}))
        secret.remove()
        config.remove()
    finally:
        client.swarm.leave(force=True)
    assert client.info()["Swarm"]["LocalNodeState"] == "inactive"


CHECKS = [
    system,
    images,
    run_to_the_end,
    life_of_a_container,
    statistics,
    exec_and_attach,
    files,
    volumes,
    networks,
    events,
    services,
]


def main():
    with open(sys.argv[1], "rb") as archive:
        client.images.load(archive)
    wanted = sys.argv[3:]
    bad = 0
    for check in CHECKS:
        if wanted and check.__name__ not in wanted:
            continue
        try:
            check()
            print(f"ok {check.__name__}", flush=True)
        except Exception:  # all kinds of failure are reported alike
            bad += 1
            print(f"FAILED {check.__name__}\n{traceback.format_exc()}", flush=True)
    sys.exit(1 if bad else 0)


main()
