"""coracle.py - run the VMM from a test: start it, read what the guest says, ask the control socket

The program is $CORACLE, or build/release/coracle; what it runs is given as on its command line.
Nothing here sleeps: everything waits for a line, an answer or an exit, up to a deadline that a slow
host stretches with CORACLE_TEST_TIMEOUT (seconds, default 60).

    with Coracle("--kernel", guest("hello"), "--memory", "64M") as m:
        m.line(r"ready")
        m.send(b"x")
        m.call("pause")
        assert m.wait() == 0
"""
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

TOP = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("CORACLE", str(TOP / "build/release/coracle"))
GUESTS = pathlib.Path(os.environ.get("CORACLE_GUESTS", TOP / "build/guest"))
TIMEOUT = float(os.environ.get("CORACLE_TEST_TIMEOUT", "60"))


def guest(name):
    """The path of a guest of tests/guest: "hello", or "flat16.bin"."""
    path = GUESTS / (name if "." in name else name + ".elf")
    if not path.exists():
        raise FileNotFoundError(f"{path}: run `make guest-kit` first")
    return str(path)


def check_host():
    """What `coracle check-host --json` says, and its exit status."""
    run = subprocess.run([PROGRAM, "check-host", "--json"], capture_output=True, text=True,
                         timeout=TIMEOUT, check=False)
    return json.loads(run.stdout), run.returncode


def why_no_kvm():
    """None where machines run, otherwise the reason to skip."""
    if not os.path.exists(PROGRAM):
        return f"{PROGRAM} is not built"
    host, _ = check_host()
    if host["kvm"]["usable"]:
        return None
    return "; ".join(f"{k}: {v['detail']}" for k, v in host["checks"].items()
                     if k.startswith("kvm.") and v["has"] == "no") or "no KVM"


class Died(AssertionError):
    """The machine ended, or the time did, before what was waited for."""


class Reader(threading.Thread):
    """Keeps what a pipe brings; others wait for it."""

    def __init__(self, pipe):
        super().__init__(daemon=True)
        self.pipe, self.data, self.ended = pipe, b"", False
        self.changed = threading.Condition()
        self.start()

    def read(self):
        """The next piece; nothing at the end."""
        return os.read(self.pipe.fileno(), 65536)

    def run(self):
        while True:
            try:
                piece = self.read()
            except OSError:     # a terminal's other end is gone
                piece = b""
            with self.changed:
                self.data += piece
                self.ended = not piece
                self.changed.notify_all()
            if not piece:
                return

    def wait_for(self, find, timeout):
        """find(data) until it is not None; None if the pipe or the time ends first."""
        with self.changed:
            end = time.monotonic() + timeout
            while True:
                found = find(self.data)
                left = end - time.monotonic()
                if found is not None or self.ended or left <= 0:
                    return found
                self.changed.wait(left)


class Coracle:
    """One machine. Its serial port is the process's stdin and stdout unless --serial is given.

    @prefix is a command that starts another in its place (nsenter, nice); @command "restore" wants a
    snapshot's directory as its first argument, which brings its serial port along. @program: another one.
    """

    def __init__(self, *args, control=True, prefix=(), command="run", program=PROGRAM, **popen):
        self.dir = tempfile.mkdtemp(prefix="coracle-test-")
        self.args = [*prefix, program, command, *map(str, args)]
        if "--serial" not in args and command == "run":
            self.args += ["--serial", "stdio"]
        self.socket_path = os.path.join(self.dir, "control")
        if control and "--control" not in args:
            self.args += ["--control", self.socket_path]
        self.process = subprocess.Popen(self.args, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, **popen)
        self.out, self.err = Reader(self.process.stdout), Reader(self.process.stderr)
        self.seen = 0  # of out.data, by line()
        self.control = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.control:
            self.control.close()
        for reader in (self.out, self.err):
            reader.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    @property
    def pid(self):
        return self.process.pid

    # ---- the serial port ----

    def story(self):
        """What is known, for an error message."""
        return (f"{' '.join(self.args)}\n--- serial port ---\n{self.text()}"
                f"\n--- messages ---\n{self.errors()}")

    def text(self):
        return self.out.data.decode(errors="replace").replace("\r", "")

    def errors(self):
        return self.err.data.decode(errors="replace")

    def lines(self):
        return self.text().splitlines()

    def line(self, pattern, timeout=TIMEOUT):
        """Wait for a whole line, after the last one waited for, that matches. Returns the match."""
        regex = re.compile(rf"^(?:{pattern})\r?\n".encode(), re.MULTILINE)
        match = self.out.wait_for(lambda data: regex.search(data, self.seen), timeout)
        if match is None:
            ended = "ended" if self.out.ended else f"said nothing for {timeout:.0f} s"
            raise Died(f"no line {pattern!r}: the machine {ended}\n{self.story()}")
        self.seen = match.end()
        return match

    def send(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    # ---- the end ----

    def wait(self, timeout=TIMEOUT):
        """Its exit status. Everything it wrote has been read."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Died(f"the machine does not end\n{self.story()}") from None
        for reader in (self.out, self.err):
            reader.join(timeout)
        return status

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    # ---- the control socket ----

    def connect(self):
        """A client of the control socket; call() makes the first one by itself."""
        self.wait_for_socket()
        return Control(self.socket_path)

    def wait_for_socket(self):
        """Until it listens, which is before the first message, whatever that is."""
        self.err.wait_for(lambda data: True if data or os.path.exists(self.socket_path) else None,
                          TIMEOUT)

    def call(self, method, **params):
        """The result of a request. Raises ControlError."""
        if not self.control:
            self.control = self.connect()
        return self.control.call(method, **params)

    def ctl(self, *args, **popen):
        """`coracle ctl` with this machine, to its end: CompletedProcess with text."""
        self.wait_for_socket()
        return subprocess.run([PROGRAM, "ctl", self.socket_path, *map(str, args)],
                              capture_output=True, text=True, timeout=TIMEOUT, check=False, **popen)

    def snapshot(self, directory, *args):
        """Write a snapshot; fails if that does."""
        done = self.ctl("snapshot", directory, *args)
        assert done.returncode == 0, f"{done.stderr}\n{self.story()}"
        return done.stdout

    def event(self, name, timeout=TIMEOUT):
        """Wait for an event; those before it are dropped. Its params."""
        if not self.control:
            self.control = self.connect()
        return self.control.event(name, timeout)


class ControlError(Exception):
    def __init__(self, error):
        super().__init__(error.get("message"))
        self.code = error.get("code")
        self.data = error.get("data")


class Control:
    """JSON-RPC 2.0, a message a line."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")
        self.next_id = 1
        self.events = []

    def close(self):
        self.file.close()
        self.socket.close()

    def receive(self):
        line = self.file.readline()
        if not line:
            raise Died("the control socket was closed")
        return json.loads(line)

    def call(self, method, **params):
        message = {"jsonrpc": "2.0", "id": self.next_id, "method": method}
        if params:
            message["params"] = params
        self.next_id += 1
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            answer = self.receive()
            if "id" not in answer:
                self.events.append(answer)
                continue
            assert answer["id"] == message["id"], answer
            if "error" in answer:
                raise ControlError(answer["error"])
            return answer["result"]

    def event(self, name, timeout=TIMEOUT):
        end = time.monotonic() + timeout
        while True:
            message = self.events.pop(0) if self.events else self.receive()
            if message.get("method") == name:
                return message.get("params")
            if time.monotonic() > end:
                raise Died(f"no event {name}")


def verdicts(machine):
    """Check a kit guest's report: nothing failed, something passed, and it came to its end."""
    lines = machine.lines()
    failed = [line for line in lines if line.startswith("fail ")]
    passed = [line[3:] for line in lines if line.startswith("ok ")]
    assert not failed, "\n".join(failed) + "\n" + machine.story()
    assert passed, "the guest reports nothing\n" + machine.story()
    assert "done" in lines, "the guest did not come to its end\n" + machine.story()
    return passed


def console_says():
    """What the guest "console" writes to its virtio console before it echoes."""
    out, size = b"Efirst", 1 << 20
    for seed in range(2):
        letters = bytes(ord("a") + (i * 7 + seed) % 26 for i in range(26 + 4096))
        for page in range(size // 4096):    # each starts a letter further
            at = (page * 4096 * 7 + page) * 15 % 26     # 7 * 15 = 1 modulo 26
            out += letters[at:at + 4096]
    return out
