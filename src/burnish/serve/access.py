"""Who may call: bearer tokens, and whether what is served may be changed by a call."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from burnish.errors import ServeError
from burnish.serve.wire import Refused

_ADMIN = "admin:"


class Access(msgspec.Struct, frozen=True):
    """`tokens`: sha256 of those that callers need (none: everybody may call); `admins`: of those among them that may change what is
    served; `admin`: whether any call may."""

    admin: bool = False
    tokens: frozenset[bytes] = frozenset()
    admins: frozenset[bytes] = frozenset()

    @classmethod
    def read(cls, admin: bool, path: Path | None) -> Access:
        """Of a file with a token a line; those behind `admin:` may change what is served. ServeError when there is none in it."""
        if path is None:
            return cls(admin)
        try:
            lines = [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
        except (OSError, UnicodeDecodeError) as error:
            raise ServeError(f"the tokens in {path} cannot be read: {error}") from None
        if not lines:
            raise ServeError(f"there is no token in {path}. Write one a line")
        if admin and not any(line.startswith(_ADMIN) for line in lines):
            raise ServeError(f"--admin needs a token that may change what is served. Write it into {path} behind {_ADMIN}")
        for line in lines:
            if not line.removeprefix(_ADMIN).isascii() or len(line.removeprefix(_ADMIN)) < 16:
                raise ServeError(f"a token in {path} has fewer than 16 characters, or others than ASCII. Make one: openssl rand -hex 32")
        all_of_them = frozenset(_digest(line.removeprefix(_ADMIN)) for line in lines)
        return cls(admin, all_of_them, frozenset(_digest(line[len(_ADMIN) :]) for line in lines if line.startswith(_ADMIN)))

    def check(self, header: str | None) -> None:
        """Refused (401) unless the header Authorization has a token."""
        if _token(header) not in self.tokens:
            raise Refused("the token is not one of this server's", 401)

    def check_admin(self, header: str | None) -> None:
        """Refused (403) unless this call may change what is served."""
        if not self.admin:
            raise Refused("this server does not change what it serves by a call. Start it with --admin", 403)
        if self.tokens and _token(header) not in self.admins:
            raise Refused("the token may not change what is served", 403)


def _token(header: str | None) -> bytes:
    """sha256 of the token in the header Authorization. Hashes are compared: how long that takes tells nothing of how near a guess is."""
    kind, _, token = (header or "").partition(" ")
    if kind.lower() != "bearer" or not token:
        raise Refused("this server wants a token. Send the header Authorization: Bearer TOKEN", 401)
    return _digest(token.strip())


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
