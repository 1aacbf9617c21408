"""test_console.py - the serial port's other end: the user's terminal, pipes, sockets, files

The sandbox is on, as a user has it: restoring the terminal must work inside it.
"""
import os
import re
import signal
import socket
import subprocess
import termios
import time

import pexpect
import pytest

from coracle import Control, Coracle, PROGRAM, TIMEOUT, guest, why_no_kvm

WHY_NOT = why_no_kvm()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
ECHO = ["--kernel", guest("hello") if WHY_NOT is None else "", "--memory", "64M", "--cmdline",
        "echo=yes"]


@pytest.fixture(name="flood")
def flood_(tmp_path):
    """A guest that prints for ever."""
    path = tmp_path / "flood.bin"
    path.write_bytes(b"\xba\xf8\x03\x00\x00\xb0\x78\xee\xeb\xfd")  # mov edx, 3f8; al = x; out; jmp
    return ["--kernel", path, "--kernel-type", "flat32", "--memory", "16M"]


# ---- the terminal ----

class Terminal:
    """coracle run in a terminal of its own."""

    def __init__(self, *args):
        self.child = pexpect.spawn(PROGRAM, ["run", *map(str, args)], timeout=TIMEOUT)
        self.before = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.close(force=True)

    def modes(self):
        return termios.tcgetattr(self.child.child_fd)

    def is_raw(self):
        return not self.modes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def end(self):
        """How it ended: an exit status, or minus a signal. The terminal stays open."""
        _, status = os.waitpid(self.child.pid, 0)
        self.child.ptyproc.terminated = True
        return os.waitstatus_to_exitcode(status)


def cooked():
    """The modes a terminal starts with."""
    master, slave = os.openpty()
    modes = termios.tcgetattr(slave)
    os.close(master)
    os.close(slave)
    return modes


def test_terminal():
    with Terminal(*ECHO) as t:
        t.child.expect("ready\r+\n")
        assert t.is_raw()
        t.child.send("ab\x03\x1a\x01\x01c")
        t.child.expect_exact("ab\x03\x1a\x01c")
        t.child.send("\x01h")
        t.child.expect("Ctrl-A x +quit")
        t.child.expect("send one Ctrl-A")
        t.child.send("\x01c")
        t.child.expect_exact("(coracle) ")
        t.child.send("info\r")
        t.child.expect("state +running\r+\n")
        t.child.expect_exact("(coracle) ")
        t.child.send("pause\r")
        t.child.expect_exact("pause: paused")
        t.child.send("resume\r")
        t.child.expect_exact("resume: running")
        t.child.expect_exact("(coracle) ")
        t.child.send("\x01cz")
        t.child.expect_exact("z")  # the guest's again
        t.child.send("\x01x")
        assert t.end() == 0
        assert t.modes()[:4] == cooked()[:4]


def test_prompt_quits():
    with Terminal(*ECHO) as t:
        t.child.expect("ready\r+\n")
        t.child.send("\x01cquit\r")
        assert t.end() == 0
        assert t.modes()[:4] == cooked()[:4]


def test_hung_guest_can_be_left(tmp_path):
    """A guest that never reads its port takes nothing away from Ctrl-A."""
    path = tmp_path / "halt.bin"
    path.write_bytes(b"\xf4\xeb\xfd")
    with Terminal("--kernel", path, "--kernel-type", "flat32", "--memory", "16M") as t:
        t.child.expect("vCPU")
        t.child.send("x" * 200 + "\x01x")
        assert t.end() == 0


@pytest.mark.parametrize("sig", [signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE,
                                 signal.SIGABRT, signal.SIGQUIT])
def test_terminal_after(sig):
    """However it ends, the terminal is as it was, in the sandbox as well."""
    with Terminal(*ECHO) as t:
        t.child.expect("ready\r+\n")
        assert t.is_raw()
        os.kill(t.child.pid, sig)
        assert t.end() == -sig
        assert t.modes()[:4] == cooked()[:4]


def test_terminal_after_two_terms():
    with Terminal(*ECHO) as t:
        t.child.expect("ready\r+\n")
        os.kill(t.child.pid, signal.SIGTERM)
        t.child.expect("power button")
        os.kill(t.child.pid, signal.SIGTERM)
        assert t.end() == 128 + signal.SIGTERM
        assert t.modes()[:4] == cooked()[:4]


def test_terminal_while_stopped():
    with Terminal(*ECHO) as t:
        t.child.expect("ready\r+\n")
        os.kill(t.child.pid, signal.SIGTSTP)
        _, status = os.waitpid(t.child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert t.modes()[:4] == cooked()[:4]
        os.kill(t.child.pid, signal.SIGCONT)
        t.child.send("again")
        # Cooked or raw when it is typed, the guest gets it; raw by the time it answers.
        t.child.send("\n")
        t.child.expect_exact("again")
        while not t.is_raw():
            os.kill(t.child.pid, 0)
        t.child.send("\x03q")
        t.child.expect_exact("\x03q")


def test_background():
    """A job in the background leaves the terminal to the shell; brought back, it has it."""
    shell = pexpect.spawn("/bin/bash", ["--norc", "-i"], timeout=TIMEOUT, env={
        **os.environ, "PS1": "PROMPT> ", "TERM": "dumb"})
    try:
        shell.expect("PROMPT> ")
        words = " ".join(f"'{word}'" for word in ECHO)
        shell.sendline(f"{PROGRAM} run {words} &")
        shell.expect("ready\r+\n")
        shell.sendline("echo $((6*7)) $(stty -a | grep -o ' icanon')")
        shell.expect("42 icanon")
        shell.sendline("jobs")
        shell.expect("Running")
        shell.sendline("fg")
        shell.expect_exact("coracle run")
        while termios.tcgetattr(shell.child_fd)[3] & termios.ISIG:  # the shell's own modes have it
            time.sleep(0.05)
        shell.send("\x03typed")
        shell.expect_exact("\x03typed")
        shell.send("\x01x")
        shell.expect("PROMPT> ")
        shell.sendline("echo $? $(stty -a | grep -o ' icanon')")
        shell.expect("0 icanon")
    finally:
        shell.close(force=True)


# ---- nobody reads ----

@pytest.mark.parametrize("serial", ["stdio", "unix"])
def test_nobody_reads(flood, serial, tmp_path):
    """Firecracker CVE-2020-27174: output nobody reads costs a bounded amount of memory."""
    path = tmp_path / "control"
    reader, writer = os.pipe()
    machine = subprocess.Popen(
        [PROGRAM, "run", *flood, "--control", path, "--serial",
         f"unix:{tmp_path}/serial" if serial == "unix" else serial],
        stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE)
    try:
        assert b"serial port" in machine.stderr.readline()  # the socket is there before
        control = Control(str(path))

        def rss_when_sent(count):
            while True:
                s = control.call("stats")
                if s["devices"]["serial0"]["tx-bytes"] >= count:
                    return s["process"]["rss"]
                time.sleep(0.1)  # leave the processor to the guest

        full = rss_when_sent(150_000)  # ring and kernel buffers are
        assert rss_when_sent(350_000) - full < 64 << 10
        control.call("quit")
        control.close()
        assert machine.wait(TIMEOUT) == 0  # waits for no reader either
    finally:
        machine.kill()
        machine.wait()
        machine.stderr.close()
        os.close(reader)
        os.close(writer)


# ---- pipes, files, sockets ----

def test_end_of_input():
    """Standard input ends; the machine goes on."""
    with Coracle(*ECHO) as m:
        m.line("ready")
        m.send(b"xyz")
        m.process.stdin.close()
        m.out.wait_for(lambda data: True if b"xyz" in data else None, TIMEOUT)
        assert m.call("info")["state"] == "running"
        m.call("quit")
        assert m.wait() == 0
        m.process.stdin = open(os.devnull, "wb")  # close() closes it


def test_files_for_both(tmp_path):
    """Regular files cannot be waited for (epoll); they work."""
    (tmp_path / "in").write_bytes(b"from a file\x01x.")
    with open(tmp_path / "in", "rb") as i, open(tmp_path / "out", "wb") as o:
        run = subprocess.run([PROGRAM, "run", *ECHO], stdin=i, stdout=o, stderr=subprocess.PIPE,
                             timeout=TIMEOUT, check=False)
    assert run.returncode == 0, run.stderr
    text = (tmp_path / "out").read_bytes().replace(b"\r", b"")
    assert b"ready\nfrom a file\x01x\n" in text and b"done\n" in text


def test_shared_description_is_left_alone():
    """O_NONBLOCK on the pipe would break whoever else writes to it."""
    reader, writer = os.pipe()
    with subprocess.Popen([PROGRAM, "run", *ECHO], stdin=subprocess.PIPE, stdout=writer,
                          stderr=subprocess.DEVNULL) as p:
        seen = b""
        while b"ready" not in seen:
            seen += os.read(reader, 4096)
        assert os.get_blocking(writer)
        p.stdin.write(b".")
        p.stdin.close()
        assert p.wait(TIMEOUT) == 0
    os.close(writer)
    while piece := os.read(reader, 4096):
        seen += piece
    os.close(reader)
    assert b"done" in seen


def test_reader_leaves():
    """A broken pipe is no reason to end (SIGPIPE)."""
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([PROGRAM, "run", *ECHO], stdin=subprocess.PIPE, stdout=writer,
                          stderr=subprocess.PIPE) as p:
        os.close(writer)
        p.stdin.write(b"typed.")
        p.stdin.close()
        errors = p.stderr.read()
        assert p.wait(TIMEOUT) == 0
    assert b"lost from here" in errors


def test_file(tmp_path):
    for _ in range(2):
        with Coracle("--kernel", guest("poweroff"), "--memory", "64M", "--serial",
                     f"file:{tmp_path}/log") as m:
            assert m.wait() == 0, m.story()
    assert (tmp_path / "log").read_bytes().replace(b"\r", b"").count(b"done\n") == 2


def test_full_disk():
    with Coracle("--kernel", guest("poweroff"), "--memory", "64M", "--serial",
                 "file:/dev/full") as m:
        assert m.wait() == 0, m.story()
        assert m.errors().count("No space left on device") == 1


def read_until(sock, text):
    seen = b""
    while text not in seen:
        piece = sock.recv(4096)
        assert piece, seen
        seen += piece
    return seen


def test_unix(tmp_path):
    path = f"{tmp_path}/serial"
    with Coracle(*ECHO, "--serial", f"unix:{path}") as m:
        m.call("info")
        assert os.stat(path).st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as first:
            first.settimeout(TIMEOUT)
            first.connect(path)
            read_until(first, b"ready")  # also if it was said before we came
            first.sendall(b"abc\x01x")
            read_until(first, b"abc\x01x")
            with socket.socket(socket.AF_UNIX) as second:
                second.settimeout(TIMEOUT)
                second.connect(path)
                second.sendall(b"def.")
                first.close()
                read_until(second, b"done")
        assert m.wait() == 0
        assert not os.path.exists(path)


def test_pty():
    with Coracle(*ECHO, "--serial", "pty") as m:
        m.call("info")
        name = re.search(r"^pty (/dev/pts/\d+)$", m.call("info")["console"]).group(1)
        with open(name, "r+b", buffering=0, opener=lambda p, f: os.open(p, f | os.O_NOCTTY)) as f:
            seen = b""
            while b"ready" not in seen:
                seen += f.read(4096)
            f.write(b"abc.")
            while b"done" not in seen:
                seen += f.read(4096)
            assert b"abc" in seen
        assert m.wait() == 0


def test_refused(tmp_path):
    """What cannot be a console is refused by name."""
    for serial, word in ((f"unix:{tmp_path}", "no socket"),
                         ("file:/nonexistent/x", "/nonexistent/x")):
        run = subprocess.run([PROGRAM, "run", *ECHO, "--serial", serial], capture_output=True,
                             text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT, check=False)
        assert run.returncode == 1, run.stderr
        assert "--serial" in run.stderr and word in run.stderr
