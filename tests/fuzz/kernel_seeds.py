#!/usr/bin/python3
"""kernel_seeds - write the seed kernels of fuzz_kernel: the smallest of each format that loads

usage: tests/fuzz/kernel_seeds.py [DIRECTORY]
"""
import pathlib
import struct
import sys

CODE = b"\xf4\xeb\xfd"  # hlt; jmp to it
PVH = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", 0x100000)


def bzimage():
    """Documentation/arch/x86/boot.rst: one sector of setup, header 2.15, 64-bit entry."""
    image = bytearray(1024) + bytearray(0x200) + CODE + bytearray(13)
    header = {0x1f1: "B1", 0x1f4: f"<I{(len(image) - 1024) // 16}", 0x206: f"<H{0x20f}",
              0x211: "B1", 0x230: f"<I{0x200000}", 0x234: "B1", 0x236: "<H1",
              0x238: "<I2047", 0x258: f"<Q{0x1000000}", 0x260: f"<I{0x200000}"}
    for at, value in header.items():
        kind = value.rstrip("0123456789")
        struct.pack_into(kind, image, at, int(value[len(kind):]))
    image[0x1fe:0x206] = b"\x55\xaa\xeb\x6cHdrS"
    return bytes(image)


def elf(bits, notes=b"", payload=CODE):
    """One loaded segment at 1 MiB and, if given, one of notes."""
    phnum = 1 + bool(notes)
    head, entry = (64, 56) if bits == 64 else (52, 32)
    body = head + phnum * entry
    machine = 62 if bits == 64 else 3
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    word = "Q" if bits == 64 else "I"
    out = struct.pack(f"<16sHHI{word}{word}{word}IHHHHHH", ident, 2, machine, 1, 0x100000, head, 0,
                      0, head, entry, phnum, 0, 0, 0)
    for kind, at, size, memory in ((1, body, len(payload), 0x2000),
                                   (4, body + len(payload), len(notes), len(notes)))[:phnum]:
        if bits == 64:
            out += struct.pack("<IIQQQQQQ", kind, 7, at, 0x100000, 0x100000, size, memory, 4)
        else:
            out += struct.pack("<IIIIIIII", kind, at, 0x100000, 0x100000, size, memory, 7, 4)
    return out + payload + notes


def multiboot(flags):
    head = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xffffffff)
    if flags & 1 << 16:
        head += struct.pack("<5I", 0x100000, 0x100000, 0, 0x110000, 0x100020)
    return head + CODE


SEEDS = {
    "bzimage": (bytes([0, 31, 0, 1]), bzimage()),
    "bzimage-initrd": (bytes([0, 31, 3, 0]), bzimage()),
    "pvh": (bytes([0, 7, 2, 1]), elf(64, PVH)),
    "pvh-32": (bytes([0, 7, 0, 0]), elf(32, PVH)),
    "elf-without-note": (bytes([0, 7, 0, 0]), elf(64)),
    "multiboot-elf": (bytes([0, 7, 2, 1]), elf(32, payload=multiboot(0))),
    "multiboot-address": (bytes([0, 7, 2, 1]), multiboot(1 << 16 | 3)),
    "flat16": (bytes([0xf1, 7, 0, 0]), CODE),
    "flat32": (bytes([0xf6, 7, 1, 1]), CODE),
    "flat64": (bytes([0xf7, 7, 0, 0]), CODE),
    "gzip": (bytes([0, 7, 0, 0]), b"\x1f\x8b\x08" + bytes(20)),
    "small-memory": (bytes([0, 0, 200, 200]), elf(64, PVH)),
}


def main():
    here = pathlib.Path(__file__).resolve().parent
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "corpus/kernel"
    out.mkdir(parents=True, exist_ok=True)
    for name, (how, image) in SEEDS.items():
        (out / name).write_bytes(how + image)


if __name__ == "__main__":
    main()
