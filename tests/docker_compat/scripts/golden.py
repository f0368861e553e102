"""Makes the calls of golden/answers.json, which Docker's daemon answered, and compares the answers.

Usage: golden.py SOCKET ARCHIVE FOLDER. FOLDER/answers.json is what record.py wrote of Docker 20.10; FOLDER/changed.json
holds, by call, what is answered instead and why: later versions of Docker say some things otherwise.
"""

import json
import os
import subprocess
import sys


def key(entry):
    body = entry.get("raw", json.dumps(entry["body"], sort_keys=True) if "body" in entry else "")
    return f"{entry['method']} {entry['path']} {body}".strip()


def main():
    socket, archive, folder = sys.argv[1:]
    with open(os.path.join(folder, "answers.json"), "rb") as file:
        recorded = file.read()
    record = os.path.join(os.path.dirname(os.path.abspath(__file__)), "record.py")
    made = subprocess.run([sys.executable, record, socket, archive], input=recorded, capture_output=True, check=True)
    with open(os.path.join(folder, "changed.json"), encoding="utf-8") as file:
        changed = json.load(file)
    same, bad, used = 0, 0, set()
    for theirs, ours in zip(json.loads(recorded)["calls"], json.loads(made.stdout)["calls"], strict=True):
        name = key(theirs)
        expected = theirs
        if name in changed:
            expected = changed[name]
            used.add(name)
        if (ours["status"], ours["message"]) != (expected["status"], expected["message"]):
            bad += 1
            print(f"{name}\n  answered: {ours['status']} {ours['message']}\n  expected: {expected['status']} {expected['message']}")
        elif name not in changed:
            same += 1
        if ours.get("made"):
            bad += 1
            print(f"{name}\n  was refused with {ours['status']}, and changed: {', '.join(ours['made'])}")
    for name in set(changed) - used:
        bad += 1
        print(f"changed.json names a call that is not made: {name}")
    print(f"{same} answers equal Docker's, {len(used)} differ for a reason, {bad} differ without one")
    sys.exit(1 if bad or same < 40 else 0)


main()
