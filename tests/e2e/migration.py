"""migration.py - between the source and the target of a migration: see, hold and cut its messages

A Proxy knows where messages end, and asks for each what to do with it. Its address is what the source
is told to migrate to. Nothing is timed: a held message waits until it is released.
"""
import collections
import os
import socket
import struct
import threading

from coracle import TIMEOUT, Coracle

HEAD = 24
TYPES = {1: "header", 2: "machine", 3: "cpu", 16: "ram-zero", 17: "ram-data", 18: "round-end",
         32: "clock", 33: "chips", 34: "device", 35: "vcpu", 36: "end", 48: "hello", 49: "reply",
         50: "commit"}
REPLIES = {1: "accept", 2: "round", 3: "ready", 4: "running", 5: "failed"}

Message = collections.namedtuple("Message", "kind connection data name")


def kind_of(head, payload):
    kind = TYPES.get(struct.unpack_from("<IH", head)[1], "unknown")
    if kind == "reply":
        return REPLIES.get(struct.unpack_from("<I", payload)[0], "unknown")
    if kind == "round-end" and struct.unpack_from("<II", payload)[1]:
        return "last-round-end"
    return kind


class Proxy:
    """@decide(message) says, on a thread of its connection's direction: "pass", "cut" (instead of the
    message, both ways, all connections), "half" (of it, then cut). It may wait.
    """

    def __init__(self, directory, target, decide=lambda message: "pass"):
        self.path = os.path.join(directory, "proxy")
        self.address = "unix:" + self.path
        self.target, self.decide = target, decide
        self.lock, self.changed = threading.Lock(), threading.Condition()
        self.seen, self.sockets, self.connections = [], [], 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        self.cut()
        os.unlink(self.path)

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = connect(self.target)
            with self.lock:
                number = self.connections
                self.connections += 1
                self.sockets += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self.pump, args=(a, b, number), daemon=True).start()

    def cut(self):
        with self.lock:
            for s in self.sockets:
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def pump(self, near, far, number):
        try:
            while True:
                head = exactly(near, HEAD)
                name_len, _, length = struct.unpack_from("<IIQ", head, 8)
                body = exactly(near, name_len + length)
                kind = kind_of(head, body[name_len:])
                what = self.decide(Message(kind, number, body[name_len:], body[:name_len]))
                if what != "pass":
                    if what == "half":
                        far.sendall((head + body)[:(len(head) + len(body)) // 2])
                    self.cut()
                    return
                with self.changed:
                    self.seen.append(kind)
                    self.changed.notify_all()
                far.sendall(head + body)
        except (EOFError, OSError):
            for s in (near, far):
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


class Hold:
    """For Proxy(decide=...): holds the first message of a kind; the test waits for it and lets it go."""

    def __init__(self, kind):
        self.kind, self.what = kind, "pass"
        self.arrived, self.released = threading.Event(), threading.Event()

    def __call__(self, message):
        if message.kind != self.kind or self.arrived.is_set():
            return "pass"
        self.arrived.set()
        assert self.released.wait(TIMEOUT)
        return self.what

    def wait(self):
        assert self.arrived.wait(TIMEOUT), f"no message {self.kind}"

    def release(self, what="pass"):
        self.what = what
        self.released.set()


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ CRC[(crc ^ byte) & 0xff]
    return crc ^ 0xffffffff


def crc_of_byte(byte):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82f63b78 if byte & 1 else 0)
    return byte


CRC = [crc_of_byte(byte) for byte in range(256)]


def exactly(s, n):
    out = bytearray()
    while len(out) < n:
        piece = s.recv(min(n - len(out), 1 << 20))
        if not piece:
            raise EOFError
        out += piece
    return bytes(out)


def connect(address):
    kind, _, rest = address.partition(":")
    if kind == "unix":
        s = socket.socket(socket.AF_UNIX)
        s.connect(rest)
        return s
    host, _, port = rest.rpartition(":")
    return socket.create_connection((host, int(port)))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Target(Coracle):
    """A machine that waits for its source at .address."""

    def __init__(self, directory, *args, tcp=False, **popen):
        Target.count = getattr(Target, "count", 0) + 1
        self.address = f"tcp:127.0.0.1:{free_port()}" if tcp else \
            f"unix:{directory}/in{Target.count}"
        super().__init__("--incoming", self.address, *args, **popen)
        found = self.err.wait_for(lambda data: True if b"waiting for a machine" in data else None,
                                  TIMEOUT)
        assert found, self.story()


def guest_memory(machine, size):
    """All RAM of a machine whose RAM is one piece of @size bytes, by way of the host."""
    with open(f"/proc/{machine.pid}/maps", encoding="ascii") as f:
        for line in f:
            first, last = (int(x, 16) for x in line.split()[0].split("-"))
            if last - first == size:
                with open(f"/proc/{machine.pid}/mem", "rb") as m:
                    m.seek(first)
                    return m.read(size)
    raise AssertionError("no such mapping")
