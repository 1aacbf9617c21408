"""supervise.py - keeps the processes of one node: virtiofsd and QEMU

`lab up` starts this and goes; this stays until QEMU ends and then writes down how it ended. Whether a
node runs is told by the lock on its "alive" file, which this process and QEMU hold: a lock, unlike
a process id in a file, goes away with its owner however that ends. If this process is killed, the
kernel ends the two others.
"""
import ctypes
import json
import os
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(argv, log, **kwargs):
    with open(log, "ab") as out:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                preexec_fn=die_with_parent, **kwargs)


def wait_for_socket(path, process):
    """virtiofsd makes its socket and then listens; QEMU must not come before that"""
    for _ in range(200):
        if os.path.exists(path):
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.05)
    return False


def how_it_ended(code):
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return "stopped: the node's kernel powered off, rebooted or panicked" if code == 0 \
        else f"failed with exit status {code}"


def main():
    with open(sys.argv[1]) as f:
        plan = json.load(f)
    alive = int(sys.argv[2])
    fs = spawn(plan["virtiofsd"], plan["virtiofsd_log"])
    if not wait_for_socket(plan["fs_socket"], fs):
        verdict = f"virtiofsd did not start; see {plan['virtiofsd_log']}"
    else:
        qemu = spawn(plan["qemu"], plan["qemu_log"], pass_fds=(alive,),
                     env=dict(os.environ, TMPDIR=plan["tmpdir"]))
        asked = []

        def stop(*_):
            asked.append(1)
            qemu.terminate()

        signal.signal(signal.SIGTERM, stop)
        code = qemu.wait()
        verdict = "was shut down" if asked else "QEMU " + how_it_ended(code)
    with open(plan["ended"], "w") as f:
        f.write(verdict + "\n")
    fs.kill()
    fs.wait()


main()
