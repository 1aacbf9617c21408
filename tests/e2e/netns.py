"""netns.py - a network of the tests' own, and who answers in it"""
import contextlib
import pathlib
import subprocess
import sys

ECHO = pathlib.Path(__file__).with_name("echo.py")


@contextlib.contextmanager
def network_namespace():
    """A command prefix that enters a new network namespace; None: without the right to make one."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo up; exec sleep infinity"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as keeper:
        try:
            up = keeper.stdout.readline() == b"up\n"
            yield ["nsenter", "--net", "--target", str(keeper.pid), "--"] if up else None
        finally:
            keeper.kill()


@contextlib.contextmanager
def echo(prefix, tap):
    """The host's side of a tap there, which answers the guest's frames (echo.py): its process."""
    with subprocess.Popen([*prefix, sys.executable, ECHO, tap], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"listening\n"
            yield process
        finally:
            process.kill()
