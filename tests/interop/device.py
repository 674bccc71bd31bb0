#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""An IRQ device, written from spec/ alone: Python's standard library, and no code of this project.

Usage: device.py SOCKET

Listens at SOCKET for vhost-user front ends, one after another. Its functions are simulated, with all vectors enabled. What happens to them
is said at the socket SOCKET.host, a line for each connection: "raise FUNCTION VECTOR", "move FUNCTION", "take FUNCTION",
"fail FUNCTION" or "remove FUNCTION", as `virtio-irq-conform --help` describes them.
"""

import mmap
import os
import select
import socket
import struct
import sys

from irq import EVENT, NATIVE, Device, Function

# Feature bits, protocol features, flags of descriptors
INDIRECT_DESC, PROTOCOL_FEATURES, VERSION_1 = 1 << 28, 1 << 30, 1 << 32
OFFERED = NATIVE | EVENT | INDIRECT_DESC | PROTOCOL_FEATURES | VERSION_1
MQ, REPLY_ACK, CONFIG = 1 << 0, 1 << 3, 1 << 9
NEXT, WRITE, INDIRECT = 1, 2, 4


class Refused(Exception):
    """A message of the front end that cannot be carried out."""


class Invalid(Exception):
    """A chain, or a ring, that no driver may make."""


class Ring:
    """One virtqueue, as the front end set it up."""

    def __init__(self):
        self.size = self.next = self.used = 0
        self.parts = self.kick = self.call = None
        self.enabled = False

    def runs(self):
        return self.enabled and self.kick is not None and self.parts is not None

    def stop(self):
        for eventfd in (self.kick, self.call):
            if eventfd is not None:
                os.close(eventfd)
        self.kick = self.call = self.parts = None


class Session:
    """One front end's time with the device."""

    def __init__(self, peer, device):
        self.peer, self.device = peer, device
        self.rings = [Ring(), Ring()]
        self.regions = []
        self.acknowledges = False

    def waits_for(self):
        return [self.peer, *(ring.kick for ring in self.rings if ring.runs())]

    def go_on(self, ready):
        """Does what there is to do; False when the front end has left."""
        for ring in self.rings:
            if ring.runs() and ring.kick in ready:
                os.eventfd_read(ring.kick)
        if self.peer in ready and not self.message():
            return False
        requests, events = self.rings
        if requests.runs():
            if self.device.stopped:
                self.device.stopped = False
                if requests.next == 0 and (events.parts is None or events.next == 0):
                    self.device.reset()
            self.work(requests, self.serve)
        if events.runs() and not self.device.stopped:
            self.work(events, self.report)
        return True

    def leave(self):
        for ring in self.rings:
            ring.stop()
        self.peer.close()
        self.device.reset()

    # Messages

    def message(self):
        """Handles one message; False at the end of the connection."""
        header, descriptors, _, _ = socket.recv_fds(self.peer, 12, 8)
        if len(header) < 12:
            return False
        number, flags, size = struct.unpack("=III", header)
        payload = self.peer.recv(size, socket.MSG_WAITALL) if size else b""
        if len(payload) < size:
            return False
        try:
            reply = self.handle(number, payload, descriptors)
        except (Refused, struct.error):
            self.acknowledge(number, flags, 1)
            return False
        if reply is None:
            self.acknowledge(number, flags, 0)
        else:
            self.reply(number, reply)
        return True

    def acknowledge(self, number, flags, value):
        if self.acknowledges and flags & 8:
            self.reply(number, struct.pack("=Q", value))

    def reply(self, number, payload):
        self.peer.sendall(struct.pack("=III", number, 5, len(payload)) + payload)

    def handle(self, number, payload, descriptors):
        """Returns the payload of the reply, if the message has one."""
        known = {
            1: lambda: struct.pack("=Q", OFFERED),
            2: lambda: self.set_features(*struct.unpack("=Q", payload)),
            3: lambda: None,
            5: lambda: self.set_memory(payload, descriptors),
            8: lambda: self.set_number("size", *struct.unpack("=II", payload)),
            9: lambda: self.set_address(*struct.unpack("=IIQQQQ", payload)),
            10: lambda: self.set_number("next", *struct.unpack("=II", payload)),
            11: lambda: self.get_base(*struct.unpack("=II", payload)),
            12: lambda: self.set_eventfd("kick", payload, descriptors),
            13: lambda: self.set_eventfd("call", payload, descriptors),
            14: lambda: self.leave_alone(descriptors),
            15: lambda: struct.pack("=Q", MQ | REPLY_ACK | CONFIG),
            16: lambda: self.set_protocol_features(*struct.unpack("=Q", payload)),
            17: lambda: struct.pack("=Q", len(self.rings)),
            18: lambda: self.set_number("enabled", *struct.unpack("=II", payload)),
            24: lambda: self.get_config(payload),
            25: lambda: None,
        }
        if number not in known:
            raise Refused(number)
        return known[number]()

    def ring(self, index):
        if index >= len(self.rings):
            raise Refused(index)
        return self.rings[index]

    def set_features(self, features):
        if features & ~OFFERED:
            raise Refused(features)
        self.device.features = features

    def set_protocol_features(self, features):
        self.acknowledges = bool(features & REPLY_ACK)

    def get_config(self, payload):
        offset, size, _ = struct.unpack("=III", payload[:12])
        return payload[:12] + self.device.space().ljust(offset + size, b"\0")[offset : offset + size]

    def set_memory(self, payload, descriptors):
        self.regions = []
        for number, descriptor in enumerate(descriptors):
            guest, size, user, offset = struct.unpack_from("=QQQQ", payload, 8 + 32 * number)
            if os.fstat(descriptor).st_size < offset + size:
                raise Refused("the file is shorter than the region")
            self.regions.append((guest, size, user, offset, mmap.mmap(descriptor, offset + size)))
            os.close(descriptor)

    def set_number(self, field, index, value):
        setattr(self.ring(index), field, value)

    def set_eventfd(self, field, payload, descriptors):
        (index,) = struct.unpack("=Q", payload)
        setattr(self.ring(index & 0xFF), field, descriptors[0] if descriptors else None)

    def leave_alone(self, descriptors):
        """Errors are not reported."""
        for descriptor in descriptors:
            os.close(descriptor)

    def set_address(self, index, _flags, table, used, available, _log):
        ring = self.ring(index)
        try:
            ring.parts = [self.guest_address(part) for part in (table, available, used)]
            (ring.used,) = struct.unpack("<H", self.read(ring.parts[2] + 2, 2))
        except Invalid:
            ring.parts = None

    def get_base(self, index, _value):
        ring = self.ring(index)
        ring.stop()
        if index == 0:
            self.device.stopped = True
            self.device.revoke(self.device.sources.values())
        return struct.pack("=II", index, ring.next)

    # Memory

    def guest_address(self, user_address):
        for guest, size, user, _, _ in self.regions:
            if user <= user_address < user + size:
                return guest + user_address - user
        raise Invalid("an address of the front end in no region")

    def place(self, address, length):
        for guest, size, _, offset, mapping in self.regions:
            if guest <= address and address + length <= guest + size:
                start = address - guest + offset
                return mapping, slice(start, start + length)
        raise Invalid("a guest address in no region")

    def read(self, address, length):
        mapping, part = self.place(address, length)
        return mapping[part]

    def write(self, address, data):
        mapping, part = self.place(address, len(data))
        mapping[part] = data

    # Rings

    def work(self, ring, serve):
        """Returns chains as long as there are some. A ring that breaks the rules is left alone until it is set up again."""
        try:
            while self.work_one(ring, serve):
                pass
        except Invalid:
            ring.parts = None

    def work_one(self, ring, serve):
        available = ring.parts[1]
        (index,) = struct.unpack("<H", self.read(available + 2, 2))
        ahead = (index - ring.next) % 0x10000
        if ahead == 0 or (serve == self.report and not self.device.has_news()):
            return False
        (head,) = struct.unpack("<H", self.read(available + 4 + 2 * (ring.next % ring.size), 2))
        if ahead > ring.size or head >= ring.size:
            raise Invalid("an available ring that is ahead of itself")
        ring.next = (ring.next + 1) % 0x10000
        try:
            length = serve(*self.chain(ring, head))
        except Invalid:
            length = 0
        self.complete(ring, head, length)
        return True

    def complete(self, ring, head, length):
        """Gives a chain back."""
        used = ring.parts[2]
        self.write(used + 4 + 8 * (ring.used % ring.size), struct.pack("<II", head, length))
        ring.used = (ring.used + 1) % 0x10000
        self.write(used + 2, struct.pack("<H", ring.used))
        if ring.call is not None:
            os.eventfd_write(ring.call, 1)

    def serve(self, readable, writable):
        """Answers a request, and returns the used length."""
        room = sum(length for _, length in writable)
        if room < 8:
            return 0
        request = b""
        for address, length in readable:
            # One byte more than the longest request tells that there is one.
            request += self.read(address, min(length, 25 - len(request)))
        return self.scatter(writable, self.device.answer(request, sum(length for _, length in readable), room))

    def report(self, readable, writable):
        """Fills an event buffer, and returns the used length."""
        room = sum(length for _, length in writable)
        if any(length for _, length in readable) or room < 16:
            return 0
        return self.scatter(writable, self.device.next_events(room // 16))

    def scatter(self, pieces, data):
        rest = data
        for address, length in pieces:
            self.write(address, rest[:length])
            rest = rest[length:]
        return len(data)

    def chain(self, ring, head):
        """The readable and the writable pieces of a chain."""
        pieces = ([], [])
        table, index, size, indirect = ring.parts[0], head, ring.size, False
        for _ in range(ring.size):
            address, length, flags, following = self.descriptor(table, index, size)
            if flags & INDIRECT and not indirect:
                self.place(address, length)
                if length == 0 or length % 16:
                    raise Invalid("an indirect table that is none")
                table, size, indirect = address, length // 16, True
                address, length, flags, following = self.descriptor(table, 0, size)
            if flags & INDIRECT or (pieces[1] and not flags & WRITE):
                raise Invalid("a table in a table, or a readable piece behind a writable one")
            if length:
                self.place(address, length)
            pieces[1 if flags & WRITE else 0].append((address, length))
            if not flags & NEXT:
                return pieces
            index = following
        raise Invalid("more descriptors than the ring has")

    def descriptor(self, table, index, size):
        if index >= size:
            raise Invalid("a descriptor that is not there")
        return struct.unpack("<QIHH", self.read(table + 16 * index, 16))


def listen(path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    return listener


def obey(host, device):
    """Lets happen what one connection to the host's socket says. There will be more."""
    peer, _ = host.accept()
    with peer, peer.makefile("rw") as line:
        device.happen(*line.readline().split())
        line.write("done\n")
    return True


def serve(front_ends, begin, operator, act):
    """Serves front ends, one after another, each with the session that `begin` makes of it; `act` is called whenever `operator` is
    readable, and says whether to go on."""
    session = None
    while True:
        ready, _, _ = select.select([operator, *(session.waits_for() if session else [front_ends])], [], [])
        if operator in ready and not act():
            return
        if session is None:
            if front_ends in ready:
                session = begin(front_ends.accept()[0])
        else:
            try:
                stays = session.go_on(ready)
            except ConnectionError:
                stays = False
            if not stays:
                session.leave()
                session = None


def main():
    msi = [Function(number, (1, 32, 0), 0x30 + 8 * number) for number in (3, 4, 5, 6)]
    msix = [Function(number, (1, 1, 10)) for number in (9, 10, 11, 12)]
    device = Device(msi + msix)
    front_ends, host = listen(sys.argv[1]), listen(sys.argv[1] + ".host")
    print("listening", flush=True)
    serve(front_ends, lambda peer: Session(peer, device), host, lambda: obey(host, device))


if __name__ == "__main__":
    main()
