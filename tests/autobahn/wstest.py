"""The Autobahn suite's `wstest` (Python 2.7), unchanged or with its text messages sent as binary.

upstreamproxy accepts binary messages only. It refuses a text message at its first header, so the
rest of such a test case is never reached. With `as-binary`, every case keeps its frames, fragments,
order and expectations. Only the opcode changes: text is sent as binary, and the echo of such a
message counts as text.
"""

import sys

from autobahntestsuite import fuzzing, wstest

TEXT, BINARY = 1, 2


def as_binary(protocol):
    """`protocol`, with the opcode for binary in place of the one for text."""

    class AsBinary(protocol):
        sent_text = False

        def sendFrame(self, opcode, *arguments, **named):
            if opcode == TEXT:
                self.sent_text = True
                opcode = BINARY
            protocol.sendFrame(self, opcode, *arguments, **named)
            if self.sent_text:
                # Case 10.1.1 counts the text frames that it sent.
                self.txFrameStats[TEXT] = self.txFrameStats.get(BINARY, 0)

        def onMessage(self, payload, is_binary):
            return protocol.onMessage(self, payload, is_binary and not self.sent_text)

    AsBinary.__name__ = protocol.__name__
    return AsBinary


if __name__ == "__main__":
    if sys.argv.pop(1) == "as-binary":
        fuzzing.FuzzingServerFactory.protocol = as_binary(fuzzing.FuzzingServerProtocol)
        # The client's factory uses this global name.
        fuzzing.FuzzingClientProtocol = as_binary(fuzzing.FuzzingClientProtocol)
    wstest.run()
