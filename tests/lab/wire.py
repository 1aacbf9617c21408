"""wire.py - how the runner and the agent in a node talk

One TCP connection per command, made by the runner and ended by either side. Frames are a type byte,
a length and a payload. The first one from the runner carries the node's token: the port is open on
the loopback of a host that may have other users, and the node can write to the checkout as root.

Both ends use this file, the agent from the shared checkout, so they cannot differ in version.
"""
import json
import struct

# Runner to agent
HELLO = b"H"    # JSON: token, op ("ping" or "run"), and for run: argv cwd env tty
STDIN = b"I"    # at most CHUNK bytes, the next one after CREDIT; empty: end of file
SIGNAL = b"S"   # JSON: number, sent to the command's process group
KILL = b"K"     # end the command and all it started
RESIZE = b"W"   # JSON: [rows, columns]
# Agent to runner
READY = b"A"    # JSON: answer to HELLO
STDOUT = b"O"
STDERR = b"E"
CREDIT = b"C"   # the last STDIN was taken
BEAT = b"B"     # sign of life, every BEAT_SECONDS
LEFT = b"L"     # JSON: names of processes the command left behind, now killed
EXIT = b"X"     # JSON: code, or signal, or error (could not be started)

CHUNK = 64 * 1024
BEAT_SECONDS = 5
AGENT_PORT = 7007
_HEAD = struct.Struct(">cI")


class Wire:
    def __init__(self, sock):
        self.sock = sock

    def fileno(self):
        return self.sock.fileno()

    def send(self, kind, payload=b""):
        if not isinstance(payload, (bytes, bytearray)):
            payload = json.dumps(payload).encode()
        self.sock.sendall(_HEAD.pack(kind, len(payload)) + payload)

    def recv(self):
        """Next (type, payload); None when the other side has gone"""
        head = self._exactly(_HEAD.size)
        if head is None:
            return None
        kind, length = _HEAD.unpack(head)
        if length > 1 << 20:
            raise ConnectionError("garbage where a frame should be")
        payload = self._exactly(length)
        return None if payload is None else (kind, payload)

    def _exactly(self, count):
        data = bytearray()
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                return None
            data += part
        return bytes(data)
