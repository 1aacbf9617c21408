"""qemu_moves.py - restores and migrations beside QEMU's

QEMU has its smallest machine, its RAM as a backend of its own, no limit of bandwidth but the one given
to both, and where several connections are wanted, multifd. What it is told waits on its monitor's
socket before it starts, so that no time is lost in between. Its guests are the same programs by their
multiboot header. What counts is what its events say: a migration is over when the target has all, and the
guest stands still from STOP to the target's RESUME. Its own figures end when the source has sent all.

A restored machine of QEMU's runs the same three instructions to the first output as Coracle's. They are
its firmware here, behind a loop that ends when a byte in RAM is not zero: a machine that has never run
is restored as one that does not run. The byte is set in the file of RAM. That file is mapped, and not
shared; the rest of the state comes from another (x-ignore-shared).
"""
import json
import os
import socket
import tempfile
import time

import moves
import snapshots
from moves import MEMORY, PAGES
from peers import DEADLINE, QEMU, TOP, BenchError, Guest

# KVM in software refuses what QEMU makes of the processor's arch-capabilities.
MACHINE = [QEMU, "-M", "microvm,memory-backend=ram,x-option-roms=off", "-accel", "kvm", "-cpu",
           "host,-arch-capabilities", "-nodefaults", "-no-user-config", "-display", "none", "-serial",
           "stdio"]
CHURN = TOP / "build/guest/churn-mb.elf"
ROM_SIZE, ENTRY, RESET = 0x10000, 0xff00, 0xfff0
FLAG = 0x500
UNTIL_FLAG = bytes.fromhex("803e000500 74f9")   # 1: cmpb $0, FLAG; je 1b
ENOUGH = 1 << 40    # bytes a second: no limit


class Qemu(Guest):
    """@commands: (name, arguments) for its monitor. @files: descriptors it gets, too

    .events has when, in milliseconds, it last told of each; of a migration, when it came to each state.
    """

    def __init__(self, args, commands=(), files=(), inside=()):
        self.qmp, theirs = socket.socketpair()
        self.qmp.settimeout(DEADLINE)
        self.lines, self.events, self.unanswered = self.qmp.makefile("r"), {}, 0
        for command, arguments in (("qmp_capabilities", {}), *commands):
            self._tell(command, arguments)
        with theirs:
            super().__init__("QEMU microvm",
                             [*map(str, inside), *MACHINE, *map(str, args), "-chardev",
                              f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"],
                             pass_fds=(theirs.fileno(), *files))

    def kill(self):
        super().kill()
        self.lines.close()
        self.qmp.close()

    def _tell(self, command, arguments):
        self.qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        self.unanswered += 1

    def _answer(self):
        for line in self.lines:
            said = json.loads(line)
            if "event" in said:
                at, what = said["timestamp"], said.get("data", {}).get("status")
                self.events[what or said["event"]] = at["seconds"] * 1000 + at["microseconds"] / 1000
            elif "error" in said:
                raise BenchError(f"QEMU: {said['error']['desc']}")
            elif "return" in said:
                self.unanswered -= 1
                return said["return"]
        raise BenchError(f"QEMU has ended: {self.data.decode(errors='replace')}")

    def ask(self, command, **arguments):
        self._tell(command, arguments)
        while self.unanswered > 1:
            self._answer()
        return self._answer()

    def until(self, command, *states):
        """What it says of itself once its state is one of those"""
        end = time.monotonic() + DEADLINE
        while (said := self.ask(command)).get("status") not in states:
            if time.monotonic() > end:
                raise BenchError(f"QEMU: {command} stays {said}")
            time.sleep(0.01)
        if said["status"] == "failed":
            raise BenchError(f"QEMU: {said}")
        return said


def ram(memory, path=None, share="off"):
    kind = f"file,mem-path={path},share={share}" if path else "ram"
    return ["-m", memory, "-object", f"memory-backend-{kind},id=ram,size={memory}"]


def capabilities(*names):
    return ("migrate-set-capabilities",
            {"capabilities": [{"capability": name, "state": True} for name in names]})


# ---- restore ----

class Saved:
    """A machine of QEMU's in two files, one of them all of its RAM"""

    def __init__(self, scratch, memory):
        self.memory = memory
        self.ram, self.state, self.rom = (os.path.join(scratch, f"qemu-{memory}-{what}")
                                          for what in ("ram", "state", "rom"))
        self._write_rom()
        # Without a word about that it stands still.
        with Qemu([*self._args("on"), "-global", "migration.store-global-state=off"],
                  [capabilities("x-ignore-shared"), ("stop", {})]) as machine:
            machine.ask("migrate", uri=f"exec:cat >'{self.state}'")
            machine.until("query-migrate", "completed", "failed")
        with open(self.ram, "r+b") as f:
            f.seek(FLAG)
            f.write(b"\1")

    def _write_rom(self):
        code = UNTIL_FLAG + snapshots.FIRST.read_bytes()
        image = bytearray(ROM_SIZE)
        image[ENTRY:ENTRY + len(code)] = code
        image[RESET:RESET + 3] = b"\xe9" + (ENTRY - RESET - 3 & 0xffff).to_bytes(2, "little")
        with open(self.rom, "wb") as f:
            f.write(image)

    def _args(self, share):
        return ["-bios", self.rom, "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
                *ram(self.memory, self.ram, share)]

    def first_output(self):
        """Milliseconds from the start"""
        with open(self.state, "rb") as f, \
                Qemu([*self._args("off"), "-incoming", "defer"],
                     [capabilities("x-ignore-shared"),
                      ("migrate-incoming", {"uri": f"fd:{f.fileno()}"})], [f.fileno()]) as machine:
            return machine.wait_for("^6$", DEADLINE)[1] * 1000


def restore(ctx, row):
    rows = []
    with tempfile.TemporaryDirectory(dir=ctx.scratch) as scratch:
        for memory in snapshots.SIZES:
            ctx.say(f"restore-qemu: {memory}, {ctx.runs * 3} runs")
            ours = snapshots.restored(snapshots.paused_at_entry(scratch, memory))
            theirs = Saved(scratch, memory)
            rows.append(row("restore-qemu", f"restore, {memory}: start to the guest's first output",
                            "ms", True, "QEMU microvm, RAM mapped"))
            for _ in range(ctx.runs * 3):
                rows[-1].coracle += snapshots.timed([ours], 1)[0]
                rows[-1].other.append(theirs.first_output())
    return rows


# ---- migration ----

def prepare(machine, connections, bandwidth):
    command, arguments = capabilities("events", *["multifd"] * (connections > 1))
    machine.ask(command, **arguments)
    if connections > 1:
        machine.ask("migrate-set-parameters", **{"multifd-channels": connections})
    machine.ask("migrate-set-parameters", **{"max-bandwidth": bandwidth, "downtime-limit": 50})


def move(ctx, connections=1, pages=PAGES, pace=0, paused=False, inside=(), bandwidth=ENOUGH,
         peaks=None):
    """Seconds in all, and milliseconds the guest stood still. It then has looked at all it had."""
    uri = f"tcp:127.0.0.1:{moves.free_port()}"
    args = [*ram(MEMORY), "-kernel", CHURN, "-append", f"pages={pages} depth=0 pace={pace}"]
    with Qemu(args, inside=inside) as here, \
            Qemu([*args, "-incoming", "defer"], inside=inside) as there:
        here.wait_for("ready", DEADLINE)
        for machine in (here, there):
            prepare(machine, connections, bandwidth)
        there.ask("migrate-incoming", uri=uri)
        if paused:
            here.ask("stop")
        moves.need(moves.COPY, "touch", moves.FREE_MIB)
        with moves.peaks_of((here, there), peaks):
            here.ask("migrate", uri=uri)
            here.until("query-migrate", "completed", "failed")
        there.until("query-migrate", "completed", "failed")
        there.until("query-status", "running", "paused")
        if paused:
            there.ask("cont")
        there.send("x")
        there.wait_for("ok churn", DEADLINE)
        return ((there.events["completed"] - here.events["setup"]) / 1000,
                there.events.get("RESUME", 0) - here.events["STOP"])


def migrate(ctx, row):
    def against(what, unit, less_is_better, n=1):
        return row("migrate-qemu", what, unit, less_is_better,
                   f"QEMU, multifd {n}" if n > 1 else "QEMU")

    def of(n):
        return f"{n} connection{'s' * (n > 1)}"

    rates = {n: against(f"migration, {of(n)}, start to end", "MiB/s", False, n) for n in (1, 4)}
    memory = {n: against(f"memory beside guest RAM, either side's peak, {of(n)}", "MiB", True, n)
              for n in (1, 4)}
    idle = against("downtime, 16 pages written all the time", "ms", True)
    link_mib = moves.LINK_MIB
    half = against(f"downtime, the guest writes {link_mib // 2} of the {link_mib} MiB/s of the link",
                   "ms", True)
    for i in range(ctx.runs):
        ctx.say(f"migrate-qemu: run {i + 1} of {ctx.runs}")
        for n in (1, 4):
            rates[n].coracle.append(moves.rate(moves.move(ctx, connections=n, paused=True)))
            rates[n].other.append(moves.MIB / move(ctx, n, paused=True)[0])
            ours, theirs = [], []
            moves.move(ctx, "--bandwidth", f"{link_mib}MiB/s", connections=n, paused=True, peaks=ours)
            move(ctx, n, paused=True, bandwidth=link_mib << 20, peaks=theirs)
            memory[n].coracle.append(max(ours))
            memory[n].other.append(max(theirs))
        idle.coracle.append(moves.move(ctx, pages=16)["downtime-us"] / 1000)
        idle.other.append(move(ctx, pages=16)[1])
        pace = moves.ticks(link_mib // 2)
        with moves.link(link_mib) as inside:
            half.coracle.append(moves.move(ctx, pace=pace, inside=inside)["downtime-us"] / 1000)
            half.other.append(move(ctx, pace=pace, inside=inside)[1])
    return [*rates.values(), idle, half, *memory.values()]
