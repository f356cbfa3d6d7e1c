"""The protobuf chunk of the protocol, written only from the protocol page of the manual.

It is independent of the Rust code that it tests, so the two agree only if both follow the page.
Field 1 is `data` (bytes), field 2 `fin` (bool), field 3 `ack` (reserved, skipped).
"""

# The maximum number of data bytes in one chunk of a sender.
LARGEST_DATA = 512 * 1024
# The maximum size of a message that a receiver accepts.
LARGEST_MESSAGE = 1024 * 1024


class Undecodable(Exception):
    """The message is not a chunk: close code 1007."""


def varint(value, width=1):
    """`value` as a varint of at least `width` bytes. It need not be minimal."""
    out = bytearray()
    while value >= 0x80 or len(out) + 1 < width:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(data=b"", fin=False):
    """A chunk in the usual encoding."""
    out = b"\x0a" + varint(len(data)) + data if data else b""
    return out + (b"\x10\x01" if fin else b"")


def decode(message):
    """Returns `(data, fin)` of a chunk by the rules of proto3: unknown fields are skipped, and
    the last occurrence of a field is used."""
    data, fin, at, groups = b"", False, 0, []
    while at < len(message):
        tag, at = _varint(message, at)
        field, kind = tag >> 3, tag & 7
        if not 0 < field < 1 << 29:
            raise Undecodable("field number out of range")
        if kind == 0:
            value, at = _varint(message, at)
            if field == 2 and not groups:
                fin = value != 0
        elif kind in (1, 5):
            _, at = _take(message, at, 8 if kind == 1 else 4)
        elif kind == 2:
            size, at = _varint(message, at)
            value, at = _take(message, at, size)
            if field == 1 and not groups:
                data = value
        elif kind == 3:
            groups.append(field)
        elif kind == 4 and groups and groups.pop() == field:
            pass
        else:
            raise Undecodable("an unbalanced group, or a wire type that does not exist")
    if groups:
        raise Undecodable("a group without an end")
    return data, fin


def _varint(message, at):
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise Undecodable("a truncated varint")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise Undecodable("a varint of more than 10 bytes")


def _take(message, at, size):
    if at + size > len(message):
        raise Undecodable("a truncated field")
    return message[at : at + size], at + size


# Unknown fields of each wire type, including a nested group; and field 1 with the wrong wire type.
UNKNOWN_FIELDS = (
    varint(9 << 3 | 0) + varint(1 << 63)
    + varint(10 << 3 | 1) + b"8 bytes."
    + varint(11 << 3 | 2) + varint(3) + b"abc"
    + varint(12 << 3 | 3) + varint(1 << 3 | 2) + varint(2) + b"no"
    + varint(13 << 3 | 3) + varint(13 << 3 | 4) + varint(12 << 3 | 4)
    + varint(14 << 3 | 5) + b"4 b."
    + varint(3 << 3 | 0) + varint(12345)
    + varint(1 << 3 | 0) + varint(7)
)


def encode_unusually(quirk, data=b"", fin=False):
    """A chunk in an unusual but valid encoding, which a receiver must accept; None if the quirk is
    not about encoding."""
    tail = b"\x10\x01" if fin else b""
    if quirk == "unknown-fields":
        return UNKNOWN_FIELDS + encode(data) + UNKNOWN_FIELDS + tail
    if quirk == "field-twice":
        return b"\x0a\x05wrong" + b"\x10\x00" + b"\x0a" + varint(len(data)) + data + tail
    if quirk == "non-minimal":
        return varint(0x0A, 10) + varint(len(data), 10) + data + (varint(0x10, 3) + varint(1, 10) if fin else b"")
    return None
