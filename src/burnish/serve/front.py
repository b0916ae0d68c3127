"""granian with two changes, so that a killed worker costs its own requests and no others.

Workers accept from one socket that their parent holds open: what connects while a worker is down waits for the next one. (On Linux granian
gives each worker a socket of its own, whose waiting connections die with it.) And a server lives on however often workers are killed.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

from granian import Granian
from granian.net import SocketSpec

from burnish.serve.metrics import Board

_VAIN = 8  # replacements in a row that may die before they came up


class Front(Granian):  # type: ignore[misc, valid-type]  # granian chooses its class when it is imported
    """`board` knows how many workers came up."""

    def __init__(self, board: Board, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.respawned_wrks = _Replaced(board)

    def _init_shared_socket(self) -> None:
        if sys.platform != "linux":  # there it is shared already
            super()._init_shared_socket()
            return
        self._ssp = None
        self._shd = SocketSpec(self.bind_addr, self.bind_port, self.backlog).build()
        self._sfd = self._shd.get_fd()
        self._sso = socket.socket(fileno=self._sfd)
        self._sso.set_inheritable(True)


class _Replaced(dict[int, float]):
    """When each worker was replaced, as granian keeps it: it asks when a worker has died, and ends a server whose replacement lived a few
    seconds only. Here that counts where none came up in between, and once one had, where that happened several times in a row: a worker
    that is killed is replaced, however soon."""

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board
        self._started = 0
        self._in_vain = 0

    def get(self, index: int, default: Any = None) -> Any:
        started = self._board.started()
        self._in_vain = 0 if started > self._started else self._in_vain + 1
        self._started = started
        return super().get(index, default) if self._in_vain > (_VAIN if started else 0) else default
