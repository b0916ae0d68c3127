"""What holds for every test."""

import signal

import pytest


@pytest.fixture(autouse=True)
def ctrl_c_interrupts() -> None:
    """Ctrl-C is as at a terminal, though a shell that starts the tests in the background lets them ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
