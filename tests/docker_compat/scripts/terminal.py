"""Drives a client by a terminal, as people do.

Usage: terminal.py PROGRAM, a client of the daemon in DOCKER_HOST, which has the image `busybox:test`.
"""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import traceback

PROGRAM = sys.argv[1]
IMAGE = "busybox:test"


class Terminal:
    """The program on a terminal of its own."""

    def __init__(self, *words, rows=33, columns=99):
        self.seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            # The size must be there before the program asks for it.
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execvp(PROGRAM, [PROGRAM, *words])

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.fd, text if isinstance(text, bytes) else text.encode())

    def read(self, seconds):
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return False
        try:
            piece = os.read(self.fd, 4096)
        except OSError:  # the other side is closed
            return None
        self.seen += piece
        return True if piece else None

    def expect(self, text, seconds=30):
        """Waits until the program has written this, and forgets what came before."""
        text, end = text.encode(), time.monotonic() + seconds
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0 and self.read(left) is not None, f"{text!r} did not come, but {self.seen!r}"
        self.seen = self.seen.split(text, 1)[1]

    def ends(self, seconds=30):
        """Waits for the program's end, and returns its exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                while self.read(0):
                    pass
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            self.read(0.05)
        raise AssertionError(f"it did not end; it said {self.seen!r}")


def client(*words, **more):
    ran = subprocess.run([PROGRAM, *words], capture_output=True, timeout=60, **more)
    return ran.returncode, ran.stdout.decode(), ran.stderr.decode()


def is_running(name):
    return client("inspect", "-f", "{{.State.Running}}", name)[1].strip() == "true"


def a_shell_has_the_size_of_the_terminal():
    shell = Terminal("run", "-it", "--rm", "--name", "pty", IMAGE, "sh")
    shell.expect("# ")
    # The size comes with the start or right behind it.
    end = time.monotonic() + 20
    while b"33 99" not in shell.seen:
        assert time.monotonic() < end, shell.seen
        shell.type("stty size\n")
        shell.read(0.2)
    shell.resize(20, 70)
    while b"20 70" not in shell.seen:
        assert time.monotonic() < end, shell.seen
        shell.type("stty size\n")
        shell.read(0.2)
    shell.type("exit 7\n")
    assert shell.ends() == 7


def keys_of_the_terminal_are_signals_inside():
    shell = Terminal("run", "-it", "--rm", "--name", "pty", IMAGE, "sh", "-c", "trap 'exit 8' INT; echo ready; while :; do sleep 1; done")
    shell.expect("ready")
    shell.type(b"\x03")
    assert shell.ends() == 8


def the_end_of_the_input_ends_the_shell():
    shell = Terminal("run", "-it", "--rm", "--name", "pty", IMAGE, "sh")
    shell.expect("# ")
    shell.type(b"\x04")
    assert shell.ends() == 0


def detaching_leaves_the_container_running():
    shell = Terminal("run", "-it", "--name", "pty", IMAGE, "sh")
    shell.expect("# ")
    shell.type(b"\x10\x11")
    assert shell.ends() == 0
    assert is_running("pty")
    again = Terminal("attach", "pty")
    again.type("echo ba''ck\n")
    again.expect("back")
    again.type("exit 3\n")
    assert again.ends() == 3
    assert client("rm", "pty")[0] == 0


def other_keys_detach_if_the_user_says_so():
    shell = Terminal("run", "-it", "--detach-keys", "ctrl-x,d", "--name", "pty", IMAGE, "sh")
    shell.expect("# ")
    # The usual keys are the shell's then.
    shell.type(b"\x10\x11\x15echo he''re\n")
    shell.expect("here")
    shell.type(b"\x18d")
    shell.ends()
    assert is_running("pty")
    again = Terminal("attach", "--detach-keys", "@", "pty")
    again.type("echo ba''ck\n")
    again.expect("back")
    again.type("@")
    again.ends()
    assert is_running("pty")
    assert client("rm", "-f", "pty")[0] == 0


def a_command_in_a_container_has_a_terminal():
    assert client("run", "-d", "--name", "pty", IMAGE, "sleep", "1000")[0] == 0
    shell = Terminal("exec", "-it", "pty", "sh")
    shell.expect("# ")
    end = time.monotonic() + 20
    while b"33 99" not in shell.seen:
        assert time.monotonic() < end, shell.seen
        shell.type("stty size\n")
        shell.read(0.2)
    shell.type("exit 5\n")
    assert shell.ends() == 5
    shell = Terminal("exec", "-it", "--detach-keys", "ctrl-a", "pty", "sh", "-c", "echo on; exec sleep 1000")
    shell.expect("on")
    shell.type(b"\x01")
    shell.ends()
    assert is_running("pty")
    assert client("rm", "-f", "pty")[0] == 0


def a_started_container_can_be_held():
    assert client("create", "-it", "--name", "pty", IMAGE, "sh")[0] == 0
    shell = Terminal("start", "-ai", "pty")
    shell.expect("# ")
    shell.type("exit 6\n")
    assert shell.ends() == 6
    assert client("rm", "pty")[0] == 0


def signals_are_passed_on():
    words = [PROGRAM, "run", "--rm", "--name", "pty", IMAGE, "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert run.stdout.readline() == b"ready\n"
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == 9


def input_ends_where_the_pipe_does():
    code, out, _ = client("run", "--rm", "-i", IMAGE, "sh", "-c", "wc -c; exit 2", input=b"x" * 1_000_000)
    assert (code, out.strip()) == (2, "1000000"), (code, out)


CHECKS = [
    a_shell_has_the_size_of_the_terminal,
    keys_of_the_terminal_are_signals_inside,
    the_end_of_the_input_ends_the_shell,
    detaching_leaves_the_container_running,
    other_keys_detach_if_the_user_says_so,
    a_command_in_a_container_has_a_terminal,
    a_started_container_can_be_held,
    signals_are_passed_on,
    input_ends_where_the_pipe_does,
]


def main():
    bad = 0
    for check in CHECKS:
        try:
            check()
            print(f"ok {check.__name__}", flush=True)
        except Exception:  # all kinds of failure are reported alike
            bad += 1
            print(f"FAILED {check.__name__}\n{traceback.format_exc()}", flush=True)
            client("rm", "-f", "pty")
    sys.exit(1 if bad else 0)


main()
