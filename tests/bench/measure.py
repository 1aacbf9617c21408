"""measure.py - what is measured. Each function takes a Context and returns a list of Rows.

Peers take turns within a run, so that what else this host does hits all of them alike.
"""
import os
import re
import socket
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field

import moves
import pods
import qemu_moves
import snapshots
from peers import (BOOT_LINE, CORACLE, DEADLINE, MEMORY_MIB, TOP, BenchError, Guest, Tap, command_line,
                   copy_root, received)

GUESTS = TOP / "build/guest"
BUILD = TOP / "build/bench"
IDLE_SECONDS = 5        # after the login prompt, before memory is looked at
FIO_SECONDS = 4
IPERF_SECONDS = 4
DISK_MIB = 256


@dataclass
class Row:
    """Samples of one figure of Coracle's and of a peer's"""
    name: str           # the benchmark's, as on the command line
    what: str
    unit: str
    less_is_better: bool
    peer: str
    coracle: list = field(default_factory=list)
    other: list = field(default_factory=list)

    def result(self):
        ours, theirs = statistics.median(self.coracle), statistics.median(self.other)
        better = (theirs, ours) if self.less_is_better else (ours, theirs)
        return {"name": self.name, "what": self.what, "unit": self.unit,
                "less_is_better": self.less_is_better, "coracle": ours, "peer": self.peer,
                "peer_value": theirs, "ratio": better[0] / better[1] if better[1] else None,
                "samples": {"coracle": self.coracle, "peer": self.other}}


@dataclass
class Context:
    runs: int
    say: object         # prints a line about what goes on
    scratch: str        # a folder for disks


# ---- tiny guests: any KVM ----

def tiny(ctx):
    """Start to first output and to exit: hello and a 16-bit guest, against the floor"""
    commands = {
        "floor": [BUILD / "floor"],
        "chips": [BUILD / "floor", "chips"],
        "hello": [CORACLE, "run", "--quiet", "--memory", "64M", "--kernel", GUESTS / "hello.elf"],
        "flat16": [CORACLE, "run", "--quiet", "--memory", "16M", "--kernel", GUESTS / "flat16.bin",
                   "--kernel-type", "flat16", "--testdev", "on"],
    }
    runs = ctx.runs * 10
    ctx.say(f"tiny: {runs} runs each of {', '.join(commands)}")
    argv = [str(BUILD / "starts"), str(runs)]
    for i, command in enumerate(commands.values()):
        argv += ["--"] * bool(i) + [str(word) for word in command]
    run = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=DEADLINE)
    if run.returncode:
        raise BenchError(f"tiny: {run.stderr.strip()}")
    samples = {name: ([], []) for name in commands}
    names = list(commands)
    for line in run.stdout.splitlines():
        which, first, end, status = line.split()
        if int(status) != (33 if names[int(which)] == "flat16" else 0):
            raise BenchError(f"tiny: {names[int(which)]} ended with status {status}\n{run.stderr}")
        samples[names[int(which)]][0].append(float(first) / 1000)
        samples[names[int(which)]][1].append(float(end) / 1000)
    peers = {"floor": "bare KVM program", "chips": "the same with a PC's chips"}
    return [Row("tiny", f"{guest}: start to {what}", "ms", True, peers[peer],
                samples[guest][i], samples[peer][i])
            for guest in ("hello", "flat16") for peer in peers
            for i, what in enumerate(("first output", "exit"))]


# ---- Debian: start and memory ----

PAIRS = {"boot-pci": ("pci", "q35"), "boot-mmio": ("mmio", "microvm")}


def boot_once(ctx, kind, number):
    """Seconds to /init and to the login prompt; MiB beside guest RAM"""
    tap = Tap(number)
    root = copy_root(os.path.join(ctx.scratch, f"root-{kind}"))
    with Guest(kind, command_line(kind, BOOT_LINE, [root], [tap])) as guest:
        _, init = guest.wait_for(r"Loading, please wait", DEADLINE)
        _, login = guest.wait_for(r"login: $", DEADLINE)
        time.sleep(IDLE_SECONDS)
        beside = guest.beside_guest_ram() / 1024
    os.unlink(root)
    ctx.say(f"  {kind}: /init after {init:.1f} s, login after {login:.1f} s, {beside:.1f} MiB")
    return init, login, beside


def boot(ctx, name):
    ours, theirs = PAIRS[name]
    peer = f"QEMU {theirs}"
    rows = [Row(name, f"Debian, {ours}: start to /init", "s", True, peer),
            Row(name, f"Debian, {ours}: start to login", "s", True, peer),
            Row(name, f"{ours}: memory beside {MEMORY_MIB} MiB guest RAM", "MiB", True, peer)]
    for i in range(ctx.runs):
        ctx.say(f"{name}: run {i + 1} of {ctx.runs}")
        for kind, number in ((ours, 1), (theirs, 2)):
            for row, value in zip(rows, boot_once(ctx, kind, number)):
                (row.coracle if kind == ours else row.other).append(value)
    return rows


# ---- Debian: disk and network. Both machines are up at once, but one at a time has work. ----

SHELL_LINE = "console=ttyS0 root=/dev/vda rw quiet init=/bin/sh"

DISK_JOBS = {   # name: fio options, which half of its terse output, figure there, unit
    "disk: random read 4 KiB, depth 1": ("--rw=randread --bs=4k --iodepth=1", 7, "IOPS"),
    "disk: random read 4 KiB, depth 32": ("--rw=randread --bs=4k --iodepth=32", 7, "IOPS"),
    "disk: random write 4 KiB, depth 32": ("--rw=randwrite --bs=4k --iodepth=32", 48, "IOPS"),
    "disk: sequential read 128 KiB, depth 8": ("--rw=read --bs=128k --iodepth=8", 6, "MiB/s"),
    "disk: sequential write 128 KiB, depth 8": ("--rw=write --bs=128k --iodepth=8", 47, "MiB/s"),
}


class Pair:
    """Coracle's and QEMU's guest of one kind, each at a root shell"""

    def __init__(self, ctx, ours, theirs, disks, our_taps=(), their_taps=()):
        self.ours = self.theirs = None
        self.guests = []
        try:
            for kind, taps in ((ours, our_taps), (theirs, their_taps)):
                ctx.say(f"  starting {kind}")
                root = copy_root(os.path.join(ctx.scratch, f"root-{kind}"))
                guest = Guest(kind, command_line(kind, SHELL_LINE, [root, *disks], taps), taps)
                self.guests.append(guest)
                guest.prompt()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self.guests

    def __exit__(self, *_):
        for guest in self.guests:
            guest.kill()


def fio(guest, job, column, unit):
    out = guest.sh(f"fio --name=x --filename=/dev/vdb --direct=1 --ioengine=libaio {job} "
                   f"--runtime={FIO_SECONDS} --time_based --randrepeat=1 --minimal")
    line = next((text for text in out.splitlines() if text.startswith("3;fio")), "")
    if not line:
        raise BenchError(f"{guest.kind}: fio says: {out}")
    value = float(line.split(";")[column])
    return value / 1024 if unit == "MiB/s" else value


def disk(ctx):
    """fio in the guest on a second disk, whose file is in the host's page cache"""
    path = os.path.join(ctx.scratch, "data")
    with open(path, "wb") as f:
        for _ in range(DISK_MIB):
            f.write(os.urandom(1 << 20))
    ctx.say("disk: two guests")
    rows = [Row("disk", what, unit, False, "QEMU q35 io_uring")
            for what, (_, _, unit) in DISK_JOBS.items()]
    with Pair(ctx, "pci", "q35", [path]) as guests:
        for i in range(ctx.runs):
            ctx.say(f"disk: run {i + 1} of {ctx.runs}")
            for row in rows:
                job, column, unit = DISK_JOBS[row.what]
                row.coracle.append(fio(guests[0], job, column, unit))
                row.other.append(fio(guests[1], job, column, unit))
    os.unlink(path)
    return rows


def link_up(guest, tap):
    """Give the guest's side its address, by the NIC's MAC address"""
    guest.sh(f"n=$(grep -l {tap.mac} /sys/class/net/*/address); n=${{n%/address}}; n=${{n##*/}}; "
             f"ip addr add {tap.guest}/24 dev $n && ip link set $n up")
    guest.sh(f"until ping -c 1 -W 1 {tap.host}; do :; done", timeout=60)


def iperf(guest, tap, port, reverse):
    """Mbit/s that arrived"""
    out = guest.sh(f"iperf3 -c {tap.host} -p {port} -t {IPERF_SECONDS} -f m {'-R' if reverse else ''}")
    return received(guest.kind, out)


def round_trip(guest, tap):
    """Microseconds, the median of many"""
    out = guest.sh(f"ping -c 200 -i 0.002 {tap.host}")
    times = [float(t) * 1000 for t in re.findall(r"time=([\d.]+) ms", out)]
    if not times:
        raise BenchError(f"{guest.kind}: ping says: {out}")
    return statistics.median(times)


def free_port():
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def net(ctx):
    """iperf3 and ping between guest and host, by tap; without vhost-net and with, beside QEMU's likewise"""
    kinds = [False] + [True] * os.path.exists("/dev/vhost-net")
    ours = [Tap(1 + i, vhost) for i, vhost in enumerate(kinds)]
    theirs = [Tap(3 + i, vhost) for i, vhost in enumerate(kinds)]
    if len(kinds) == 1:
        ctx.say("net: no /dev/vhost-net, so both are measured without it only")
    port = free_port()
    ctx.say("net: two guests")
    with Pair(ctx, "pci", "q35", [], ours, theirs) as (us, them):
        server = subprocess.Popen(["iperf3", "-s", "-p", str(port)], stdout=subprocess.DEVNULL)
        try:
            pairs = [((us, a), (them, b)) for a, b in zip(ours, theirs)]
            for pair in pairs:
                for guest, tap in pair:
                    link_up(guest, tap)
            return measure_net(ctx, pairs, port)
        finally:
            server.kill()
            server.wait()


def measure_net(ctx, pairs, port):
    figures = (("guest to host", "Mbit/s", lambda g, t: iperf(g, t, port, False)),
               ("host to guest", "Mbit/s", lambda g, t: iperf(g, t, port, True)),
               ("round trip", "us", round_trip))
    rows = [(Row("net", f"net{' vhost' * tap.vhost}: {what}", unit, unit == "us",
                 "QEMU q35" + " vhost" * tap.vhost), pair, function)
            for pair in pairs for tap in [pair[0][1]] for what, unit, function in figures]
    for i in range(ctx.runs):
        ctx.say(f"net: run {i + 1} of {ctx.runs}")
        for row, pair, function in rows:
            for samples, (guest, tap) in zip((row.coracle, row.other), pair):
                samples.append(function(guest, tap))
    return [row for row, _, _ in rows]


def migrate(ctx):
    """Migration over loopback: rate against iperf3, and downtime"""
    return moves.measure(ctx, Row)


def restore(ctx):
    """Restore at three sizes: start to the guest's first output, against the floor"""
    return snapshots.restore(ctx, Row)


def snapshot(ctx):
    """Snapshot: rate against cp, and how long the guest stands still"""
    return snapshots.snapshot(ctx, Row)


def pod_starts(ctx):
    """Pods of containerd: start to running, memory, 20 at once; against runc"""
    return pods.measure(ctx, Row)


def restore_qemu(ctx):
    """Restore at three sizes, against QEMU with its RAM mapped from the file"""
    return qemu_moves.restore(ctx, Row)


def migrate_qemu(ctx):
    """Migration over loopback: rate, downtime and memory, against QEMU, multifd too"""
    return qemu_moves.migrate(ctx, Row)


def clones(ctx):
    """20 machines of one snapshot: memory of each, beside what its guest wrote"""
    return snapshots.clones(ctx, Row)


def pod_debian(ctx):
    """A Debian pod: start to login, against QEMU; iperf3, against runc; its control group's memory"""
    return pods.debian(ctx, Row)


BENCHMARKS = {      # name: function, whether it wants a KVM that boots Linux
    "tiny": (tiny, False),
    "boot-pci": (lambda ctx: boot(ctx, "boot-pci"), True),
    "boot-mmio": (lambda ctx: boot(ctx, "boot-mmio"), True),
    "disk": (disk, True),
    "net": (net, True),
    "pods": (pod_starts, False),
    "pod-debian": (pod_debian, True),
    "restore": (restore, False),
    "restore-qemu": (restore_qemu, False),
    "snapshot": (snapshot, False),
    "clones": (clones, False),
    "migrate": (migrate, False),
    "migrate-qemu": (migrate_qemu, False),
}
ABOUT = {
    "tiny": tiny.__doc__,
    "boot-pci": "Debian: start to /init and to the login; memory beside guest RAM; against QEMU q35",
    "boot-mmio": "the same on virtio-mmio, against QEMU microvm",
    "disk": disk.__doc__,
    "net": net.__doc__,
    "pods": pod_starts.__doc__,
    "pod-debian": pod_debian.__doc__,
    "restore": restore.__doc__,
    "restore-qemu": restore_qemu.__doc__,
    "snapshot": snapshot.__doc__,
    "clones": clones.__doc__,
    "migrate": migrate.__doc__,
    "migrate-qemu": migrate_qemu.__doc__,
}


def measure(name, runs, say):
    with tempfile.TemporaryDirectory(prefix="coracle-bench-", dir="/var/tmp") as scratch:
        return [row.result() for row in BENCHMARKS[name][0](Context(runs, say, scratch))]
