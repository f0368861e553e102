"""Runs the commands of a file with a client, and compares what they say and how they end.

Usage: commands.py PROGRAM FILE. A line `$ S …` is a command for sh, in which S is the program; the lines behind it are
what it writes to standard output, where `…` stands for anything within a line and a line `…` for any lines. `? N` is its
exit code if that is not 0, and `! text` something that standard error must contain.
"""

import os
import re
import subprocess
import sys


class Step:
    def __init__(self, number, line):
        self.number, self.line = number, line
        self.out, self.code, self.err = [], 0, []


def read(path):
    steps = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\n")
            if line.startswith("# "):
                continue
            if line.startswith("$ "):
                steps.append(Step(number, line[2:]))
            elif line.startswith("? "):
                steps[-1].code = int(line[2:])
            elif line.startswith("! "):
                steps[-1].err.append(line[2:])
            elif steps:
                steps[-1].out.append(line)
    for step in steps:
        # Empty lines between commands are there to be read.
        while step.out and not step.out[-1]:
            step.out.pop()
    return steps


def pattern(lines):
    parts = []
    for line in lines:
        if line == "…":
            parts.append("(?:.*\n)*")
        else:
            parts.append(".*".join(re.escape(part) for part in line.split("…")) + "\n")
    return "".join(parts)


def main():
    steps = read(sys.argv[2])
    env = dict(os.environ, PROGRAM=sys.argv[1], DOCKER_BUILDKIT="0", NO_COLOR="1", LC_ALL="C.UTF-8")
    bad = 0
    for step in steps:
        script = 'S() { "$PROGRAM" "$@"; }; ' + step.line
        try:
            ran = subprocess.run(
                ["sh", "-c", script], env=env, capture_output=True, stdin=subprocess.DEVNULL, timeout=60
            )
            code, out, err = ran.returncode, ran.stdout.decode(), ran.stderr.decode()
        except subprocess.TimeoutExpired as late:
            code, out, err = -1, (late.stdout or b"").decode(), "no end after 60 s"
        if out and not out.endswith("\n"):
            out += "\n"
        # Spaces at the end of a line of a table say nothing.
        out = "".join(line.rstrip() + "\n" for line in out.splitlines())
        fits = re.fullmatch(pattern(step.out), out) is not None
        if code != step.code or not fits or any(text not in err for text in step.err):
            bad += 1
            print(f"{sys.argv[2]}:{step.number}: {step.line}")
            print(f"  exit code {code}, expected {step.code}")
            if not fits:
                print("  said:     " + repr(out) + "\n  expected: " + repr("\n".join(step.out)))
            print("  standard error: " + repr(err))
            for text in step.err:
                if text not in err:
                    print("  expected in it: " + repr(text))
    print(f"{len(steps) - bad} of {len(steps)} commands as expected")
    sys.exit(1 if bad else 0)


main()
