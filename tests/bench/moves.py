"""moves.py - migrations between two processes of this host, measured

The peer of a rate is iperf3 over the same loopback with as many streams, taken in turn with it. A
downtime has no peer here; QEMU's is measured where QEMU runs (the lab).
"""
import json
import os
import re
import socket
import subprocess
import tempfile

from peers import CORACLE, DEADLINE, TOP, BenchError

GUEST = TOP / "build/guest/churn.elf"
PAGES = 250000          # of the guest's, none of them zero: 977 MiB
MEMORY = "1200M"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Process:
    """A machine's; the guest writes all over its pages from "ready" until it gets a byte."""

    def __init__(self, scratch, *args):
        self.socket = os.path.join(scratch, f"{id(self)}.sock")
        self.process = subprocess.Popen(
            [CORACLE, "run", *map(str, args), "--serial", "stdio", "--control", self.socket],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def until(self, pipe, word):
        for line in pipe:
            if word in line:
                return
        raise BenchError(f"a machine ended before it said {word}")

    def ctl(self, *args):
        run = subprocess.run([CORACLE, "ctl", self.socket, *map(str, args)], capture_output=True,
                             text=True, check=False, timeout=DEADLINE)
        if run.returncode:
            raise BenchError(f"ctl {args[0]}: {run.stderr.strip()}")
        return run.stdout

    def close(self):
        self.process.kill()
        self.process.communicate()


def move(pages, memory, connections, paused, *options):
    """What job-done says. The guest then has looked at all it had."""
    with tempfile.TemporaryDirectory(prefix="coracle-bench-") as scratch:
        address = f"tcp:127.0.0.1:{free_port()}"
        here = Process(scratch, "--kernel", GUEST, "--memory", memory, "--cmdline",
                       f"pages={pages} depth=0")
        there = Process(scratch, "--incoming", address)
        try:
            here.until(here.process.stdout, "ready")
            there.until(there.process.stderr, "waiting")
            if paused:
                here.ctl("pause")
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


def measure(ctx, row):
    """Samples by figure: (what, unit, less is better, peer, ours, the peer's)"""
    rates = {n: ([], []) for n in (1, 4)}
    downtimes = []
    for i in range(ctx.runs):
        ctx.say(f"migrate: run {i + 1} of {ctx.runs}")
        for n, (ours, theirs) in rates.items():
            done = move(PAGES, MEMORY, n, True)
            ours.append(done["sent"] / (1 << 20) / (done["total-us"] / 1e6))
            theirs.append(iperf(n))
        downtimes.append(move(16, "64M", 1, False)["downtime-us"] / 1000)
    rows = [row("migrate", f"migration, {n} connection{'s' * (n > 1)}, start to end", "MiB/s",
                False, f"iperf3 -P {n}", ours, theirs) for n, (ours, theirs) in rates.items()]
    # against what is wanted, for want of a peer
    return rows + [row("migrate", "downtime, 16 pages written all the time", "ms", True,
                       "10 ms wanted", downtimes, [10.0] * len(downtimes))]
