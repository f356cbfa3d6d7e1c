"""The Autobahn suite's `wstest` (Python 2.7) as it is, or with its text messages sent as binary ones.

The wire of upstreamproxy has binary messages only, so a text message is refused by its first header, and with it whatever
the case wanted to see behind it. With `as-binary` every case keeps its frames, fragments, order and expectations; only the
opcode of text on the wire is that of binary, and the echo of such a message counts as text again.
"""

import sys

from autobahntestsuite import fuzzing, wstest

TEXT, BINARY = 1, 2


def as_binary(protocol):
    """`protocol`, saying binary where a case says text."""

    class AsBinary(protocol):
        said_text = False

        def sendFrame(self, opcode, *arguments, **named):
            if opcode == TEXT:
                self.said_text = True
                opcode = BINARY
            protocol.sendFrame(self, opcode, *arguments, **named)
            if self.said_text:
                # Case 10.1.1 counts the frames of text that it sent.
                self.txFrameStats[TEXT] = self.txFrameStats.get(BINARY, 0)

        def onMessage(self, payload, is_binary):
            return protocol.onMessage(self, payload, is_binary and not self.said_text)

    AsBinary.__name__ = protocol.__name__
    return AsBinary


if __name__ == "__main__":
    if sys.argv.pop(1) == "as-binary":
        fuzzing.FuzzingServerFactory.protocol = as_binary(fuzzing.FuzzingServerProtocol)
        # The client's factory names its protocol itself.
        fuzzing.FuzzingClientProtocol = as_binary(fuzzing.FuzzingClientProtocol)
    wstest.run()
