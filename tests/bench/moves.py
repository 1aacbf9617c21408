"""moves.py - migrations between two processes of this host, measured

A rate has two peers over the same loopback with as many streams, all of them in turn: iperf3, and the
floor, which is a program that does nothing but move as much memory. Downtime and memory have no peer
here but what is wanted; qemu_moves.py has QEMU's.

Where this host is a guest itself its free memory may have nothing behind it, and then getting that is all
that is measured: it is touched right before each.
"""
import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
import threading

from peers import CORACLE, DEADLINE, TOP, BenchError, beside_guest_ram

GUEST = TOP / "build/guest/churn.elf"
COPY = TOP / "build/bench/copy"
PAGES = 250000          # of the guest's, none of them zero: 977 MiB
MIB = PAGES * 4096 >> 20
MEMORY_MIB = 1200
MEMORY = f"{MEMORY_MIB}M"
FREE_MIB = 1600         # touched: what the target takes, and what others may take meanwhile
LINK_MIB = 400          # a second


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def need(*command):
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                         check=False, timeout=DEADLINE)
    if run.returncode:
        raise BenchError(f"{' '.join(map(str, command))}: {run.stderr.strip()}")
    return run.stdout


class Process:
    """A machine's; the guest writes all over its pages from "ready" until it gets a byte."""

    def __init__(self, scratch, *args, command="run", inside=()):
        self.socket = os.path.join(scratch, f"{id(self)}.sock")
        self.inside = inside
        self.process = subprocess.Popen(
            [*inside, CORACLE, command, *map(str, args), "--serial", "stdio", "--control",
             self.socket],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def until(self, pipe, word):
        for line in pipe:
            if word in line:
                return
        raise BenchError(f"a machine ended before it said {word}")

    def ctl(self, *args):
        return need(*self.inside, CORACLE, "ctl", self.socket, *args)

    def close(self):
        self.process.kill()
        self.process.communicate()


class Peak:
    """The most KiB beside guest RAM that a process had while this was open"""

    def __init__(self, process):
        self.pid, self.kib, self.stop = process.process.pid, 0, threading.Event()
        self.thread = threading.Thread(target=self._look)

    def _look(self):
        with contextlib.suppress(OSError):      # a source ends when it is done
            while not self.stop.wait(0.02):
                with contextlib.suppress(BenchError):   # it is ending
                    self.kib = max(self.kib, beside_guest_ram(self.pid, MEMORY_MIB - 1))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


@contextlib.contextmanager
def peaks_of(processes, peaks):
    """Append the MiB of each to @peaks; None: do not look"""
    if peaks is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        watched = [stack.enter_context(Peak(p)) for p in processes]
        yield
    peaks.extend(peak.kib / 1024 for peak in watched)


def move(ctx, *options, connections=1, pages=PAGES, pace=0, paused=False, inside=(), peaks=None):
    """What job-done says. The guest then has looked at all it had."""
    with tempfile.TemporaryDirectory(prefix="coracle-bench-", dir=ctx.scratch) as scratch:
        address = f"tcp:127.0.0.1:{free_port()}"
        here = Process(scratch, "--kernel", GUEST, "--memory", MEMORY, "--cmdline",
                       f"pages={pages} depth=0 pace={pace}", inside=inside)
        there = Process(scratch, "--incoming", address, inside=inside)
        try:
            here.until(here.process.stdout, "ready")
            there.until(there.process.stderr, "waiting")
            if paused:
                here.ctl("pause")
            need(COPY, "touch", FREE_MIB)
            with peaks_of((here, there), peaks):
                said = here.ctl("migrate", address, "--parallel", connections, "--json", *options)
            if paused:
                there.ctl("resume")
            out, _ = there.process.communicate("x", timeout=DEADLINE)
            if "ok churn" not in out:
                raise BenchError(f"the guest that moved says: {out}")
            return json.loads(said.splitlines()[-1])["params"]
        finally:
            here.close()
            there.close()


def rate(done):
    return done["sent"] / (1 << 20) / (done["total-us"] / 1e6)


def iperf(streams):
    """MiB/s over loopback"""
    port = free_port()
    with subprocess.Popen(["iperf3", "-s", "-1", "--forceflush", "-p", str(port)],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        for line in server.stdout:
            if "listening" in line:
                break
        run = subprocess.run(["iperf3", "-c", "127.0.0.1", "-p", str(port), "-t", "2", "-P",
                              str(streams), "-f", "M"], capture_output=True, text=True, check=False)
        server.kill()
    rates = re.findall(r"([\d.]+) MBytes/sec .*receiver", run.stdout)
    if not rates:
        raise BenchError(f"iperf3: {run.stdout}{run.stderr}")
    return float(rates[-1])


def copy(streams):
    need(COPY, "touch", FREE_MIB)
    return float(need(COPY, MIB, streams))


@contextlib.contextmanager
def link(mib):
    """The words before a command that run it where loopback carries @mib MiB a second"""
    name = f"coracle-bench-{os.getpid()}"
    inside = ("ip", "netns", "exec", name)
    need("ip", "netns", "add", name)
    try:
        need(*inside, "ip", "link", "set", "lo", "up")
        need(*inside, "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate",
             f"{mib * 8 << 20}bit", "burst", "2mb", "latency", "20ms")
        yield inside
    finally:
        need("ip", "netns", "del", name)


def ticks(mib):
    """Of the TSC between two pages of a guest that writes @mib MiB of them a second"""
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        mhz = float(re.search(r"bogomips\s*: ([\d.]+)", f.read())[1]) / 2
    return int(mhz * 1e6 * 4096 / (mib << 20))


def measure(ctx, row):
    """Samples by figure: (what, unit, less is better, peer, ours, the peer's)"""
    def wanted(what, unit, most):
        return row("migrate", what, unit, True, f"{most} {unit} wanted", [], [most])

    peers = {"iperf3 -P": iperf, "bare copy,": copy}
    rates = {(n, peer): row("migrate", f"migration, {n} connection{'s' * (n > 1)}, start to end",
                            "MiB/s", False, f"{peer} {n}") for n in (1, 4) for peer in peers}
    idle = wanted("downtime, 16 pages written all the time", "ms", 10)
    half = wanted(f"downtime, the guest writes {LINK_MIB // 2} of the {LINK_MIB} MiB/s of the link",
                  "ms", 50)
    memory = {n: wanted(f"memory beside guest RAM, either side's peak, {n} connection{'s' * (n > 1)}",
                        "MiB", 8) for n in (1, 4)}
    for i in range(ctx.runs):
        ctx.say(f"migrate: run {i + 1} of {ctx.runs}")
        for n in (1, 4):
            ours = rate(move(ctx, connections=n, paused=True))
            for peer, function in peers.items():
                rates[n, peer].coracle.append(ours)
                rates[n, peer].other.append(function(n))
            peaks = []
            move(ctx, "--bandwidth", f"{LINK_MIB}MiB/s", connections=n, paused=True, peaks=peaks)
            memory[n].coracle.append(max(peaks))
        idle.coracle.append(move(ctx, pages=16)["downtime-us"] / 1000)
        with link(LINK_MIB) as inside:
            done = move(ctx, pace=ticks(LINK_MIB // 2), inside=inside)
        half.coracle.append(done["downtime-us"] / 1000)
    return [*rates.values(), idle, half, *memory.values()]
