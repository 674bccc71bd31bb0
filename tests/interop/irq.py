# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What an IRQ device answers and reports: simulated functions, sources, requests and events. No rings, no sockets."""

import struct

# Requests, statuses, events
LIST_FUNCTIONS, GET_MESSAGES = 1, 2
ALLOCATE, FREE, MASK, UNMASK, RESET_FUNCTION = range(16, 21)
OK, UNSUPPORTED, INVALID, BUFFER_TOO_SMALL, NO_FUNCTION, NO_VECTOR = range(6)
HOST_ERROR, FUNCTION_GONE, NO_SOURCE, BUSY, NO_SPACE, NOT_CONTIGUOUS = range(8, 14)
EVENT_INTERRUPT, EVENT_CHANGED, EVENT_REVOKED, EVENT_GONE = range(1, 5)
# Feature bits, interrupt types
NATIVE, EVENT = 1 << 0, 1 << 1
INTX, MSI, MSIX = range(3)

MAX_VECTORS, MAX_SOURCES = 64, 64
SPACE = struct.pack("<IHHIHH", 0x51524956, 1, 0, MAX_SOURCES, MAX_VECTORS, 0)


class Refusal(Exception):
    """A request that is answered with a status alone."""


def require(condition, status):
    if not condition:
        raise Refusal(status)


class Function:
    """A simulated function, and its place on the host."""

    def __init__(self, number, vectors, guest_address=None, ids=None):
        self.number, self.vectors = number, vectors
        self.guest_address = guest_address
        self.ids = ids or (0x1234, 0x100 + number, 0x1234, 1, 0x02000001)
        self.moved = 0
        self.fails = self.gone = False

    def listed(self):
        flags = 0b11010 | (self.guest_address is not None)
        place = self.guest_address or 0
        return struct.pack("<HHIHHHHIHHH6x", self.number, flags, place, *self.ids, *self.vectors)

    def pair(self, irq_type, vector):
        """One address and data that counts up for MSI, a pair of its own for each entry of MSI-X."""
        base = 0xFEE00000 + 0x4000 * self.number + 0x1000 * self.moved
        return {INTX: (0, 0), MSI: (base, vector), MSIX: (base + 0x20 * vector, 0)}[irq_type]

    def host(self):
        """Asks the host for something, which can fail."""
        failed, self.fails = self.fails, False
        require(not failed, HOST_ERROR)


class Source:
    def __init__(self, number, function, irq_type, vector):
        self.number, self.function, self.irq_type, self.vector = number, function, irq_type, vector
        self.masked = self.pending = self.revoked = False

    def record(self, kind):
        return struct.pack("<HHI8x", kind, self.function.number, self.number)


class Device:
    """What the device knows, whoever is connected."""

    def __init__(self, functions):
        self.functions = {function.number: function for function in functions}
        self.features = 0
        self.generation = 0
        self.stopped = False
        self.reset()

    def reset(self):
        """Functions that are gone stay so, and generations go on: no front end says why it stopped."""
        self.told, self.sources = {}, {}
        # Events other than interrupts, and the sources whose interrupts wait, each in its order.
        self.events, self.ready = [], []

    def space(self):
        """The configuration space."""
        return SPACE

    # What happens on the host

    def happen(self, what, number, vector=None):
        function = self.functions[int(number)]
        held = [source for source in self.sources.values() if source.function is function]
        if what == "raise":
            for source in held:
                if source.vector == int(vector) and not source.revoked:
                    self.fire(source)
        elif what == "move":
            function.moved += 1
            self.find_moved(function)
        elif what == "take":
            self.revoke(held)
        elif what == "fail":
            function.fails = True
        elif what == "remove":
            function.gone = True
            self.forget(held)
            self.events = [event for event in self.events if event[0] is not function]
            self.events.append((function, None, struct.pack("<HH12x", EVENT_GONE, function.number)))
        else:
            raise ValueError(what)

    def fire(self, source):
        if not source.pending:
            source.pending = True
            if not source.masked:
                self.ready.append(source)

    def find_moved(self, function):
        """A MESSAGE_CHANGED of each type, whose range covers all vectors that were told something else."""
        for irq_type in (MSI, MSIX):
            vectors = [key[2] for key in self.told if key[:2] == (function.number, irq_type)]
            if vectors:
                first, count = min(vectors), max(vectors) - min(vectors) + 1
                record = struct.pack("<HHIHHB3x", EVENT_CHANGED, function.number, 0, first, count, irq_type)
                self.events = [event for event in self.events if event[:2] != (function, irq_type)]
                self.events.append((function, irq_type, record))

    def revoke(self, sources):
        for source in sources:
            if not source.revoked:
                source.revoked, source.pending = True, False
                self.events.append((source.function, source, source.record(EVENT_REVOKED)))
        self.ready = [source for source in self.ready if not source.revoked]

    def forget(self, sources):
        for source in sources:
            del self.sources[source.number]
            # The host takes back what they have there, or fails at that: they are freed all the same.
            source.function.fails = False
        self.ready = [source for source in self.ready if source not in sources]
        self.events = [event for event in self.events if event[1] not in sources]

    def has_news(self):
        return bool(self.events or self.ready)

    def next_events(self, most):
        """Up to that many records, which are told by this."""
        records = [record for _, _, record in self.events[:most]]
        del self.events[:most]
        while self.ready and len(records) < most:
            source = self.ready.pop(0)
            source.pending, source.masked = False, source.irq_type == INTX
            records.append(source.record(EVENT_INTERRUPT))
        return b"".join(records)

    # Requests

    def answer(self, request, length, room):
        """The reply to a request of that many bytes, with room for that many, in the order of the checks."""
        try:
            require(length >= 8, INVALID)
            kinds = {LIST_FUNCTIONS: (16, 0, self.list_functions), GET_MESSAGES: (16, NATIVE, self.get_messages)}
            kinds[ALLOCATE] = (24, EVENT, self.allocate)
            kinds |= {kind: (16, EVENT, self.change) for kind in (FREE, MASK, UNMASK)}
            kinds[RESET_FUNCTION] = (16, EVENT, self.reset_function)
            (kind,) = struct.unpack("<H", request[:2])
            size, feature, serve = kinds.get(kind, (0, 0, None))
            require(serve and self.features & feature == feature, UNSUPPORTED)
            require(length == size and not any(request[2:8]), INVALID)
            return struct.pack("<H6x", OK) + serve(request, room)
        except Refusal as refusal:
            return struct.pack("<H6x", *refusal.args)

    def function(self, number):
        require(number in self.functions, NO_FUNCTION)
        require(not self.functions[number].gone, FUNCTION_GONE)
        return self.functions[number]

    def tell(self, function, irq_type, vector):
        """The message of a vector, with another generation than before if it is another one."""
        pair, key = function.pair(irq_type, vector), (function.number, irq_type, vector)
        if irq_type == INTX:
            return bytes(16)
        if self.told.get(key, (None,))[0] != pair:
            self.generation = (self.generation + 1) % (1 << 32)
            self.told[key] = (pair, self.generation)
        return struct.pack("<QII", *pair, self.told[key][1])

    def list_functions(self, request, room):
        start, count, reserved = struct.unpack("<HHI", request[8:16])
        require(not reserved and count, INVALID)
        require(room >= 16 + 32 * count, BUFFER_TOO_SMALL)
        present = [function for _, function in sorted(self.functions.items()) if not function.gone]
        matching = [function for function in present if function.number >= start]
        told = [function.listed() for function in matching[:count]]
        return struct.pack("<HH4x", len(told), len(matching) - len(told)) + b"".join(told)

    def get_messages(self, request, room):
        number, irq_type, reserved, first, count = struct.unpack("<HBBHH", request[8:16])
        require(not reserved and count and irq_type in (MSI, MSIX) and count <= MAX_VECTORS, INVALID)
        require(room >= 16 + 16 * count, BUFFER_TOO_SMALL)
        function = self.function(number)
        require(first + count <= function.vectors[irq_type], NO_VECTOR)
        function.host()
        messages = [self.tell(function, irq_type, vector) for vector in range(first, first + count)]
        return struct.pack("<H6x", count) + b"".join(messages)

    def allocate(self, request, room):
        number, irq_type, layout, least, most, first, delivery = struct.unpack("<HBBHHHB", request[8:19])
        require(not any(request[19:24]) and 0 < least <= most, INVALID)
        require(irq_type <= MSIX and layout <= 1 and delivery == 1 and most <= MAX_VECTORS, INVALID)
        require(room >= 16 + 24 * most, BUFFER_TOO_SMALL)
        function = self.function(number)
        require(first + least <= function.vectors[irq_type], NO_VECTOR)
        held = [source for source in self.sources.values() if source.function is function]
        live = [source for source in held if not source.revoked]
        require(all(source.irq_type == irq_type for source in live), BUSY)
        most = min(most, MAX_SOURCES - len(self.sources))
        require(most >= least, NO_SPACE)
        taken = {source.vector for source in live}
        vectors = [vector for vector in range(first, function.vectors[irq_type]) if vector not in taken]
        vectors = longest_run(vectors, most) if layout else vectors[:most]
        function.host()
        require(len(vectors) >= least, NO_SPACE)
        pairs = [function.pair(irq_type, vector) for vector in vectors]
        block = [(pairs[0][0], pairs[0][1] + n) for n in range(len(pairs))]
        require(not layout or pairs == block, NOT_CONTIGUOUS)
        unused = (number for number in range(MAX_SOURCES) if number not in self.sources)
        made = [Source(number, function, irq_type, vector) for number, vector in zip(list(unused), vectors)]
        self.sources |= {source.number: source for source in made}
        told = [struct.pack("<IH2x", s.number, s.vector) + self.tell(function, irq_type, s.vector) for s in made]
        return struct.pack("<H6x", len(told)) + b"".join(told)

    def change(self, request, _room):
        kind, first, count, reserved = struct.unpack("<H6xIHH", request)
        require(not reserved and count, INVALID)
        held = [self.sources.get(number) for number in range(first, first + count)]
        require(all(held), NO_SOURCE)
        if kind == FREE:
            self.forget(held)
        elif kind == MASK:
            for source in held:
                source.masked = True
            self.ready = [source for source in self.ready if not source.masked]
        else:
            self.unmask([source for source in held if source.masked])
        return b""

    def unmask(self, sources):
        refusal = None
        for source in sources:
            try:
                if source.irq_type == INTX and not source.revoked:
                    source.function.host()
            except Refusal as first:
                refusal = refusal or first
                continue
            source.masked = False
            if source.pending:
                self.ready.append(source)
        if refusal:
            raise refusal

    def reset_function(self, request, _room):
        require(not any(request[10:16]), INVALID)
        function = self.function(struct.unpack("<H", request[8:10])[0])
        self.forget([source for source in self.sources.values() if source.function is function])
        return b""


def longest_run(vectors, most):
    """The first run of that many consecutive vectors, or else the first of the longest."""
    best = []
    for start, vector in enumerate(vectors):
        run = [v for n, v in enumerate(vectors[start:]) if v == vector + n][:most]
        best = max(best, run, key=len)
    return best
