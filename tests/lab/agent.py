"""agent.py - runs in a node: sets it up, then runs commands for tests/lab/lab

systemd starts this from the shared checkout (see build-node). Each connection gets a process, each
command a cgroup of its own, so that whatever a test leaves behind, a stuck VM above all, can be
found and ended when the command is over or its caller has gone.
"""
import fcntl
import hmac
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import time

import wire

SHARE = "/run/lab/share"
KILL_GRACE = 3      # seconds between asking a command to end and making it


def sh(*argv):
    subprocess.run(argv, check=True)


def node_number():
    with open("/proc/cmdline") as f:
        for word in f.read().split():
            if word.startswith("lab.node="):
                return int(word.split("=")[1])
    raise SystemExit("agent: no lab.node= on the kernel command line")


def mount_checkout(checkout):
    """The checkout at its own path, read only but for build/lab/results: tests mend nothing there"""
    if os.path.ismount(checkout):
        return
    os.makedirs(checkout, exist_ok=True)
    sh("mount", "--bind", SHARE, checkout)
    sh("mount", "-o", "remount,bind,ro", checkout)
    sh("mount", "--bind", f"{SHARE}/build/lab/results", f"{checkout}/build/lab/results")


def set_up_network(params):
    for link, address in (("lab0", params["address"]), ("link0", f"10.9.0.{params['node']}/24")):
        sh("udevadm", "wait", "--timeout=60", f"/sys/class/net/{link}")
        sh("ip", "address", "replace", address, "dev", link)
        sh("ip", "link", "set", link, "up")


class Job:
    """A running command: its processes' cgroup, its files and its main process"""

    def __init__(self, request, default_cwd, env):
        self.cgroup = self._make_cgroup()
        self.tty = bool(request.get("tty"))
        cwd = request.get("cwd") or default_cwd
        env = dict(env, **request.get("env", {}))
        try:
            if self.tty:
                self._start_tty(request["argv"], cwd, env)
            else:
                self._start_pipes(request["argv"], cwd, env)
        except BaseException:
            os.rmdir(self.cgroup)
            raise
        self.pidfd = os.pidfd_open(self.process.pid)
        self.kill_at = None

    @staticmethod
    def _make_cgroup():
        with open("/proc/self/cgroup") as f:
            own = f.read().strip().split("::", 1)[1]
        path = f"/sys/fs/cgroup{own}/job-{os.getpid()}"
        os.mkdir(path)
        return path

    def _enter(self):
        """In the child, before it runs the command"""
        with open(f"{self.cgroup}/cgroup.procs", "w") as f:
            f.write("0")
        with open("/proc/self/oom_score_adj", "w") as f:
            f.write("0")
        if self.tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def _start_pipes(self, argv, cwd, env):
        self.process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True, preexec_fn=self._enter)
        self.stdin = self.process.stdin.fileno()
        self.outputs = {self.process.stdout.fileno(): wire.STDOUT,
                        self.process.stderr.fileno(): wire.STDERR}
        os.set_blocking(self.stdin, False)

    def _start_tty(self, argv, cwd, env):
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, preexec_fn=self._enter)
        os.close(theirs)
        self.stdin = ours
        self.outputs = {ours: wire.STDOUT}
        os.set_blocking(ours, False)

    def signal_group(self, number):
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def ask_to_end(self):
        if self.kill_at is None:
            self.kill_at = time.monotonic() + KILL_GRACE
            self.signal_group(signal.SIGTERM)

    def kill_all(self):
        with open(f"{self.cgroup}/cgroup.kill", "w") as f:
            f.write("1")

    def left_behind(self):
        """Names of the processes that are still there when the main one has ended"""
        names = []
        with open(f"{self.cgroup}/cgroup.procs") as f:
            for pid in f.read().split():
                try:
                    with open(f"/proc/{pid}/comm") as comm:
                        names.append(comm.read().strip())
                except OSError:
                    pass
        return names

    def remove_cgroup(self):
        for _ in range(100):
            try:
                os.rmdir(self.cgroup)
                return
            except OSError:
                time.sleep(0.05)

    def resize(self, rows, columns):
        if self.tty:
            fcntl.ioctl(self.stdin, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class Session:
    """One connection and its command"""

    def __init__(self, link, job):
        self.link = link
        self.job = job
        self.pending = b""          # for the command's stdin
        self.stdin_ends = False
        self.connected = True

    def run(self):
        """Until the command is over; then what it left is ended and its last output passed on"""
        next_beat = 0.0
        while not self._step(next_beat):
            now = time.monotonic()
            if now >= next_beat:
                self._tell(wire.BEAT)
                next_beat = now + wire.BEAT_SECONDS
            if self.job.kill_at is not None and now >= self.job.kill_at:
                self.job.kill_all()
        left = self.job.left_behind()
        if left:
            self.job.kill_all()
            self._tell(wire.LEFT, left)
        deadline = time.monotonic() + 5
        while self.job.outputs and time.monotonic() < deadline:
            for fd in select.select(list(self.job.outputs), [], [], 0.2)[0]:
                self._pass_output(fd)
        code = self.job.process.wait()
        self._tell(wire.EXIT, {"signal": -code} if code < 0 else {"code": code})
        self.job.remove_cgroup()

    def _step(self, next_beat):
        """One round of waiting; true when the main process has ended"""
        job = self.job
        readers = [job.pidfd, *job.outputs] + ([self.link] if self.connected else [])
        writers = [job.stdin] if job.stdin is not None and self.pending else []
        wait = max(0.0, next_beat - time.monotonic())
        if job.kill_at is not None:
            wait = min(wait, max(0.05, job.kill_at - time.monotonic()))
        ready, writable, _ = select.select(readers, writers, [], wait)
        for fd in list(job.outputs):
            if fd in ready:
                self._pass_output(fd)
        if writable:
            self._feed()
        if self.link in ready:
            self._take()
        return job.pidfd in ready

    def _tell(self, kind, payload=b""):
        if not self.connected:
            return
        try:
            self.link.send(kind, payload)
        except OSError:
            self._lost()

    def _lost(self):
        self.connected = False
        self.job.ask_to_end()

    def _pass_output(self, fd):
        try:
            data = os.read(fd, wire.CHUNK)
        except BlockingIOError:
            return
        except OSError:             # a pty whose last user has gone
            data = b""
        if data:
            self._tell(self.job.outputs[fd], data)
        else:
            del self.job.outputs[fd]

    def _take(self):
        try:
            frame = self.link.recv()
        except OSError:
            frame = None
        if frame is None:
            self._lost()
            return
        kind, payload = frame
        if kind == wire.STDIN:
            self.pending = payload
            self.stdin_ends = not payload
            self._feed()
        elif kind == wire.SIGNAL:
            self.job.signal_group(json.loads(payload))
        elif kind == wire.KILL:
            self.job.ask_to_end()
        elif kind == wire.RESIZE:
            self.job.resize(*json.loads(payload))

    def _feed(self):
        job = self.job
        if self.pending and job.stdin is not None:
            try:
                self.pending = self.pending[os.write(job.stdin, self.pending):]
            except BlockingIOError:
                return
            except OSError:         # nobody reads it any more
                self.pending = b""
        if self.stdin_ends:
            if not job.tty and job.stdin is not None:
                job.process.stdin.close()
                job.stdin = None
        elif not self.pending:
            self._tell(wire.CREDIT)


def handle(link, params):
    link.sock.settimeout(60)
    frame = link.recv()
    if frame is None or frame[0] != wire.HELLO:
        return
    request = json.loads(frame[1])
    if not hmac.compare_digest(str(request.get("token")), params["token"]):
        return
    with open("/proc/uptime") as f:
        link.send(wire.READY, {"uptime": float(f.read().split()[0])})
    if request.get("op") != "run":
        return
    link.sock.settimeout(None)
    try:
        job = Job(request, params["checkout"], environment(params))
    except (OSError, subprocess.SubprocessError) as e:
        link.send(wire.EXIT, {"error": str(e)})
        return
    Session(link, job).run()


def environment(params):
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash", "LANG": "C.UTF-8",
        # The checkout is read only: bytecode and caches go elsewhere
        "PYTHONPYCACHEPREFIX": "/var/cache/python",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
        "CORACLE_LAB_NODE": str(params["node"]),
        "CORACLE_LAB_RESULTS": f"{params['checkout']}/build/lab/results",
    }


def serve(params):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.create_server((params["address"].split("/")[0], wire.AGENT_PORT), backlog=64)
    with open(f"{SHARE}/build/lab/node{params['node']}/ready", "w") as f:
        f.write("ready\n")
    while True:
        sock, _ = listener.accept()
        if os.fork():
            sock.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            handle(wire.Wire(sock), params)
        except (OSError, ValueError, KeyError, TypeError) as e:
            print(f"agent: {e}", flush=True)
        os._exit(0)


def main():
    number = node_number()
    with open(f"{SHARE}/build/lab/node{number}/params.json") as f:
        params = json.load(f)
    mount_checkout(params["checkout"])
    set_up_network(params)
    serve(params)


main()
