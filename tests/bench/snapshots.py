"""snapshots.py - machines to a directory and back, measured

The peer of a restore is the floor program with its memory from the same file: what KVM itself takes to
make a machine of that size and run its first instruction, an OUT, as is the guest's. The peer of a
snapshot is cp of the file it made, to the same folder, in turn with it; a snapshot is on the disk in
the end, so cp is followed by sync of the copy in one row, and not in the other. All files are in the
page cache: they were just written.
"""
import json
import os
import re
import shutil
import subprocess
import tempfile
import time

from moves import COPY, FREE_MIB, GUEST, MEMORY, PAGES, Process, need
from peers import CORACLE, DEADLINE, TOP, BenchError

BUILD = TOP / "build/bench"
FIRST = TOP / "build/guest/flat16.bin"      # its first output is its third instruction
FIRST_STATUS = 33
SIZES = ("128M", "1G", "4G")
IDLE = TOP / "build/guest/hello.elf"        # "echo": looks at the serial port


def paused_at_entry(scratch, memory):
    """A snapshot of a machine that has not run yet."""
    directory = os.path.join(scratch, f"first-{memory}")
    machine = Process(scratch, "--kernel", FIRST, "--kernel-type", "flat16", "--testdev", "on",
                      "--memory", memory, "--paused")
    try:
        machine.until(machine.process.stderr, "vCPU")
        machine.ctl("snapshot", directory, "--stop")
    finally:
        machine.close()
    return directory


def restored(directory):
    """The command that runs such a machine, and its status"""
    return [CORACLE, "restore", directory, "--paused=off", "--quiet"], FIRST_STATUS


def timed(commands, runs):
    """Milliseconds to the first output of each run of each command, which take turns."""
    argv = [BUILD / "starts", runs]
    for i, (command, _) in enumerate(commands):
        argv += ["--"] * bool(i) + command
    run = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False,
                         timeout=DEADLINE)
    if run.returncode:
        raise BenchError(f"restore: {run.stderr.strip()}")
    times = [[] for _ in commands]
    for line in run.stdout.splitlines():
        which, first, _, status = line.split()
        if int(status) != commands[int(which)][1]:
            raise BenchError(f"restore: {commands[int(which)][0][0]} ended with {status}\n{run.stderr}")
        times[int(which)].append(float(first) / 1000)
    return times


def restore(ctx, row):
    runs = ctx.runs * 10
    with tempfile.TemporaryDirectory(dir=ctx.scratch) as scratch:
        commands = []
        for memory in SIZES:
            directory = paused_at_entry(scratch, memory)
            commands.append(restored(directory))
            commands.append(([BUILD / "floor", "chips", os.path.join(directory, "memory")], 0))
        ctx.say(f"restore: {runs} runs each of {len(commands)} commands")
        times = timed(commands, runs)
    return [row("restore", f"restore, {memory}: start to the guest's first output", "ms", True,
                "bare KVM program, same file", times[2 * i], times[2 * i + 1])
            for i, memory in enumerate(SIZES)]


CLONES = 20
CLONE_PAGES = 40000     # of 4 KiB, in the snapshot; each clone writes to some before it is paused


def smaps(pid):
    """(path, {name: MiB}) of each mapping of a process."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as f:
        for text in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", f.read()):
            yield text.split("\n")[0], {name: int(kib) / 1024 for name, kib in
                                        re.findall(r"^(\w+): +(\d+) kB", text, re.M)}


def clones(ctx, row):
    with tempfile.TemporaryDirectory(dir=ctx.scratch) as scratch:
        directory = os.path.join(scratch, "snapshot")
        first = Process(scratch, "--kernel", GUEST, "--memory", "256M", "--cmdline",
                        f"pages={CLONE_PAGES} depth=0")
        all_of_them = []
        try:
            first.until(first.process.stdout, "ready")
            first.ctl("snapshot", directory, "--stop")
            ctx.say(f"clones: {CLONES} of 256 MiB")
            for _ in range(CLONES):
                all_of_them.append(Process(scratch, directory, command="restore"))
                all_of_them[-1].until(all_of_them[-1].process.stderr, "go on")
            time.sleep(1)
            for clone in all_of_them:
                clone.ctl("pause")
            whole, own, beside = [], [], []
            for clone in all_of_them:
                maps = list(smaps(clone.process.pid))
                ram = [sizes for path, sizes in maps if path.endswith("/snapshot/memory")]
                whole.append(sum(sizes.get("Pss", 0) for _, sizes in maps))
                own.append(sum(sizes["Private_Dirty"] for sizes in ram))
                beside.append(whole[-1] - sum(sizes["Pss"] for sizes in ram))
        finally:
            for machine in [first, *all_of_them]:
                machine.close()
    return [row("clones", f"{CLONES} clones of 256 MiB: memory of each", "MiB", True,
                "pages its guest wrote", whole, own),
            row("clones", f"{CLONES} clones: memory of each beside guest RAM", "MiB", True,
                "8 MiB wanted", beside, [8.0] * CLONES)]


def seconds(*argv):
    start = time.monotonic()
    subprocess.run([str(word) for word in argv], check=True, timeout=DEADLINE)
    return time.monotonic() - start


def level():
    """The same field for both: nobody writes for somebody else, and free memory is there (moves.py)."""
    need("sync")
    need(COPY, "touch", FREE_MIB)


def once(machine, scratch):
    """Of one snapshot: its MiB/s, those of cp without and with sync, and its pause in ms."""
    directory, copy = os.path.join(scratch, "snapshot"), os.path.join(scratch, "copy")
    memory = os.path.join(directory, "memory")
    level()
    start = time.monotonic()
    said = machine.ctl("snapshot", directory, "--json")
    ours = time.monotonic() - start
    params = json.loads(said.splitlines()[-1])["params"]
    level()
    cp = seconds("cp", memory, copy)
    synced = cp + seconds("sync", copy)
    mib = params["written"] / (1 << 20)
    shutil.rmtree(directory)
    os.unlink(copy)
    return mib / ours, mib / cp, mib / synced, params["pause-us"] / 1000


def snapshot(ctx, row):
    rates, pauses = ([], [], []), []
    with tempfile.TemporaryDirectory(dir=ctx.scratch) as scratch:
        busy = Process(scratch, "--kernel", GUEST, "--memory", MEMORY, "--cmdline",
                       f"pages={PAGES} depth=0")
        idle = Process(scratch, "--kernel", IDLE, "--memory", "1G", "--cmdline", "echo")
        try:
            busy.until(busy.process.stdout, "ready")
            idle.until(idle.process.stdout, "ready")
            busy.ctl("pause")
            for i in range(ctx.runs):
                ctx.say(f"snapshot: run {i + 1} of {ctx.runs}")
                *now, _ = once(busy, scratch)
                for samples, value in zip(rates, now):
                    samples.append(value)
                pauses.append(once(idle, scratch)[3])
        finally:
            busy.close()
            idle.close()
    what = f"snapshot of {PAGES // 256} MiB"
    return [row("snapshot", what, "MiB/s", False, "cp and sync of its memory", rates[0], rates[2]),
            row("snapshot", what, "MiB/s", False, "cp alone", rates[0], rates[1]),
            # against what is wanted, for want of a peer
            row("snapshot", "pause of an idle guest, 1 GiB", "ms", True, "10 ms wanted", pauses,
                [10.0] * len(pauses))]
