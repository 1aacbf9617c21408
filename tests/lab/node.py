"""node.py - one emulated machine of the lab: its files, its start and its end

A node is QEMU emulating a PC with AMD's SVM in software (TCG), so that its kernel offers a real
/dev/kvm with nested paging wherever this runs. The CPU settings are not a matter of taste: see
README.md before changing one.
"""
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib

import wire

TOP = os.path.realpath(os.path.join(os.path.dirname(__file__), "../.."))
IMAGE = os.path.join(TOP, "cache/lab")
STATE = os.path.join(TOP, "build/lab")
RESULTS = os.path.join(STATE, "results")
BUILD_NODE = os.path.join(TOP, "tests/lab/build-node")
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
NODES = (1, 2)

BOOT_ATTEMPTS = 3
BOOT_SECONDS = 300      # more than any boot took, for hosts that are busy with other things
SILENT_SECONDS = 120    # a boot that says nothing on the console for so long hangs
PING_SECONDS = 60
CRASH_MARKS = ("BUG:", "Oops:", "general protection fault", "Kernel panic", "Assertion")


class LabError(Exception):
    """Something the user should read, without a Python traceback"""


def say(text):
    print(f"lab: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(path, busy_text=None):
    """Hold the lock on @path; say @busy_text when somebody else has it and wait"""
    with open(path, "a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy_text:
                f.seek(0)
                owner = f.read().strip()
                say(busy_text + (f" ({owner})" if owner else "") + "; waiting")
            fcntl.flock(f, fcntl.LOCK_EX)
        yield f


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def last_line(path, marks=()):
    """The last line that says something; sooner, the first with one of @marks"""
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.path.getsize(path) - 64 * 1024))
            lines = [line.strip() for line in f.read().decode(errors="replace").splitlines()]
    except OSError:
        return ""
    told = next((line for line in lines if any(mark in line for mark in marks)), "")
    return told or next((line for line in reversed(lines) if line), "")


class Node:
    def __init__(self, number):
        self.number = number
        self.dir = os.path.join(STATE, f"node{number}")
        os.makedirs(self.dir, exist_ok=True)
        os.makedirs(RESULTS, exist_ok=True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def read(self, name):
        try:
            with open(self.path(name)) as f:
                return f.read().strip()
        except OSError:
            return ""

    def params(self):
        return json.loads(self.read("params.json") or "{}")

    # State

    def alive(self):
        """True while its supervisor or its QEMU lives, however they were started and whoever asks"""
        with open(self.path("alive"), "a") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def connect(self, seconds):
        """A link to the agent and its answer. OSError or LabError if there is none"""
        params = self.params()
        sock = socket.create_connection(("127.0.0.1", params["port"]), timeout=seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return wire.Wire(sock), params["token"]

    def ping(self, seconds=PING_SECONDS):
        """The node's uptime, or None if it does not answer"""
        try:
            link, token = self.connect(seconds)
            with link.sock:
                link.send(wire.HELLO, {"token": token, "op": "ping"})
                frame = link.recv()
        except (OSError, KeyError, ValueError):
            return None
        return json.loads(frame[1])["uptime"] if frame and frame[0] == wire.READY else None

    def post_mortem(self):
        """Why it is not there any more or does not answer, and where to read on"""
        why = "its processes still run" if self.alive() else \
            self.read("ended") or "is gone without a word (killed?)"
        text = f"node {self.number}: {why}"
        for name, what in (("qemu.log", "QEMU says"), ("console.log", "its console says")):
            line = last_line(self.path(name), CRASH_MARKS)
            if line:
                text += f"\n  {what}: {line}"
        return text + f"\n  logs: {os.path.relpath(self.dir)}/{{console,qemu,virtiofsd}}.log"

    # Start

    def up(self):
        """Running and answering when this returns"""
        build_image()
        with locked(self.path("lock"), f"node {self.number} is being started or stopped"):
            if self.alive():
                if self.ping() is not None:
                    return
                say(f"node {self.number} runs but does not answer: an emulator bug? Starting it anew")
                self._stop()
            for attempt in range(1, BOOT_ATTEMPTS + 1):
                again = f" (attempt {attempt} of {BOOT_ATTEMPTS})" if attempt > 1 else ""
                say(f"node {self.number}: booting{again}")
                if self._boot():
                    return
                self._stop()
                say(self.post_mortem())
        raise LabError(f"node {self.number} did not come up in {BOOT_ATTEMPTS} attempts; see above")

    def _boot(self):
        self._clean()
        started = time.monotonic()
        supervisor = self._start_supervisor()
        heard, size, told = started, 0, started
        while True:
            now = time.monotonic()
            if os.path.exists(self.path("ready")) and self.ping() is not None:
                say(f"node {self.number}: ready after {now - started:.0f} s")
                return True
            if supervisor.poll() is not None:
                return False
            console = os.path.getsize(self.path("console.log"))
            if console != size:
                heard, size = now, console
            if now - heard > SILENT_SECONDS or now - started > BOOT_SECONDS:
                say(f"node {self.number}: hangs while booting, given up after {now - started:.0f} s")
                return False
            if now - told >= 10:
                told = now
                line = last_line(self.path("console.log")) or "nothing on the console yet"
                say(f"node {self.number}: {now - started:.0f} s, {line}")
            time.sleep(0.2)

    def _clean(self):
        """Remove what an earlier run left; its logs stay as *.log.old"""
        for name in os.listdir(self.dir):
            if name.endswith(".log"):
                os.replace(self.path(name), self.path(name + ".old"))
            elif name.endswith(".sock") or name in ("ready", "ended", "pids.json"):
                os.unlink(self.path(name))
        shutil.rmtree(self.path("tmp"), ignore_errors=True)
        os.makedirs(self.path("tmp"))
        open(self.path("console.log"), "w").close()

    def _start_supervisor(self):
        port = free_port()
        params = {"node": self.number, "checkout": TOP, "token": secrets.token_hex(16), "port": port,
                  "address": "192.168.231.15/24"}
        with open(os.open(self.path("params.json"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                  "w") as f:
            json.dump(params, f)
        with open(self.path("plan.json"), "w") as f:
            json.dump(self._plan(port), f, indent=1)
        with open(self.path("alive"), "a") as alive, open(self.path("qemu.log"), "ab") as log:
            fcntl.flock(alive, fcntl.LOCK_EX)
            supervisor = subprocess.Popen(
                [sys.executable, os.path.join(TOP, "tests/lab/supervise.py"),
                 self.path("plan.json"), str(alive.fileno())],
                cwd=STATE, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=(alive.fileno(),), start_new_session=True)
        with open(self.path("pids.json"), "w") as f:
            json.dump({"supervisor": supervisor.pid, "since": time.time()}, f)
        return supervisor

    def _plan(self, port):
        """What the supervisor starts. Relative paths, for socket paths must be short (cwd: STATE)"""
        me, other = f"node{self.number}", f"node{3 - self.number}"
        # virtiofsd locks a file in /run named after its socket: two checkouts must not share a name
        fs_socket = f"{me}/fs-{zlib.crc32(TOP.encode()):08x}.sock"
        memory = os.environ.get("LAB_MEMORY", "3G")
        append = (f"console=ttyS0 root=/dev/vda rw quiet panic=-1 oops=panic nowatchdog mitigations=off "
                  f"lab.node={self.number}")
        qemu = [
            "qemu-system-x86_64", "-name", f"coracle-lab-{me}", "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot", "-M", "q35,memory-backend=ram",
            "-accel", "tcg,thread=multi,tb-size=1024",
            "-cpu", "max,+svm,+npt,-vgif,-la57,-smap,-pku,-smep", "-smp", "1", "-m", memory,
            "-object", f"memory-backend-memfd,id=ram,size={memory},share=on",
            "-kernel", f"{IMAGE}/vmlinux", "-initrd", f"{IMAGE}/initrd.img", "-append", append,
            "-drive", f"if=none,id=root,file={IMAGE}/root.ext4,format=raw,snapshot=on,cache=unsafe",
            "-device", "virtio-blk-pci,drive=root",
            "-chardev", f"socket,id=fs,path={fs_socket}",
            "-device", "vhost-user-fs-pci,chardev=fs,tag=share",
            "-netdev", "user,id=lab,restrict=on,net=192.168.231.0/24,dhcpstart=192.168.231.15,"
                       f"hostfwd=tcp:127.0.0.1:{port}-192.168.231.15:{wire.AGENT_PORT}",
            "-device", "virtio-net-pci,netdev=lab,mac=52:54:00:1a:b0:01,romfile=",
            "-netdev", f"dgram,id=link,local.type=unix,local.path={me}/link.sock,"
                       f"remote.type=unix,remote.path={other}/link.sock",
            "-device", f"virtio-net-pci,netdev=link,mac=52:54:00:1a:b1:0{self.number},romfile=",
            "-device", "virtio-rng-pci",
            "-chardev", f"file,id=console,path={me}/console.log", "-serial", "chardev:console",
            "-qmp", f"unix:{me}/qmp.sock,server=on,wait=off",
        ]
        virtiofsd = [VIRTIOFSD, f"--socket-path={fs_socket}", "-o", f"source={TOP}", "-o", "cache=auto"]
        return {"qemu": qemu, "virtiofsd": virtiofsd, "fs_socket": fs_socket,
                "tmpdir": self.path("tmp"), "ended": f"{me}/ended",
                "qemu_log": f"{me}/qemu.log", "virtiofsd_log": f"{me}/virtiofsd.log"}

    # End

    def down(self):
        with locked(self.path("lock"), f"node {self.number} is being started or stopped"):
            self._stop()

    def _stop(self):
        pid = json.loads(self.read("pids.json") or "{}").get("supervisor")
        for number, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
            if not self.alive():
                break
            # Alive means that its supervisor holds the lock, so the id is its own
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.1)
        if self.alive():
            raise LabError(f"node {self.number} does not end; its processes hold {self.path('alive')}")
        shutil.rmtree(self.path("tmp"), ignore_errors=True)


def build_image(force=False):
    """Fresh images in cache/lab when this returns"""
    for tool in ("qemu-system-x86_64", "mmdebstrap", "mkfs.ext4"):
        if not shutil.which(tool):
            raise LabError(f"no {tool} here: run tools/setup lab")
    if not os.access(VIRTIOFSD, os.X_OK):
        raise LabError(f"no {VIRTIOFSD} here: run tools/setup lab")
    if subprocess.run([BUILD_NODE] + (["--force"] if force else [])).returncode:
        raise LabError("the node image could not be made; see above")
