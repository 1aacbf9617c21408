"""pods.py - pods of a real containerd with real CNI, beside ordinary ones by runc

A pod's start is what a kubelet asks for, from RunPodSandbox to the answer of StartContainer, the network
included. Its memory is the PSS of all that is there for it, but for its guest's RAM. The node is that of
tests/pods. Ordinary pods run a static program that waits, the machines a tiny guest that has halted.

Debian guests show the rest: start to login, beside QEMU with the same kernel, disk and command line; the
network, beside an ordinary pod on the same bridge with this host's iperf3; and what the pod's control group
is charged beside guest RAM, beside what the RuntimeClass says.
"""
import concurrent.futures
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

from peers import (BOOT_LINE, DEADLINE, IMAGE, TOP, BenchError, Guest, Tap, beside_guest_ram, command_line,
                   guest_ram, received)
from peers import MEMORY_MIB as DEBIAN_MIB

sys.path.insert(0, str(TOP / "tests/pods"))

WAITS = TOP / "build/bench/pause"
MANY = 20
MEMORY_MIB = 64
RUNTIMES = ("coracle", "runc")
RUNC_SHIM = "containerd-shim-runc-v2"


@contextlib.contextmanager
def trouble():
    """The node's ways to fail, as this program's"""
    import cri  # pylint: disable=C0415
    try:
        yield
    except (AssertionError, cri.Refused, OSError, subprocess.SubprocessError) as e:
        raise BenchError(f"pods: {e}") from e


def need_tools():
    """Before anything is imported that wants them"""
    missing = [p for p in ("containerd", "runc", "ctr", "protoc", "losetup", "ip")
               if not shutil.which(p)]
    if missing or os.geteuid():
        raise BenchError(f"pods: no {', '.join(missing)} here: run tools/setup test" if missing else
                         "pods: needs root")


@contextlib.contextmanager
def node(**config):
    """A node with both runtimes. @config: of its coracle.json"""
    import node as nodes  # pylint: disable=C0415
    reason = nodes.why_not()
    if reason:
        raise BenchError(f"pods: {reason}")
    program = WAITS.read_bytes()
    n = nodes.Node(pause=program, **{"log-level": "info", **config})
    try:
        n.image("coracle.test/waits:1", {"waits": program}, ("/waits",))
        yield n
        n.check_clean("locks on disks")     # which udev looks at, too
    finally:
        n.close()


@contextlib.contextmanager
def loop_devices(scratch, count):
    """Block volumes"""
    made = []
    try:
        for i in range(count):
            path = pathlib.Path(scratch) / f"volume{i}"
            path.touch()
            os.truncate(path, 4 << 20)
            done = subprocess.run(["losetup", "-f", "--show", path], capture_output=True, text=True,
                                  check=False)
            if done.returncode:
                raise BenchError(f"pods: {done.stderr.strip()}")
            made.append(done.stdout.strip())
        yield made
    finally:
        for device in made:
            subprocess.run(["losetup", "-d", device], check=False)


def start(n, runtime, volume):
    what = {"devices": [("/dev/rootdisk", volume)]} if runtime == "coracle" else {
        "image": "coracle.test/waits:1", "command": ["/waits"]}
    return run(n, runtime, **what)


def run(n, runtime, **what):
    import cri  # pylint: disable=C0415
    import node as nodes  # pylint: disable=C0415
    pod = nodes.Pod(n, runtime=runtime)
    try:
        return pod.run().start(**what)
    except BaseException:
        with contextlib.suppress(cri.Refused):  # the node's end removes what is left
            pod.remove()
        raise


def pss(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("Pss:"))


def memory(n, runtime):
    """KiB of all pods of a runtime, by what has them"""
    import node as nodes  # pylint: disable=C0415
    if runtime == "coracle":
        shims = nodes.ours(nodes.SHIM, n)   # and the sandboxes' processes, which are forks of it
        return {"shims": sum(map(pss, shims)), "VMMs": sum(beside_guest_ram(pid, MEMORY_MIB)
                                                           for pid in nodes.ours("coracle", n))}
    shims = nodes.ours(RUNC_SHIM, n)
    children = [int(c) for pid in shims for thread in pathlib.Path(f"/proc/{pid}/task").iterdir()
                for c in (thread / "children").read_text().split()]
    return {"shims": sum(map(pss, shims)), "programs": sum(map(pss, children))}


def one(n, runtime, volume):
    """Milliseconds to running; KiB"""
    began = time.monotonic()
    pod = start(n, runtime, volume)
    took = time.monotonic() - began
    try:
        return took * 1000, memory(n, runtime)
    finally:
        pod.remove()


def many(n, runtime, volumes):
    """Seconds until all run; KiB"""
    with concurrent.futures.ThreadPoolExecutor(len(volumes)) as pool:
        began = time.monotonic()
        jobs = [pool.submit(start, n, runtime, volume) for volume in volumes]
        concurrent.futures.wait(jobs)
        took = time.monotonic() - began
        try:
            for job in jobs:
                job.result()
            return took, memory(n, runtime)
        finally:
            list(pool.map(lambda job: job.exception() or job.result().remove(), jobs))


def measure(ctx, row):
    need_tools()
    peer = "runc"
    rows = [row("pods", "pod: start to running", "ms", True, peer),
            row("pods", "pod: memory beside guest RAM (4 wanted)", "MiB", True, peer),
            row("pods", f"{MANY} pods at once: until all run", "s", True, peer),
            row("pods", f"{MANY} pods: memory of each beside guest RAM", "MiB", True, peer)]

    def take(which, runtime, value):
        (rows[which].coracle if runtime == "coracle" else rows[which].other).append(value)

    def told(kib, pods):
        return ", ".join(f"{k} {v / pods / 1024:.2f} MiB" for k, v in kib.items())

    with trouble(), loop_devices(ctx.scratch, MANY) as volumes, \
            node(memory=f"{MEMORY_MIB}M", cmdline="exit=halt") as n:
        for runtime in RUNTIMES:    # what is only slow at first
            one(n, runtime, volumes[0])
        for i in range(ctx.runs):
            ctx.say(f"pods: run {i + 1} of {ctx.runs}")
            for _ in range(3):
                for runtime in RUNTIMES:
                    took, kib = one(n, runtime, volumes[0])
                    take(0, runtime, took)
                    take(1, runtime, sum(kib.values()) / 1024)
            for runtime in RUNTIMES:
                took, all_kib = many(n, runtime, volumes)
                take(2, runtime, took)
                take(3, runtime, sum(all_kib.values()) / MANY / 1024)
                ctx.say(f"  {MANY} by {runtime} in {took:.2f} s; each {told(all_kib, MANY)}")
    return rows


# ---- Debian ----

def boot_pod(ctx, n, device):
    """A pod at its login, its console, and the seconds that took"""
    import debian_pod  # pylint: disable=C0415
    began = time.monotonic()
    pod = run(n, "coracle", devices=[("/dev/rootdisk", device)], memory=DEBIAN_MIB << 20, stdin=True,
              tty=True)
    console = debian_pod.Console(pod)
    console.wait_for("login: $", DEADLINE)
    took = time.monotonic() - began
    nics = [d.get("worker", "itself") for d in n.info()["devices"] if d["type"] == "virtio-net"]
    ctx.say(f"  pod: login after {took:.1f} s; its frames are moved by {', '.join(nics)}")
    return pod, console, took


def boot_qemu(ctx, device):
    tap = Tap(1)
    with Guest("microvm", command_line("microvm", BOOT_LINE, [device], [tap])) as guest:
        took = guest.wait_for("login: $", DEADLINE)[1]
    ctx.say(f"  QEMU: login after {took:.1f} s")
    return took


def log_in(pod, console):
    """The pod's address is given to the guest as CNI would give it to a container."""
    import debian  # pylint: disable=C0415
    console.send(b"root\n")
    console.wait_for("Password: $", DEADLINE)
    console.send(debian.PASSWORD.encode() + b"\n")
    console.prompt(DEADLINE)
    console.sh("n=$(ls /sys/class/net | grep -v '^lo$'); "
               f"ip addr add {pod.ip()}/24 dev $n && ip link set $n up; iperf3 -s -D")


def iperf_pod(n):
    """An ordinary pod with this host's programs that is an iperf3 server"""
    n.image("coracle.test/host:1", {"lib": "-> usr/lib", "lib64": "-> usr/lib64", "tmp/.here": b""})
    return run(n, "runc", image="coracle.test/host:1", command=["/usr/bin/iperf3", "-s"],
               mounts=[("/usr", "/usr")])


def iperf(address, *options):
    """Mbit/s. The server may not be there yet."""
    end = time.monotonic() + 60
    while True:
        done = subprocess.run(["iperf3", "-c", address, "-t", "4", "-f", "m", *options], text=True,
                              capture_output=True, check=False, timeout=DEADLINE)
        if not done.returncode or time.monotonic() > end:
            return received("pod", done.stdout + done.stderr)
        time.sleep(0.5)


class Group:
    """The most MiB a pod's control group is charged for beside guest RAM, while this is open

    But for the cache of files, which the kernel takes back when it wants: of a loop device's file here.
    """

    def __init__(self, n):
        import node as nodes  # pylint: disable=C0415
        self.path = pathlib.Path("/sys/fs/cgroup") / n.name
        if not (self.path / "memory.current").exists():
            raise BenchError("pods: memory is charged by control groups of version 2 only, which are "
                             "not here")
        self.pid, = nodes.ours("coracle", n)
        self.peak, self.parts, self.stop = 0, {}, threading.Event()
        self.thread = threading.Thread(target=self._look)

    def _look(self):
        with contextlib.suppress(OSError):
            while not self.stop.wait(0.5):
                stat = {k: int(v) / (1 << 20) for k, v in
                        map(str.split, (self.path / "memory.stat").read_text().splitlines())}
                charged = int((self.path / "memory.current").read_text()) / (1 << 20)
                ram = guest_ram(self.pid, DEBIAN_MIB)[0] / 1024
                beside = charged - ram - stat["file"] + stat["shmem"]
                if beside > self.peak:
                    self.peak = beside
                    self.parts = {"guest RAM": ram, **{k: stat[k] for k in (
                        "anon", "kernel", "pagetables", "sec_pagetables", "kernel_stack", "slab",
                        "sock", "file") if k in stat}}

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def overhead():
    """MiB that a RuntimeClass's pods have beside their limits"""
    text = (TOP / "k8s-shim/deploy/runtimeclass.yaml").read_text()
    return float(re.search(r"^ +memory: (\d+)Mi$", text, re.M)[1])


def measure_debian(ctx, n, device, rows):
    login, into, out_of, group = rows
    pod, console, took = boot_pod(ctx, n, device)
    try:
        login.coracle.append(took)
        log_in(pod, console)
        peer = iperf_pod(n)
        try:
            with Group(n) as charged:
                for _ in range(2):
                    for row, options in ((into, ()), (out_of, ("-R",))):
                        row.coracle.append(iperf(pod.ip(), *options))
                        row.other.append(iperf(peer.ip(), *options))
                # Most of its memory, with what the kernel needs to have it, and time to look
                console.sh("mount -o remount,size=90% /dev/shm; dd if=/dev/zero of=/dev/shm/fill bs=1M "
                           "count=300 && sleep 3 && rm /dev/shm/fill")
        finally:
            peer.remove()
        group.coracle.append(charged.peak)
        ctx.say(f"  {charged.peak:.1f} MiB beside guest RAM when it was most; " + ", ".join(
            f"{k} {v:.1f}" for k, v in charged.parts.items()))
        console.close()
    finally:
        pod.remove()


def debian(ctx, row):
    need_tools()
    import debian_pod  # pylint: disable=C0415
    login = row("pod-debian", "Debian pod: start to login", "s", True, "QEMU microvm")
    into = row("pod-debian", "Debian pod: iperf3 into it", "Mbit/s", False, "runc")
    out_of = row("pod-debian", "Debian pod: iperf3 out of it", "Mbit/s", False, "runc")
    group = row("pod-debian", f"Debian pod: charged beside {DEBIAN_MIB} MiB guest RAM, peak", "MiB",
                True, "RuntimeClass")
    group.other.append(overhead())
    for name in ("vmlinux", "initrd.img"):      # from the cache for the first one, too
        (IMAGE / name).read_bytes()
    with trouble(), node(**debian_pod.config(cmdline=BOOT_LINE, transport="mmio",
                                             **{"disk-direct": False})) as n:
        for i in range(ctx.runs):
            ctx.say(f"pod-debian: run {i + 1} of {ctx.runs}")
            with debian_pod.root_device(ctx.scratch) as device:
                measure_debian(ctx, n, device, (login, into, out_of, group))
            os.unlink(os.path.join(ctx.scratch, "root.ext4"))
            with debian_pod.root_device(ctx.scratch) as device:
                login.other.append(boot_qemu(ctx, device))
            os.unlink(os.path.join(ctx.scratch, "root.ext4"))
    return [login, into, out_of, group]
