"""pods.py - pods of a real containerd with real CNI, beside ordinary ones by runc

A pod's start is what a kubelet asks for, from RunPodSandbox to the answer of StartContainer, the network
included. Its memory is the PSS of all that is there for it, but for its guest's RAM. The node is that of
tests/pods. Ordinary pods run a static program that waits, the machines a tiny guest that has halted.
"""
import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time

from peers import TOP, BenchError, beside_guest_ram

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
        left = {k: v for k, v in n.leftovers().items() if v and k != "network namespaces"}
        if left:
            raise BenchError(f"pods: left behind: {left}")
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
    import cri  # pylint: disable=C0415
    import node as nodes  # pylint: disable=C0415
    what = {"devices": [("/dev/rootdisk", volume)]} if runtime == "coracle" else {
        "image": "coracle.test/waits:1", "command": ["/waits"]}
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
            row("pods", "pod: memory beside guest RAM", "MiB", True, peer),
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
