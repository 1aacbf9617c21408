"""ttrpc.py - just enough of ttrpc to be a client of the shim that misbehaves

Messages are encoded by hand: what is sent here need not be what any library would send.
"""
import socket
import struct


def field(number, value):
    """A protobuf field: text, bytes, or a number."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(n):
    out = b""
    while n > 0x7f:
        out += bytes([n & 0x7f | 0x80])
        n >>= 7
    return out + bytes([n])


def request(method, payload=b"", service="containerd.task.v2.Task"):
    return field(1, service) + field(2, method) + field(3, payload)


def frame(stream, data, kind=1):
    return struct.pack(">IIBB", len(data), stream, kind, 0) + data


class Client:
    def __init__(self, path, timeout):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(path)

    def send(self, data):
        self.socket.sendall(data)

    def _take(self, n):
        data = b""
        while len(data) < n:
            piece = self.socket.recv(n - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def answer(self):
        """(stream, the Response as bytes)"""
        size, stream, kind, _ = struct.unpack(">IIBB", self._take(10))
        assert kind == 2
        return stream, self._take(size)

    def call(self, method, payload=b"", stream=1):
        self.send(frame(stream, request(method, payload)))
        got, data = self.answer()
        assert got == stream
        return data

    def close(self):
        self.socket.close()
