"""test_virtio_console.py - the virtio console and its size

On any KVM, with the guest "console" of tests/guest, whose report comes on the serial port.
"""
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import termios

import pexpect
import pytest

from coracle import (PROGRAM, TIMEOUT, Control, ControlError, Coracle, console_says, guest, verdicts,
                     why_no_kvm)
from migration import Target

WHY_NOT = why_no_kvm()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
TRANSPORTS = ("pci", "mmio")


def console_guest(*args, cmdline="echo"):
    return ["--kernel", guest("console"), "--memory", "16M", "--cmdline", cmdline, *map(str, args)]


class Line:
    """A client of --console unix:PATH."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(str(path))
        self.seen = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def until(self, text):
        while text not in self.seen:
            piece = self.socket.recv(65536)
            assert piece, self.seen[-200:]
            self.seen += piece
        _, _, self.seen = self.seen.partition(text)

    def send(self, data):
        self.socket.sendall(data)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_output_is_whole(transport, tmp_path):
    out = tmp_path / "out"
    with Coracle(*console_guest("--transport", transport, "--console", f"file:{out}",
                                cmdline="")) as m:
        assert m.wait() == 0, m.story()
        assert {"long", "features", "no-more-queues"} <= set(verdicts(m))
    assert out.read_bytes() == console_says()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_echo_and_size(transport, tmp_path):
    """What is typed arrives, and a size that the control socket sets, with an interrupt each time."""
    with Coracle(*console_guest("--transport", transport, "--console",
                                f"unix:{tmp_path}/c")) as m:
        m.line("ready")
        with Line(f"{tmp_path}/c") as line:
            line.until(b"size 0x0\r\n")
            line.send(b"hello")
            line.until(b"hello")
            for cols, rows in ((80, 24), (65535, 1), (1, 65535)):
                assert m.call("console-resize", cols=cols, rows=rows) == {"cols": cols, "rows": rows}
                line.until(f"size {cols}x{rows}\r\n".encode())
            done = m.ctl("console-resize", "--cols", "132", "--rows=43")
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            line.until(b"size 132x43\r\n")
            # More than the guest has buffers for waits for it.
            line.send(b"0123456789abcde\n" * 8192)
            line.until(b"0123456789abcde\n" * 8192)
            line.send(b".")
            line.until(b".")
        assert m.wait() == 0, m.story()
        verdicts(m)


@pytest.mark.parametrize("reader", ["null", "unix", "stuck"])
def test_without_a_reader(reader, tmp_path):
    """Nobody reads, or one that has stopped to: the guest writes its megabytes all the same."""
    where = "null" if reader == "null" else f"unix:{tmp_path}/c"
    with Coracle(*console_guest("--console", where, "--paused", cmdline="")) as m:
        m.wait_for_socket()
        m.call("info")
        if reader == "stuck":
            client = socket.socket(socket.AF_UNIX)
            client.connect(f"{tmp_path}/c")
        m.call("resume")
        assert m.wait() == 0, m.story()
        verdicts(m)
        if reader == "stuck":
            client.close()


def test_size_before_the_start(tmp_path):
    """A paused machine takes it, and its driver is told when it comes."""
    with Coracle(*console_guest("--console", f"unix:{tmp_path}/c", "--paused",
                                cmdline="echo sized")) as m:
        m.call("console-resize", cols=90, rows=30)
        m.call("resume")
        m.line("ready")
        with Line(f"{tmp_path}/c") as line:
            line.until(b"size 90x30\r\n")
            m.call("reset")  # the terminal is still the same
            m.line("ready")
            line.until(b"size 90x30\r\n")
            line.send(b".")
        assert m.wait() == 0, m.story()
        assert "told-at-start" in verdicts(m)


def test_refused(tmp_path):
    with Coracle("--kernel", guest("hello"), "--memory", "16M", "--cmdline", "echo",
                 "--console", "null") as m:
        m.line("ready")
        for params in ({}, {"cols": 80}, {"rows": 24}, {"cols": 0, "rows": 1},
                       {"cols": 65536, "rows": 1}, {"cols": "80", "rows": 24},
                       {"cols": 1.5, "rows": 24}, {"cols": 80, "rows": 24, "depth": 1}):
            with pytest.raises(ControlError) as e:
                m.call("console-resize", **params)
            assert e.value.code == -32602, params
        for words in (["--cols", "80"], ["--cols"], ["--cols", "x", "--rows", "1"],
                      ["--cols=0", "--rows=1"], ["80x24"], ["--colsx", "1"], []):
            done = m.ctl("console-resize", *words, stdin=subprocess.DEVNULL)
            assert done.returncode == 2 and "console-resize" in done.stderr or \
                "takes a number" in done.stderr, done.stderr
    with Coracle("--kernel", guest("hello"), "--memory", "16M", "--cmdline", "echo") as m:
        m.line("ready")
        with pytest.raises(ControlError, match="no virtio console") as e:
            m.call("console-resize", cols=80, rows=24)
        assert e.value.code == -32003
        assert m.call("info")["virtio-console"] is None
    for args, word in ((["--console", "stdio"], "give another --serial"),
                       (["--console", "file:x", "--serial", "file:x"], "give another --serial"),
                       (["--console", "tty"], "stdio, null, pty"),
                       (["--console", f"unix:{tmp_path}"], "--console")):
        done = subprocess.run([PROGRAM, "run", *console_guest(*args)], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=TIMEOUT, check=False)
        assert done.returncode in (1, 2) and word in done.stderr, done.stderr


# ---- the user's terminal ----

def test_terminal(tmp_path):
    """The window's size is followed, and the keys after Ctrl-A work here as well."""
    control = f"{tmp_path}/control"
    child = pexpect.spawn(PROGRAM, ["run", *console_guest("--serial", f"file:{tmp_path}/serial",
                                                          "--console", "stdio", "--control",
                                                          control, cmdline="echo sized")],
                          timeout=TIMEOUT, dimensions=(25, 90))
    try:
        child.expect_exact("size 90x25")
        child.setwinsize(50, 200)
        child.expect_exact("size 200x50")
        child.send("typed\x01\x01")
        child.expect_exact("typed\x01")
        child.send("\x01b")  # it has no break
        child.send("\x01c")
        child.expect_exact("(coracle) ")
        child.send("console-resize\r")
        child.expect_exact("cols and rows are both wanted")
        child.expect_exact("(coracle) ")
        child.send("\x01cagain")
        child.expect_exact("again")
        # Another size from elsewhere, until the window changes again.
        c = Control(control)
        assert c.call("info")["virtio-console"] == "stdio"
        c.call("console-resize", cols=10, rows=10)
        child.expect_exact("size 10x10")
        c.close()
        child.setwinsize(30, 100)
        child.expect_exact("size 100x30")
        child.send("\x01x")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0, child.before
    finally:
        child.close(force=True)


def test_size_after_a_stop(tmp_path):
    """A window that changes while the process is stopped."""
    child = pexpect.spawn("/bin/sh", ["-i"], timeout=TIMEOUT, dimensions=(25, 90), echo=False,
                          env={**os.environ, "PS1": "$ ", "ENV": ""})
    words = " ".join([PROGRAM, "run", *console_guest("--serial", f"file:{tmp_path}/serial",
                                                     "--console", "stdio", "--control",
                                                     f"{tmp_path}/control")])
    try:
        child.expect_exact("$ ")
        child.sendline(words)
        child.expect("size (0x0|90x25)")
        c = Control(f"{tmp_path}/control")
        os.kill(c.call("info")["pid"], signal.SIGTSTP)
        child.expect("[Ss]topped")
        fcntl.ioctl(child.child_fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        child.sendline("fg")
        child.expect_exact("size 120x40")
        c.call("quit")
        c.close()
        child.expect_exact("$ ")
    finally:
        child.close(force=True)


def test_own_terminals_size(tmp_path):
    """`ctl console-resize` without words takes the size of the terminal it runs in."""
    with Coracle(*console_guest("--console", f"unix:{tmp_path}/c")) as m:
        m.line("ready")
        with Line(f"{tmp_path}/c") as line:
            line.until(b"size 0x0\r\n")
            _, status = pexpect.run(f"{PROGRAM} ctl {m.socket_path} console-resize",
                                    withexitstatus=True, timeout=TIMEOUT,
                                    env=os.environ)
            assert status == 0
            line.until(b"size 80x24\r\n")   # pexpect's
            line.send(b".")
        assert m.wait() == 0


# ---- elsewhere ----

@pytest.mark.parametrize("transport", TRANSPORTS)
def test_moves_with_a_client(transport, tmp_path):
    """The guest's driver keeps its queues and its size; the new process has another size in the end."""
    with Coracle(*console_guest("--transport", transport, "--console", f"unix:{tmp_path}/a")) as m:
        m.line("ready")
        with Line(f"{tmp_path}/a") as line:
            m.call("console-resize", cols=80, rows=24)
            line.until(b"size 80x24\r\n")
            line.send(b"before")
            line.until(b"before")
            with Target(tmp_path, "--console", f"unix:{tmp_path}/b") as t:
                done = m.ctl("migrate", t.address)
                assert done.returncode == 0, f"{done.stderr}\n{m.story()}\n{t.story()}"
                assert m.wait() == 0
                with Line(f"{tmp_path}/b") as there:
                    there.send(b"after")
                    there.until(b"after")
                    t.call("console-resize", cols=81, rows=25)
                    there.until(b"size 81x25\r\n")
                    there.send(b".")
                    there.until(b".")
                assert t.wait() == 0, t.story()
                assert "done" in t.lines()


def test_restored_elsewhere(tmp_path):
    """A new place for the console's other end; not one for a machine without a console."""
    with Coracle(*console_guest("--console", f"unix:{tmp_path}/a")) as m:
        m.line("ready")
        m.call("console-resize", cols=80, rows=24)
        with Line(f"{tmp_path}/a") as line:
            line.until(b"size 80x24\r\n")
        m.snapshot(tmp_path / "s", "--stop")
        assert m.wait() == 0
    with Coracle(tmp_path / "s", "--console", f"unix:{tmp_path}/b", command="restore") as m:
        m.call("info")
        with Line(f"{tmp_path}/b") as line:
            line.send(b"x.")
            line.until(b"x.")
        assert m.wait() == 0, m.story()
    with Coracle("--kernel", guest("hello"), "--memory", "16M", "--cmdline", "echo") as m:
        m.line("ready")
        m.snapshot(tmp_path / "none", "--stop")
        assert m.wait() == 0
    with Coracle(tmp_path / "none", "--console", "null", command="restore") as m:
        assert m.wait() != 0
        assert re.search("this machine has no virtio console", m.errors()), m.story()
