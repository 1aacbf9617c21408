"""debian.py - a Debian guest in a test: start it, log in, run commands in it

The guest is what guest-images/build made. A boot costs most of a minute where KVM is emulated (the
lab), so test files start few guests and look at each from many sides. Nothing sleeps; all waiting
is for a line, an event or an exit, up to deadlines meant for a slow host.

    with Debian("--cpus", 2) as m:          a new copy of the root disk, by virtio-blk
        m.login()
        assert m.sh("nproc") == "2"
        m.power_off()
"""
import contextlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile

import pytest

from coracle import PROGRAM, Coracle, Died, Reader, TOP, check_host

IMAGE = pathlib.Path(os.environ.get("CORACLE_DEBIAN", TOP / "cache/guest"))
IN_LAB = "CORACLE_LAB_NODE" in os.environ
PASSWORD = "coracle"
MIB = 1 << 20
BOOT = 600      # seconds: to the login prompt
COMMAND = 240   # seconds: a command in the guest, or the guest's shutdown

# Its own disk, not the one the checkout is on, nor memory: tests want O_DIRECT and holes in files.
SCRATCH = os.environ.get("CORACLE_TEST_SCRATCH", "/var/tmp")

# The emulator's XSETBV tells KVM nothing, so the guest's CPUID gives the size of before it. The
# same warning comes under QEMU there.
LAB_WARNING = re.compile(r"-+\[ cut here \]-+\nXSAVE consistency problem: [^\n]*\n"
                         r"WARNING: [^\n]*xstate\.c:606 .*?---\[ end trace \w+ \]---\n"
                         r"(CPUID\[0d[^\n]*(\n|$))*", re.S)


def why_not():
    """None where Debian guests run, otherwise the reason to skip."""
    if not os.path.exists(PROGRAM):
        return f"{PROGRAM} is not built"
    if not (IMAGE / "root.ext4").exists():
        return "no guest image: guest-images/build makes it"
    if not check_host()[0]["kvm"]["boots_linux"]:
        return "this host's KVM boots no Linux"
    return None


def needs(*names):
    """A decorator: skip where a command is not there or this is not root."""
    missing = [n for n in names if not shutil.which(n)]
    why = f"no {', '.join(missing)} here" if missing else "needs root" if os.geteuid() else None
    return pytest.mark.skipif(why is not None, reason=str(why))


def host(*command, check=True, **more):
    """Run a command on the host's side; its output."""
    run = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False,
                         timeout=COMMAND, **more)
    assert not check or run.returncode == 0, f"{command}: {run.stdout}{run.stderr}"
    return run.stdout


def scratch_dir():
    return tempfile.TemporaryDirectory(prefix="coracle-debian-", dir=SCRATCH)


def root_disk(directory):
    """A copy of the root disk for one machine."""
    path = os.path.join(directory, "root.ext4")
    host("cp", "--sparse=always", "--reflink=auto", IMAGE / "root.ext4", path)
    return path


def sparse(path, size):
    with open(path, "xb") as f:
        f.truncate(size)
    return str(path)


def allocated(path):
    """Bytes of the host's storage that a file takes."""
    return os.stat(path).st_blocks * 512


class Shell:
    """A terminal: text from @reader (coracle.py), keys to @send(bytes)."""

    def __init__(self, reader, send, story):
        self.reader, self.send, self.story = reader, send, story
        self.seen = 0
        self.count = 0

    def wait_for(self, pattern, timeout=COMMAND):
        """The first match after the last one; lines need not be complete."""
        regex = re.compile(pattern.encode(), re.M)
        match = self.reader.wait_for(lambda data: regex.search(data, self.seen), timeout)
        if match is None:
            how = "ended" if self.reader.ended else f"did not bring it within {timeout:.0f} s"
            raise Died(f"waiting for {pattern!r}: the console {how}\n{self.story()}")
        self.seen = match.end()
        return match

    def prompt(self, timeout):
        """As quiet(), of a shell that is about to start."""
        self.wait_for(r"[#$] $", timeout)
        self.quiet(timeout)

    def quiet(self, timeout):
        """From a shell at its prompt to one that says nothing but what commands say."""
        # dash edits no lines. The echo of this has "ready" in quotes; what it prints has not.
        self.send(b"stty -echo; dmesg -n 1; LC_ALL=C PS1= PS2= exec dash -c "
                  b"\"echo shell' 'ready; exec dash -i +m\"\n")
        self.wait_for(r"shell ready\r?\n", timeout)

    def log_in(self, timeout=BOOT):
        """Up to the login shell's prompt."""
        self.wait_for(r"login: $", timeout)
        self.send(b"root\n")
        self.wait_for(r"Password: $", timeout)
        self.send(PASSWORD.encode() + b"\n")
        self.wait_for(r"[#$] $", timeout)

    def login(self, timeout=BOOT):
        self.log_in(timeout)
        self.quiet(timeout)

    def start(self, command):
        """Start a command; finish() is its other half."""
        self.count += 1
        self.send(f"{{ {command}\n}} 2>&1; echo \"=={self.count}=$?==\"\n".encode())

    def finish(self, timeout=COMMAND):
        """Output and exit status of the command that start() started."""
        begin = self.seen
        match = self.wait_for(rf"=={self.count}=(\d+)==\r?\n", timeout)
        text = self.reader.data[begin:match.start()].decode(errors="replace")
        return text.replace("\r", "").strip("\n"), int(match[1])

    def run(self, command, timeout=COMMAND):
        self.start(command)
        return self.finish(timeout)

    def sh(self, command, timeout=COMMAND):
        """The output of a command that has to succeed."""
        text, status = self.run(command, timeout)
        assert status == 0, f"in the guest: {command}: exit status {status}\n{text}\n{self.story()}"
        return text


class Debian(Coracle):
    """A Debian guest. Its root disk is a copy of its own unless --disk of the root is @root.

    @init: what to run in place of systemd, with its arguments; a shell is there much sooner.
    """

    def __init__(self, *args, root=None, kernel="vmlinuz", cmdline="", init=None, loud=False,
                 memory="512M", prefix=(), **popen):
        self.stack = contextlib.ExitStack()
        try:
            if root is None:
                root = root_disk(self.stack.enter_context(scratch_dir()))
            self.root = str(root).split(",", maxsplit=1)[0]
            line = f"console=ttyS0 root=/dev/vda rw {'' if loud else 'quiet '}{cmdline}"
            if init:
                line += f" init={init}"
            super().__init__("--kernel", IMAGE / kernel, "--initrd", IMAGE / "initrd.img",
                             "--memory", memory, "--cmdline", line, "--disk", root, *args,
                             prefix=prefix, **popen)
        except BaseException:
            self.stack.close()
            raise
        self.shell = Shell(self.out, self.send, self.story)

    def close(self):
        super().close()
        self.stack.close()

    def login(self, timeout=BOOT):
        self.shell.login(timeout)
        return self

    def run(self, command, timeout=COMMAND):
        return self.shell.run(command, timeout)

    def sh(self, command, timeout=COMMAND):
        return self.shell.sh(command, timeout)

    def wait(self, timeout=COMMAND):
        return super().wait(timeout)

    def power_off(self):
        """From the guest's shell; the machine has to end with status 0."""
        self.send(b"systemctl poweroff\n")
        status = self.wait()
        assert status == 0, self.story()

    def reboot(self, timeout=BOOT):
        """In place, to a shell again."""
        self.send(b"systemctl reboot\n")
        self.shell.login(timeout)

    def ctl(self, *words):
        """`coracle ctl` on this machine."""
        return host(PROGRAM, "ctl", self.socket_path, *words, "--timeout", COMMAND)

    def log_line(self, pattern, timeout=COMMAND):
        """Wait for text in the VMM's own messages."""
        regex = re.compile(pattern.encode())
        match = self.err.wait_for(regex.search, timeout)
        if match is None:
            raise Died(f"no message {pattern!r}\n{self.story()}")
        return match


def assert_clean(root):
    """The root file system was unmounted: nothing to replay, nothing wrong."""
    header = host("dumpe2fs", "-h", root)
    assert "needs_recovery" not in header, header
    run = subprocess.run(["e2fsck", "-fn", root], capture_output=True, text=True, check=False,
                         timeout=COMMAND)
    assert run.returncode == 0, run.stdout + run.stderr


# What a kernel says of a processor that was busy elsewhere.
SLOW_HOST = ("hrtimer: interrupt took", "clocksource: Long readout interval")


def kernel_warnings(shell):
    """What the guest's kernel complained of since its start, but for how slow its processor is."""
    text = re.sub(r"^\[[^]]*\] ?", "", shell.sh("dmesg -l emerg,alert,crit,err,warn"), flags=re.M)
    if IN_LAB:
        text = LAB_WARNING.sub("", text, count=1)
    return [line for line in text.splitlines() if not any(s in line for s in SLOW_HOST)]


class UnixConsole:
    """A client of --serial unix:PATH; a Shell's reader and send."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.reader = Reader(self.socket)

    def send(self, data):
        self.socket.sendall(data)

    def close(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.reader.join()
        self.socket.close()
