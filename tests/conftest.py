"""What all tests stand on."""

from __future__ import annotations

import signal

# A shell that starts the suite in the background has it ignore Ctrl-C, and what it starts likewise: tests that send
# one would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
