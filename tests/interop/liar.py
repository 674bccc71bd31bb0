#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""An IRQ device that lies to its driver whenever it is told to.

Usage: liar.py SOCKET

The device of device.py, for one front end after another, with the functions 3 and 4, which are QEMU's edu at 00:09.0 and
00:0a.0 of the guest. It reads lines from its standard input and answers each with one line on standard error:

    lies            the names of all lies
    lie NAME        tells that lie from now on; "told N", how many it told of the one before
    happen ...      something happens on the host, in the words of device.py; "done"

The truth is the lie "none". What NAME can be is in the tables below. What is random is the same each time.
"""

import os
import random
import struct
import sys

from device import Session, listen, serve
from irq import ALLOCATE, EVENT_CHANGED, EVENT_GONE, EVENT_INTERRUPT, EVENT_REVOKED, LIST_FUNCTIONS, SPACE, Device, Function

# A driver that gives every event buffer back at once would be busy with the events of one lie for ever.
MOST_EVENTS = 2000

# Of QEMU's edu: vendor, device, those of the subsystem, class and revision.
EDU = (0x1234, 0x11E8, 0x1AF4, 0x1100, 0x00FF0010)

dice = random.Random(1)


def flip(reply):
    """With one bit the other way."""
    changed = bytearray(reply)
    changed[dice.randrange(len(reply))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def each_source(change):
    """A reply to ALLOCATE whose sources and their vectors are what `change` makes of their numbers, and those of others."""

    def changed(kind, reply, room):
        if kind != ALLOCATE or len(reply) < 16:
            return reply
        heads = (struct.unpack_from("<IH", reply, at) for at in range(16, len(reply), 24))
        lies = (change(number, *head) for number, head in enumerate(heads))
        return reply[:16] + b"".join(
            struct.pack("<IH", *lie) + reply[at + 6 : at + 24] for at, lie in zip(range(16, len(reply), 24), lies)
        )

    return changed


def endless(kind, reply, room):
    """A function after the other, and always more of them."""
    if kind != LIST_FUNCTIONS or len(reply) < 16:
        return reply
    number = dice.randrange(0x10000)
    return reply[:8] + struct.pack("<HH4x", 1, 0xFFFF) + struct.pack("<H30x", number)


# What becomes of a reply, from the request's kind, the true reply and the room for it.
REPLIES = {
    "noise": lambda kind, reply, room: dice.randbytes(dice.randrange(1, room + 1)),
    "flipped-bit": lambda kind, reply, room: flip(reply),
    "cut": lambda kind, reply, room: reply[: dice.randrange(len(reply))],
    "status": lambda kind, reply, room: struct.pack("<H6x", dice.choice((6, 7, 10, 11, 14, 77, 0xFFFF))),
    "refusal-with-a-body": lambda kind, reply, room: b"\x0a" + reply[1:],
    "count": lambda kind, reply, room: reply[:8] + dice.choice((b"\0\0", b"\xff\xff", b"\x21\0")) + reply[10:],
    "more-than-asked": lambda kind, reply, room: (reply + reply[16:] * 64)[:room],
    "one-id-for-all": each_source(lambda number, source, vector: (5, vector)),
    "ids-out-of-range": each_source(lambda number, source, vector: (source + 64 * number + 63, vector)),
    "ids-of-others": each_source(lambda number, source, vector: (number, vector)),
    "other-vectors": each_source(lambda number, source, vector: (source, vector ^ 0x8001)),
    "one-vector-for-all": each_source(lambda number, source, vector: (source, 0)),
    "endless-list": endless,
}

# The used length of a reply, from the true one.
LENGTHS = {
    "nothing-used": lambda length: 0,
    "all-bits-used": lambda length: 0xFFFF_FFFF,
    "one-more-used": lambda length: length + 1,
    "head-alone-used": lambda length: 8,
    "half-used": lambda length: length // 2,
}

# Records of events. The driver's sources have the first of 64 ids.
RECORDS = {
    "event-noise": lambda: dice.randbytes(16),
    "near-noise": lambda: bytes(dice.randrange(5) for _ in range(16)),
    "any-interrupt": lambda: struct.pack("<HHI8x", EVENT_INTERRUPT, 3, dice.randrange(80)),
    "interrupts-of-another-function": lambda: struct.pack("<HHI8x", EVENT_INTERRUPT, 4, dice.randrange(64)),
    "any-revocation": lambda: struct.pack("<HHI8x", EVENT_REVOKED, 3, dice.randrange(80)),
    "any-change": lambda: struct.pack(
        "<HHIHHB3x", EVENT_CHANGED, dice.randrange(6), 0, dice.randrange(0x10000), dice.randrange(0x10000), dice.randrange(4)
    ),
    "everything-gone": lambda: struct.pack("<HH12x", EVENT_GONE, dice.randrange(6)),
    "revoked-and-fired": lambda: struct.pack(
        "<HHI8x", dice.choice((EVENT_REVOKED, EVENT_INTERRUPT)), 3, dice.randrange(12)
    ),
    "odd-event-lengths": lambda: struct.pack("<HHI8x", EVENT_INTERRUPT, 3, 0),
}


def space(magic=0x51524956, version=1, sources=64, vectors=64):
    return struct.pack("<IHHIHH", magic, version, 0, sources, vectors, 0)


# Configuration spaces, for a driver that binds meanwhile.
SPACES = {
    "other-magic": space(magic=0x21524956),
    "no-version": space(version=0),
    "later-version": space(version=0xFFFF),
    "no-sources": space(sources=0),
    "all-sources": space(sources=0xFFFF_FFFF),
    "no-vectors": space(vectors=0),
    "all-vectors": space(vectors=0xFFFF),
    "all-bits": b"\xff" * len(SPACE),
    "no-bits": b"\0" * len(SPACE),
}

# How a chain of the request queue is given back: entries of the used ring, and how far its index is moved on besides.
RINGS = {
    "twice": lambda size, head, length: ([(head, length), (head, length)], 0),
    "no-such-chain": lambda size, head, length: ([(0xFFFF_FF00, length)], 0),
    "just-beyond": lambda size, head, length: ([(size, length)], 0),
    "another-chain": lambda size, head, length: ([((head + size // 2) % size, length)], 0),
    "index-ahead": lambda size, head, length: ([(head, length)], 1000),
    "index-behind": lambda size, head, length: ([(head, length)], -2),
    "empty-notifications": lambda size, head, length: ([(head, length)], 0),
}

# Those of the event queue.
EVENT_RINGS = {"event-buffer-" + name: lie for name, lie in RINGS.items() if name != "empty-notifications"}

SILENCE = "silence"

LIES = [*REPLIES, *LENGTHS, *RECORDS, *SPACES, *RINGS, *EVENT_RINGS, SILENCE]


class Liar(Device):
    def __init__(self, functions):
        super().__init__(functions)
        self.lie, self.lies = "none", 0

    def begin(self, name):
        """Begins with another lie, and returns how many of the last one were told."""
        if name not in ("none", *LIES):
            raise ValueError(name)
        told, self.lie, self.lies = self.lies, name, 0
        return told

    def lies_by(self, table):
        """Counts a lie if it is one of the table."""
        found = self.lie in table
        self.lies += found
        return found

    def space(self):
        return SPACES[self.lie] if self.lies_by(SPACES) else super().space()

    def answer(self, request, length, room):
        reply = super().answer(request, length, room)
        if self.lies_by(REPLIES):
            (kind,) = struct.unpack("<H", request[:2])
            reply = REPLIES[self.lie](kind, reply, room)[:room]
        return reply

    def has_news(self):
        lies = self.lie in RECORDS or self.lie in EVENT_RINGS
        return super().has_news() or (lies and self.lies < MOST_EVENTS)

    def next_events(self, most):
        if not self.lies_by(RECORDS):
            return super().next_events(most) or bytes(16)
        return b"".join(RECORDS[self.lie]() for _ in range(most))


class LiarSession(Session):
    def serve(self, readable, writable):
        length = super().serve(readable, writable)
        return LENGTHS[self.device.lie](length) if self.device.lies_by(LENGTHS) else length

    def report(self, readable, writable):
        length = super().report(readable, writable)
        return dice.randrange(1 << 32) if self.device.lie == "odd-event-lengths" else length

    def work_one(self, ring, serve):
        # The chain stays where it is until the silence ends.
        if self.device.lie == SILENCE and ring is self.rings[0]:
            self.device.lies += 1
            return False
        return super().work_one(ring, serve)

    def complete(self, ring, head, length):
        table = RINGS if ring is self.rings[0] else EVENT_RINGS
        if not self.device.lies_by(table):
            return super().complete(ring, head, length)
        entries, moved = table[self.device.lie](ring.size, head, length)
        for entry in entries:
            super().complete(ring, *entry)
        if moved:
            ring.used = (ring.used + moved) % 0x10000
            self.write(ring.parts[2] + 2, struct.pack("<H", ring.used))
        calls = [other.call for other in self.rings if other.call is not None]
        for call in calls * 20 * (self.device.lie == "empty-notifications"):
            os.eventfd_write(call, 1)


class Commands:
    """What is said on standard input."""

    def __init__(self, device):
        self.device, self.rest = device, b""

    def obey(self):
        """False when there will be no more."""
        read = os.read(0, 4096)
        *lines, self.rest = (self.rest + read).split(b"\n")
        for line in lines:
            what, *words = line.decode().split()
            print(self.answer(what, words), file=sys.stderr, flush=True)
        return bool(read)

    def answer(self, what, words):
        if what == "lies":
            return " ".join(LIES)
        if what == "lie":
            return f"told {self.device.begin(*words)}"
        self.device.happen(*words)
        return "done"


def main():
    device = Liar([Function(number, (1, 32, 0), 0x30 + 8 * number, EDU) for number in (3, 4)])
    front_ends, commands = listen(sys.argv[1]), Commands(device)
    print("listening", file=sys.stderr, flush=True)
    serve(front_ends, lambda peer: LiarSession(peer, device), 0, commands.obey)


if __name__ == "__main__":
    main()
