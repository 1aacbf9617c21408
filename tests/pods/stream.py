"""stream.py - attach to a container as kubectl does: a WebSocket with one byte of channel a message"""
import base64
import contextlib
import os
import socket
import struct
import urllib.parse


class Attached:
    def __init__(self, url, timeout):
        u = urllib.parse.urlparse(url)
        self.socket = socket.create_connection((u.hostname, u.port), timeout)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {u.path} HTTP/1.1\r\nHost: {u.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n".encode())
        self.buffer = self.ahead = b""
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        assert b" 101 " in head.split(b"\r\n")[0], head

    def _more(self):
        piece = self.socket.recv(65536)
        if not piece:
            raise EOFError
        self.buffer += piece

    def _take(self, n):
        while len(self.buffer) < n:
            self._more()
        piece, self.buffer = self.buffer[:n], self.buffer[n:]
        return piece

    def read(self):
        """(channel, bytes) of the next message; 1 is standard output, 3 an error."""
        first, second = self._take(2)
        size = second & 0x7f
        if size == 126:
            size, = struct.unpack(">H", self._take(2))
        elif size == 127:
            size, = struct.unpack(">Q", self._take(8))
        payload = self._take(size)
        if first & 0xf == 8:
            raise EOFError
        return (payload[0], payload[1:]) if payload else (1, b"")

    def read_until(self, text):
        """All up to the text and with it; what came after it is for the next call."""
        seen = self.ahead
        while text not in seen:
            channel, piece = self.read()
            assert channel != 3, piece
            seen += piece
        end = seen.index(text) + len(text)
        self.ahead = seen[end:]
        return seen[:end]

    def write(self, data, channel=0):
        payload = bytes([channel]) + data
        mask = os.urandom(4)
        body = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        size = (bytes([0x80 | len(body)]) if len(body) < 126
                else b"\xfe" + struct.pack(">H", len(body)))
        self.socket.sendall(b"\x82" + size + mask + body)

    def close(self):
        with contextlib.suppress(OSError):  # the other end may have gone
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
