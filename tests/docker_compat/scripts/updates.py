"""Has services updated in every way that updates can go, and tells what became of their tasks.

Usage: updates.py SOCKET ARCHIVE RECORDED [--add]. SOCKET belongs to the manager of a swarm of one node, ARCHIVE holds the
image `busybox:test`. RECORDED holds by story what came of it with Docker 20.10 in several runs; what does not stand there
is told. With `--add`, of Docker's own daemon, it is added.
"""

import http.client
import json
import os
import re
import socket
import sys
import threading
import time


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])


def call(method, path, body=None, raw=None):
    connection = Connection("docker", timeout=60)
    data = raw if raw is not None else (json.dumps(body) if body is not None else None)
    connection.request(method, "/v1.41" + path, data, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    if answer.status >= 300:
        raise RuntimeError(f"{method} {path}: {answer.status} {text}")
    try:
        return json.loads(text)
    except ValueError:
        return text


SECOND = 1_000_000_000
WORKS = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"
# Not before everybody has seen that it runs, and well before the next one's turn.
FAILS = "sleep 2; exit 3"
# Only in its second slot.
FAILS_IN_2 = f'test "$SLOT" = 2 && {{ {FAILS}; }}; {WORKS}'
ENDED = {"complete", "failed", "shutdown", "rejected", "orphaned", "remove"}


def spec(name, command, version, update, rollback, replicas):
    return {
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "busybox:test",
                "Command": ["sh", "-c", command],
                "Env": ["SLOT={{.Task.Slot}}", f"VERSION={version}"],
            },
            # Who failed is not started again while it is looked at.
            "RestartPolicy": {"Condition": "any", "Delay": 600 * SECOND},
        },
        "Mode": {"Replicated": {"Replicas": replicas}},
        "UpdateConfig": update,
        "RollbackConfig": rollback,
    }


def how(action, order, parallelism=1, ratio=0.0):
    return {
        "Parallelism": parallelism,
        # Long enough for a failure to be seen before the next ones have their turn.
        "Delay": 4 * SECOND,
        "FailureAction": action,
        "Monitor": 10 * SECOND,
        "MaxFailureRatio": ratio,
        "Order": order,
    }


def stories():
    """Name → what the old and the new version do, how it is updated and rolled back, and how many there are."""
    for order in ("stop-first", "start-first"):
        back = how("pause", order)
        for action in ("pause", "continue", "rollback"):
            yield f"works {action} {order}", WORKS, WORKS, how(action, order), back, 3
            yield f"fails {action} {order}", WORKS, FAILS, how(action, order), back, 3
            two = how(action, order, parallelism=2)
            yield f"fails two at once {action} {order}", WORKS, FAILS, two, back, 4
            some = how(action, order, ratio=0.3)
            yield f"one of four may fail {action} {order}", WORKS, FAILS_IN_2, some, back, 4
            all_at_once = how(action, order, parallelism=0)
            yield f"one of four fails all at once {action} {order}", WORKS, FAILS_IN_2, all_at_once, back, 4
        # What is gone back to fails as well: the old version works only the first time.
        once = f"test -e /once/$SLOT && {{ {FAILS}; }}; touch /once/$SLOT; {WORKS}"
        for action in ("pause", "continue"):
            yield f"the way back fails {action} {order}", once, FAILS, how("rollback", order), how(action, order), 3


def version(task):
    env = task["Spec"]["ContainerSpec"]["Env"]
    return next(word.split("=")[1] for word in env if word.startswith("VERSION="))


def tasks_of(name):
    found = call("GET", "/tasks?filters=" + json.dumps({"service": [name]}).replace(" ", "").replace('"', "%22"))
    return [task for task in found if task["Spec"].get("ContainerSpec")]


def until(what, name, check):
    """Waits for a state of the service and its tasks; what they were meanwhile is returned with it."""
    least = most = None
    end = time.monotonic() + 300
    while time.monotonic() < end:
        # In this order: what the service's state speaks of has happened to its tasks.
        service = call("GET", "/services/" + name)
        tasks = tasks_of(name)
        running = sum(task["Status"]["State"] == "running" for task in tasks)
        least = running if least is None else min(least, running)
        most = running if most is None else max(most, running)
        if check(service, tasks):
            return service, tasks, least, most
        time.sleep(0.05)
    raise RuntimeError(f"{name}: waited for {what}; last seen: {service.get('UpdateStatus')} {[(task['Slot'], version(task), task['Status']['State']) for task in tasks]}")


def settled(service, tasks):
    state = service.get("UpdateStatus", {}).get("State", "")
    # Whatever is to run runs, and what is not has ended; who waits to be started again is left out.
    quiet = all(
        task["Status"]["State"] in ENDED if task["DesiredState"] in ("shutdown", "remove") else
        task["Status"]["State"] in ENDED | {"running"} or task["DesiredState"] == "ready"
        for task in tasks
    )
    return quiet and state not in ("", "updating", "rollback_started")


def of_slot(tasks):
    """The versions that a slot has had, and what runs in it."""
    versions = [version(task) for task in tasks]
    had = [now for was, now in zip([None] + versions, versions) if was != now]
    running = sorted(version(task) for task in tasks if task["Status"]["State"] == "running")
    return f"{' '.join(had)}: {' and '.join(running) or 'nothing'} runs"


def told(story):
    name, old, new, update, rollback, replicas = story
    service = re.sub("[^a-z]+", "-", name)
    before = spec(service, old, "old", update, rollback, replicas)
    after = spec(service, new, "new", update, rollback, replicas)
    for each in (before, after):
        if "/once" in old:
            mount = {"Type": "volume", "Source": f"{service}-{os.getpid()}", "Target": "/once"}
            each["TaskTemplate"]["ContainerSpec"]["Mounts"] = [mount]
    call("POST", "/services/create", before)
    now, _, _, _ = until("its first tasks", service, lambda _, tasks: sum(task["Status"]["State"] == "running" for task in tasks) == replicas)
    call("POST", f"/services/{service}/update?version={now['Version']['Index']}", after)
    now, tasks, least, most = until("the end of the update", service, settled)
    slots = {}
    for task in sorted(tasks, key=lambda task: task["CreatedAt"]):
        slots.setdefault(task["Slot"], []).append(task)
    seen = {
        "end": [
            now["UpdateStatus"]["State"],
            re.sub(r"task [0-9a-z]{25}", "task <ID>", now["UpdateStatus"]["Message"]),
            version({"Spec": now["Spec"]["TaskTemplate"]}),
        ],
        # Which slot is first is nobody's promise.
        "slots": sorted(map(of_slot, slots.values())),
        "never fewer": least >= replicas,
        "never more": most <= replicas,
    }
    call("DELETE", "/services/" + service)
    return seen


PROMISES = ("never fewer", "never more")


def add(recorded, name, seen):
    """Which of them is late decides about each slot, so they are kept apart."""
    known = recorded.setdefault(name, {"ends": [], "slots": [], **{promise: True for promise in PROMISES}})
    known["ends"] = sorted(known["ends"] + [seen["end"]] * (seen["end"] not in known["ends"]))
    known["slots"] = sorted({*known["slots"], *seen["slots"]})
    for promise in PROMISES:
        known[promise] &= seen[promise]


def is_like(recorded, seen):
    """Whether it came as it did with Docker, and kept at least what Docker kept each time."""
    if recorded is None or seen["end"] not in recorded["ends"]:
        return False
    # Where nothing ran there may run what shall.
    runs = f": {seen['end'][2]} runs"
    slots = {*recorded["slots"], *(slot.replace(": nothing runs", runs) for slot in recorded["slots"])}
    return set(seen["slots"]) <= slots and all(seen[promise] or not recorded[promise] for promise in PROMISES)


def main():
    with open(sys.argv[2], "rb") as archive:
        call("POST", "/images/load", raw=archive.read())
    seen, failed = {}, []
    # Docker starts two containers in a second, ours as many as the machine can; what is late is another story.
    turns = threading.Semaphore(6 if sys.argv[4:] else 12)

    def run(story):
        try:
            with turns:
                seen[story[0]] = told(story)
        except Exception as error:  # told below, for every story
            failed.append(f"{story[0]}: {error}")

    threads = [threading.Thread(target=run, args=(story,)) for story in stories()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = dict(sorted(seen.items()))
    with open(sys.argv[3], encoding="utf-8") as file:
        recorded = json.load(file)
    if sys.argv[4:] == ["--add"]:
        if failed:
            sys.exit("\n".join(failed))
        for name, theirs in seen.items():
            add(recorded, name, theirs)
        with open(sys.argv[3], "w", encoding="utf-8") as file:
            json.dump(dict(sorted(recorded.items())), file, indent=1)
            file.write("\n")
        return
    unlike = {name: ours for name, ours in seen.items() if not is_like(recorded.get(name), ours)}
    for name, ours in unlike.items():
        print(f"{name}\n  docker: {json.dumps(recorded.get(name))}\n  ours:   {json.dumps(ours)}")
    print(*failed, sep="\n")
    print(f"{len(seen) - len(unlike)} of {len(seen)} updates went as Docker's")
    sys.exit(1 if unlike or failed else 0)


main()
