"""debian_pod.py - the Debian guest of guest-images/build as a pod: its node's configuration, its
disk, its console

The guest's addresses come from the pod: `ip=dhcp` on the kernel's command line is all it is told,
and systemd-networkd does the rest.
"""
import contextlib
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from coracle import Died, Reader  # pylint: disable=C0413
import debian  # pylint: disable=C0413
import node  # pylint: disable=C0413
from debian import IMAGE, Shell, root_disk  # pylint: disable=C0413
from stream import Attached  # pylint: disable=C0413

# An emulated host may be slower than systemd expects (90 s for a device to come up).
CMDLINE = ("console=ttyS0 root=/dev/vda rw quiet net.ifnames=0 ip=dhcp "
           "systemd.default_timeout_start_sec=600 systemd.wants=systemd-network-generator.service "
           "systemd.wants=systemd-networkd.service")
HOUR = 3600
__all__ = ("CMDLINE", "Console", "Died", "config", "loop_device", "root_device", "why_not")


def why_not():
    """None where such pods run, otherwise the reason to skip."""
    return debian.why_not() or node.why_not()


def config(**more):
    """Of a node whose guests are Debian: keys of its coracle.json."""
    return {"kernel": str(IMAGE / "vmlinux"), "initrd": str(IMAGE / "initrd.img"),
            "cmdline": CMDLINE, "memory": "512M", **more}


@contextlib.contextmanager
def loop_device(path):
    """A file as a block device, as a volume of mode Block is one."""
    done = subprocess.run(["losetup", "-f", "--show", path], check=True, capture_output=True,
                          text=True)
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=False)


@contextlib.contextmanager
def root_device(directory):
    """A copy of the guest's root disk, as a block device."""
    with loop_device(root_disk(directory)) as device:
        yield device


class Output(Reader):
    """What comes over an attachment. @shown(bytes) sees it first."""

    def __init__(self, attached, shown=None):
        self.shown = shown
        super().__init__(attached)

    def read(self):
        try:
            channel, piece = self.pipe.read()
            while channel not in (1, 2) or not piece:
                channel, piece = self.pipe.read()
        except (EOFError, OSError):
            return b""
        if self.shown:
            self.shown(piece)
        return piece


class Console(Shell):
    """A running pod's console, as `kubectl attach -it` has it."""

    def __init__(self, pod, shown=None):
        self.attached = Attached(pod.node.cri("Attach", container_id=pod.container, stdin=True,
                                              tty=True, stdout=True).url, HOUR)
        super().__init__(Output(self.attached, shown), self.attached.write, pod.log)

    def close(self):
        self.attached.close()
