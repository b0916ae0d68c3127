"""What holds for every test."""

import signal

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so does every process they start: tests of Ctrl-C would
# wait for ever. With a handler set here, both are as they are at a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
