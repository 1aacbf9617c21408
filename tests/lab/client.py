"""client.py - run one command in a node: pass on its input, output and exit status"""
import fcntl
import json
import os
import select
import signal
import struct
import sys
import termios
import time
import tty

import wire
from node import LabError, say

DEAD_SECONDS = 120      # without a sign of life, 24 of which would have been due: the node hangs
EXIT_TIMEOUT = 124
EXIT_NOT_STARTED = 127


class Command:
    def __init__(self, node, argv, env, cwd, timeout, use_tty, keep_stdin):
        self.node = node
        self.timeout = timeout
        self.tty = use_tty
        self.request = {"op": "run", "argv": argv, "env": env, "cwd": cwd, "tty": use_tty}
        self.stdin = 0 if keep_stdin else None
        self.credit = True
        self.timed_out = False
        self.interrupts = 0
        self.link = None

    def run(self):
        """Exit status, in the way of a shell: 128 + n for signal n"""
        self.link, self.request["token"] = self.node.connect(DEAD_SECONDS)
        self.link.send(wire.HELLO, self.request)
        saved = termios.tcgetattr(0) if self.tty else None
        handlers = {n: signal.signal(n, self._on_signal)
                    for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            if self.tty:
                tty.setraw(0, termios.TCSADRAIN)      # what was typed already is for the node
                signal.signal(signal.SIGWINCH, lambda *_: self._resize())
            return self._loop()
        finally:
            if saved:
                termios.tcsetattr(0, termios.TCSADRAIN, saved)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.link.sock.close()

    def _loop(self):
        started = heard = time.monotonic()
        while True:
            now = time.monotonic()
            if self.timeout and not self.timed_out and now - started >= self.timeout:
                self.timed_out = True
                say(f"node {self.node.number}: timeout of {self.timeout:g} s, ending the command")
                self.link.send(wire.KILL)
            readers = [self.link] + ([self.stdin] if self.credit and self.stdin is not None else [])
            ready = select.select(readers, [], [], 1)[0]
            if self.stdin in ready:
                self._pass_input()
            if self.link in ready:
                status = self._take()
                if status is not None:
                    return EXIT_TIMEOUT if self.timed_out else status
                heard = time.monotonic()        # passing output on may have taken long
            elif time.monotonic() - heard > DEAD_SECONDS:
                raise LabError(f"node {self.node.number} hangs: no sign of life for {DEAD_SECONDS} s "
                               f"(an emulator bug?); `lab up` starts it anew\n{self.node.post_mortem()}")

    def _take(self):
        """One frame; the exit status if it was the last"""
        try:
            frame = self.link.recv()
        except OSError:
            frame = None
        if frame is None:
            self._explain_loss()
        kind, payload = frame
        if kind == wire.STDOUT:
            self._write(1, payload)
        elif kind == wire.STDERR:
            self._write(2, payload)
        elif kind == wire.CREDIT:
            self.credit = True
        elif kind == wire.READY:
            self._resize()
            if self.stdin is None:
                self.link.send(wire.STDIN)
        elif kind == wire.LEFT:
            say(f"node {self.node.number}: ended what the command left running: "
                + ", ".join(json.loads(payload)))
        elif kind == wire.EXIT:
            return self._status(json.loads(payload))
        return None

    def _status(self, how):
        if "error" in how:
            say(f"node {self.node.number}: cannot run {self.request['argv'][0]}: {how['error']}")
            return EXIT_NOT_STARTED
        return 128 + how["signal"] if "signal" in how else how["code"]

    def _explain_loss(self):
        for _ in range(50):                 # QEMU may still be writing its last words
            if not self.node.alive():
                raise LabError("the node went away while the command ran\n" + self.node.post_mortem())
            time.sleep(0.1)
        raise LabError(f"node {self.node.number}: its agent closed the connection; see "
                       "`journalctl -u lab-agent` in the node")

    def _pass_input(self):
        data = os.read(0, wire.CHUNK)
        self.link.send(wire.STDIN, data)
        self.credit = False
        if not data:
            self.stdin = None

    @staticmethod
    def _write(fd, data):
        while data:
            data = data[os.write(fd, data):]

    def _resize(self):
        if self.tty:
            packed = fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8)
            self.link.send(wire.RESIZE, list(struct.unpack("HHHH", packed)[:2]))

    def _on_signal(self, number, _frame):
        """Passed on; a second one ends everything the command started"""
        self.interrupts += 1
        try:
            if self.interrupts > 1:
                self.link.send(wire.KILL)
            else:
                self.link.send(wire.SIGNAL, int(number))
        except OSError:
            sys.exit(128 + number)
