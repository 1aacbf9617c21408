"""test_surroundings.py - the process gets less than a shell gives: closed or full descriptors, limits

What cannot work is one sentence and exit status 1, never a hang or a crash; what can work does.
"""
import os
import re
import resource
import select
import signal
import subprocess

import pytest

from coracle import Coracle, PROGRAM, TIMEOUT, guest, why_no_kvm

WHY_NOT = why_no_kvm()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
SANITIZED = "asan" in PROGRAM or "tsan" in PROGRAM
MIB = 1 << 20


def hello(*args):
    return [PROGRAM, "run", "--kernel", guest("hello"), "--memory", "64M", *map(str, args)]


def run(args, **kwargs):
    return subprocess.run(args, timeout=TIMEOUT, check=False, **kwargs)


def closing(*fds):
    def close():
        for fd in fds:
            os.close(fd)
    return close


# ---- standard descriptors ----

@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)],
                         ids=lambda c: "".join(map(str, c)))
def test_closed_descriptors(closed, tmp_path):
    """A closed descriptor is nobody's: not a disk's that then gets messages, not an event's."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    r = run(hello("--disk", f"{disk},aio=threads"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, preexec_fn=closing(*closed))
    assert r.returncode == 0, r.stderr
    assert disk.read_bytes() == bytes(MIB)
    if 1 not in closed:
        assert b"done" in r.stdout
    assert b"error" not in r.stderr


@pytest.mark.parametrize("closed", [(0, 1, 2), (1,)], ids=lambda c: "".join(map(str, c)))
def test_closed_descriptors_are_filled(closed, tmp_path):
    fifo = tmp_path / "serial"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with subprocess.Popen(hello("--cmdline", "echo", "--serial", f"file:{fifo}"),
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          preexec_fn=closing(*closed)) as machine:
        said = b""
        while b"ready" not in said:
            assert select.select([reader], [], [], TIMEOUT)[0], said
            piece = os.read(reader, 4096)
            assert piece, (said, machine.stderr.read())
            said += piece
        names = [os.readlink(f"/proc/{machine.pid}/fd/{i}") for i in range(3)]
        machine.kill()
    os.close(reader)
    for i, name in enumerate(names):
        assert (name == "/dev/null") == (i in closed), names


@pytest.mark.parametrize("command", ["version", "help", "run --help", "help --schema"])
def test_output_that_fails(command):
    r = run([PROGRAM, *command.split()], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            preexec_fn=closing(1))
    assert r.returncode == 1 and b"coracle: standard output: " in r.stderr
    with open("/dev/full", "wb") as full:
        r = run([PROGRAM, *command.split()], stdout=full, stderr=subprocess.PIPE)
    assert r.returncode == 1 and b"coracle: standard output: " in r.stderr


# ---- limits ----

def limited(what, amount):
    return lambda: resource.setrlimit(what, (amount, amount))


def last_line(r):
    return r.stderr.decode().strip().splitlines()[-1]


def leftovers(path):
    return sorted(p.name for p in path.iterdir())


def test_few_descriptors(tmp_path):
    """Every number is either enough or refused in a sentence, with nothing left behind."""
    disk, control = tmp_path / "disk", tmp_path / "control"
    disk.write_bytes(bytes(MIB))
    args = hello("--disk", disk, "--serial", "null", "--control", control)
    refused, enough = 0, False
    for n in range(5, 60):
        r = run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                preexec_fn=limited(resource.RLIMIT_NOFILE, n))
        assert leftovers(tmp_path) == ["disk"], n
        if r.returncode == 0:
            enough = True
            break
        refused += 1
        assert r.returncode == 1, (n, r.stderr)
        assert re.match("coracle run: .*Too many open files$", last_line(r)), (n, r.stderr)
    assert refused > 5 and enough


@pytest.mark.skipif(SANITIZED, reason="a sanitizer reserves terabytes of address space")
def test_little_memory(tmp_path):
    refused, enough = 0, False
    for mib in range(16, 2048, 24):
        r = run(hello("--serial", "null", "--cpus", 2), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                preexec_fn=limited(resource.RLIMIT_AS, mib * MIB))
        if r.returncode == 0:
            enough = True
            break
        assert r.returncode in (1, 127), (mib, r.stderr)  # 127: its libraries did not fit either
        if r.returncode == 1:
            refused += 1
            assert last_line(r).startswith("coracle run: "), (mib, r.stderr)
    assert refused and enough


def test_log_file_at_its_limit(tmp_path):
    """A log that may not grow loses lines; the machine does not care."""
    with open(tmp_path / "log", "wb") as log:
        r = run(hello("--serial", "null", "--log-level", "debug"), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=log,
                preexec_fn=limited(resource.RLIMIT_FSIZE, 10))
    assert r.returncode == 0
    assert (tmp_path / "log").stat().st_size == 10


def test_console_file_at_its_limit(tmp_path):
    with open(tmp_path / "out", "wb") as out:
        r = run(hello(), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE,
                preexec_fn=limited(resource.RLIMIT_FSIZE, 10))
    assert r.returncode == 0, r.stderr
    assert b"File too large; the guest's output is lost" in r.stderr
    assert (tmp_path / "out").stat().st_size == 10


def test_read_only_run():
    """No place for the sockets of named machines."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a mount namespace")
    r = run(["unshare", "-m", "sh", "-c", "mount -t tmpfs -o ro none /run && exec \"$@\"", "sh",
             *hello("--id", "somebody", "--serial", "null")],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert r.returncode == 1
    assert "/run/coracle" in last_line(r) and "Read-only file system" in last_line(r)


# ---- job control ----

def test_stopped_and_continued():
    """SIGTSTP without a terminal stops the process, and SIGCONT makes it go on where it was."""
    # In a process group of its own: the kernel drops SIGTSTP where a group has no parent in its
    # session, as under some service managers, and then nobody would ever see it stop.
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--cmdline", "echo",
                 process_group=0) as m:
        m.line("ready")
        for sig in (signal.SIGTSTP, signal.SIGSTOP):
            os.kill(m.pid, sig)
            _, status = os.waitpid(m.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            os.kill(m.pid, signal.SIGCONT)
        m.send(b"again.")
        m.line("again")
        assert m.wait() == 0


# ---- what it may still do once it runs ----

def test_given_up(tmp_path):
    """No capability, no way to gain one, a system call filter, in every thread."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--cpus", "2", "--cmdline",
                 "echo", "--disk", disk) as m:
        m.line("ready")
        tasks = os.listdir(f"/proc/{m.pid}/task")
        ours = 0
        for task in tasks:
            with open(f"/proc/{m.pid}/task/{task}/status", encoding="ascii") as f:
                status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
            if status["Name"].startswith(("kvm-", "iou-")):
                continue  # the kernel's own, which run nothing of ours
            ours += 1
            for caps in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert int(status[caps], 16) == 0, (status["Name"], caps)
            assert status["NoNewPrivs"] == "1"
            assert SANITIZED or status["Seccomp"] == "2", status["Name"]
        assert ours >= 4  # main, two processors, a disk: that one is older than the sandbox
        m.send(b".")
        assert m.wait() == 0


def test_nothing_is_inherited():
    """Every descriptor of a machine is close-on-exec, but the three it was given."""
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--cmdline", "echo") as m:
        m.line("ready")
        leaks = []
        for fd in os.listdir(f"/proc/{m.pid}/fdinfo"):
            with open(f"/proc/{m.pid}/fdinfo/{fd}", encoding="ascii") as f:
                flags = int(re.search(r"^flags:\s*(\d+)", f.read(), re.M).group(1), 8)
            if int(fd) > 2 and not flags & os.O_CLOEXEC:
                leaks.append(os.readlink(f"/proc/{m.pid}/fd/{fd}"))
        assert not leaks
        m.send(b".")
        assert m.wait() == 0
