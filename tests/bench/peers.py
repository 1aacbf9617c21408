"""peers.py - the same guest under Coracle and under QEMU

A Guest is a process that has the guest's serial port on its standard input and output. All peers get
the same kernel, initrd, memory, kind of devices and files. QEMU gets what its own documentation
recommends for speed: KVM, the host's CPU model, no defaults, io_uring and an I/O thread for each disk.
"""
import os
import pathlib
import re
import shutil
import subprocess
import threading
import time

TOP = pathlib.Path(__file__).resolve().parents[2]
CORACLE = str(TOP / "build/release/coracle")
QEMU = "qemu-system-x86_64"
IMAGE = TOP / "cache/guest"
MEMORY_MIB = 512
# "quiet" would silence the initramfs too, and its first line is the first one of user space.
BOOT_LINE = "console=ttyS0 root=/dev/vda rw loglevel=3 systemd.show_status=0"
DEADLINE = 600      # seconds: to the login prompt; something hangs then
COMMAND = 240       # seconds: a command in the guest


class BenchError(Exception):
    """What went wrong, for the user"""


class Tap:
    """A NIC's other end: its name, the host's address and the guest's (RFC 2544's range)"""

    def __init__(self, number, vhost=False):
        self.name = f"bench{number}"
        self.host, self.guest = f"198.18.{number}.1", f"198.18.{number}.2"
        self.mac = f"02:00:00:00:00:{number:02x}"
        self.vhost = vhost

    def set_up(self):
        """The host's side of a tap that its VMM has made"""
        for command in (["ip", "addr", "replace", f"{self.host}/24", "dev", self.name],
                        ["ip", "link", "set", self.name, "up"]):
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                raise BenchError(f"{' '.join(command)}: {run.stderr.strip()}")


def coracle(transport, cmdline, disks, taps):
    argv = [CORACLE, "run", "--quiet", "--transport", transport, "--memory", f"{MEMORY_MIB}M",
            "--kernel", str(IMAGE / "vmlinux"), "--initrd", str(IMAGE / "initrd.img"),
            "--cmdline", cmdline]
    for disk in disks:
        argv += ["--disk", disk]
    for tap in taps:
        argv += ["--net", f"{tap.name},mac={tap.mac},vhost={'on' if tap.vhost else 'off'}"]
    return argv


def qemu(machine, cmdline, disks, taps):
    bus = "device" if machine == "microvm" else "pci"
    # What microvm leaves out beyond that, a Debian kernel misses: it has no clock then.
    options = ",x-option-roms=off" if machine == "microvm" else ""
    argv = [QEMU, "-M", machine + options, "-accel", "kvm", "-cpu", "host", "-smp", "1",
            "-m", f"{MEMORY_MIB}M", "-nodefaults", "-no-user-config", "-display", "none",
            "-serial", "stdio", "-kernel", str(IMAGE / "vmlinux"),
            "-initrd", str(IMAGE / "initrd.img"), "-append", cmdline, "-device", f"virtio-rng-{bus}"]
    for i, disk in enumerate(disks):
        # Coracle's disk of the same name may be open too, while nobody uses that: no lock.
        argv += ["-object", f"iothread,id=io{i}", "-drive",
                 f"if=none,id=disk{i},format=raw,file={disk},file.locking=off,aio=io_uring,"
                 "cache=writeback",
                 "-device", f"virtio-blk-{bus},drive=disk{i},iothread=io{i}"]
    for i, tap in enumerate(taps):
        argv += ["-netdev", f"tap,id=net{i},ifname={tap.name},script=no,downscript=no,"
                            f"vhost={'on' if tap.vhost else 'off'}",
                 "-device", f"virtio-net-{bus},netdev=net{i},mac={tap.mac}"
                            + ("" if machine == "microvm" else ",romfile=")]
    return argv


def command_line(kind, cmdline, disks, taps=()):
    """@kind: "pci" and "mmio" are Coracle, the rest machines of QEMU"""
    make = coracle if kind in ("pci", "mmio") else qemu
    return make(kind, cmdline, disks, taps)


def received(kind, said):
    """Mbit/s that arrived, from what an iperf3 client says with -f m"""
    found = re.search(r"([\d.]+) Mbits/sec +receiver", said)
    if not found:
        raise BenchError(f"{kind}: iperf3 says: {said}")
    return float(found[1])


def copy_root(path):
    run = subprocess.run(["cp", "--sparse=always", "--reflink=auto", IMAGE / "root.ext4", path],
                         check=False)
    if run.returncode:
        raise BenchError(f"{path}: the root disk could not be copied")
    return str(path)


def guest_ram(pid, mib):
    """KiB of a VMM's PSS, its guest's RAM, a mapping of @mib or more, and what is beside it"""
    mappings = []
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as f:
        for line in f:
            head = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)", line)
            if head:
                begin, end, what = int(head[1], 16), int(head[2], 16), head.groups()[2:]
                if mappings and mappings[-1]["end"] == begin and mappings[-1]["what"] == what:
                    mappings[-1]["end"] = end
                else:
                    mappings.append({"begin": begin, "end": end, "pss": 0, "what": what})
            elif line.startswith("Pss:"):
                mappings[-1]["pss"] += int(line.split()[1])
    ram = [m["pss"] for m in mappings if m["end"] - m["begin"] >= mib << 20]
    if not ram:
        raise BenchError(f"process {pid}: no mapping of {mib} MiB in its smaps")
    return max(ram), sum(m["pss"] for m in mappings) - max(ram)


def beside_guest_ram(pid, mib):
    return guest_ram(pid, mib)[1]


class Guest:
    """Starts at once; `began` is when. kill() is the only end."""

    def __init__(self, kind, argv, taps=(), pass_fds=()):
        self.kind, self.argv = kind, argv
        if not shutil.which(argv[0]):
            raise BenchError(f"{argv[0]} is not there: run tools/setup lab")
        self.data, self.times, self.ended = b"", [], False
        self.changed = threading.Condition()
        self.began = time.monotonic()
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, pass_fds=pass_fds)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.seen = 0
        for tap in taps:
            self._wait_for_tap(tap)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdin.close()
        self.process.stdout.close()

    def _read(self):
        while True:
            piece = os.read(self.process.stdout.fileno(), 65536)
            with self.changed:
                self.data += piece
                self.times.append((len(self.data), time.monotonic()))
                self.ended = not piece
                self.changed.notify_all()
            if not piece:
                return

    def _wait_for_tap(self, tap):
        while not os.path.exists(f"/sys/class/net/{tap.name}"):
            if self.process.poll() is not None or time.monotonic() - self.began > 60:
                self._give_up(f"{tap.name} does not come up")
            time.sleep(0.05)
        tap.set_up()

    def _give_up(self, why):
        said = self.data.decode(errors="replace").replace("\r", "")[-1500:]
        raise BenchError(f"{self.kind}: {why}\n{' '.join(self.argv)}\n--- it said:\n{said}")

    def wait_for(self, pattern, timeout):
        """The match, after the last one, and the seconds from the start until its end was there"""
        regex = re.compile(pattern.encode(), re.M)
        end = time.monotonic() + timeout
        with self.changed:
            while True:
                match = regex.search(self.data, self.seen)
                left = end - time.monotonic()
                if match or self.ended or left <= 0:
                    break
                self.changed.wait(left)
            if not match:
                how = "it ended" if self.ended else f"not within {timeout} s"
                self._give_up(f"waiting for {pattern!r}: {how}")
            self.seen = match.end()
            when = next(t for size, t in self.times if size >= match.end())
            return match, when - self.began

    def send(self, text):
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def prompt(self):
        """From a shell that has just started to one that says nothing but what commands say"""
        self.wait_for(r"[#$] $", DEADLINE)
        self.send("stty -echo -onlcr; PS1=; PS2=; dmesg -n 1; echo shell' 'ready\n")
        self.wait_for(r"shell ready\r?\n", COMMAND)

    def sh(self, command, timeout=COMMAND):
        """The output of a command that has to succeed"""
        begin = self.seen
        self.send(f"{{ {command}\n}} 2>&1; echo \"==$?==\"\n")
        match, _ = self.wait_for(r"==(\d+)==\r?\n", timeout)
        text = self.data[begin:match.start()].decode(errors="replace").replace("\r", "")
        if match[1] != b"0":
            self._give_up(f"`{command}` in the guest: exit status {match[1].decode()}\n{text}")
        return text

    def beside_guest_ram(self):
        """KiB of PSS that are not the guest's RAM"""
        return beside_guest_ram(self.process.pid, MEMORY_MIB)
