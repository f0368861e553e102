"""Containers as a test-suite has them that uses testcontainers: made, waited for by every strategy, asked, gone.

Usage: testcontainers_sample.py ARCHIVE ADDRESS, with DOCKER_HOST set; ADDRESS is where published ports are.
"""

import os
import sys
import urllib.request

ARCHIVE, ADDRESS = sys.argv[1:]
# Its reaper is an image of a registry; what is made here is removed here.
os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
os.environ["TESTCONTAINERS_HOST_OVERRIDE"] = ADDRESS

import docker
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import (
    ContainerStatusWaitStrategy,
    FileExistsWaitStrategy,
    HealthcheckWaitStrategy,
    HttpWaitStrategy,
    LogMessageWaitStrategy,
    PortWaitStrategy,
)

client = docker.from_env()
with open(ARCHIVE, "rb") as archive:
    client.images.load(archive)
before = {container.id for container in client.containers.list(all=True)}

SERVE = ["sh", "-c", "mkdir /srv; echo hello > /srv/page; echo serving >&2; exec httpd -f -p 80 -h /srv"]
HEALTH = {"test": ["CMD", "wget", "-qO-", "http://127.0.0.1/page"], "interval": 200_000_000}


def web(strategy):
    return (
        DockerContainer("busybox:test", healthcheck=HEALTH)
        .with_command(SERVE)
        .with_env("WHO", "me")
        .with_exposed_ports(80)
        .waiting_for(strategy)
    )


for strategy in [
    LogMessageWaitStrategy("serving"),
    PortWaitStrategy(80),
    HttpWaitStrategy(80, "/page").for_status_code(200),
    HealthcheckWaitStrategy(),
    ContainerStatusWaitStrategy(),
]:
    with web(strategy) as container:
        port = container.get_exposed_port(80)
        HttpWaitStrategy(80, "/page").wait_until_ready(container)
        page = urllib.request.urlopen(f"http://{ADDRESS}:{port}/page").read()
        assert page == b"hello\n", page
        assert container.exec(["sh", "-c", "echo $WHO"]).output == b"me\n"
        assert b"serving" in container.get_logs()[1]

with Network() as network:
    served = DockerContainer("busybox:test").with_command(SERVE).with_network(network).with_network_aliases("site")
    served = served.waiting_for(LogMessageWaitStrategy("serving"))
    # It stays: of one that has ended the library looks at nothing that it said.
    asks = ["sh", "-c", "wget -qO- http://site/page; sleep 1000"]
    asks = DockerContainer("busybox:test").with_network(network).with_command(asks)
    with served, asks.waiting_for(LogMessageWaitStrategy("hello")):
        pass

folder = os.path.dirname(ARCHIVE)
os.mkdir(os.path.join(folder, "shared"))
writes = DockerContainer("busybox:test").with_command(["sh", "-c", "touch /shared/done; sleep 1000"])
writes = writes.with_volume_mapping(os.path.join(folder, "shared"), "/shared", "rw")
with writes.waiting_for(FileExistsWaitStrategy(os.path.join(folder, "shared", "done"))):
    pass

after = {container.id for container in client.containers.list(all=True)}
assert after == before, after - before
