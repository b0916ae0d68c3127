"""Signatures of artifacts: ed25519 over manifest.json, which has the sha256 of every other file. Native code runs in the server's process,
so a server that is told whom to trust opens nothing else. Needs cryptography.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from burnish.errors import ArtifactError, ServeError
from burnish.runtime.artifact import MANIFEST, SIGNATURE, Artifact

_MAKE = "openssl genpkey -algorithm ed25519 -out KEY; openssl pkey -in KEY -pubout -out KEY.pub"


def missing() -> str | None:
    """None, or the sentence that says what is not installed."""
    if find_spec("cryptography") is None:
        return "signatures need the package cryptography, which is not installed. Install it: pip install 'burnish[sign]'"
    return None


def sign(artifact: str | Path, key: Path) -> Path:
    """Sign the artifact with the private key (PEM) in the file `key`, once it is whole; the file of the signature."""
    from burnish.serve.versions import write

    held = Artifact.read(artifact)
    held.verify()
    private = _key(key, "private")
    to = held.path / SIGNATURE
    write(to, private.sign((held.path / MANIFEST).read_bytes()))
    return to


def check(artifact: Path, key: Path) -> None:
    """ArtifactError unless the artifact has a signature of the private half of `key` (PEM, public). The manifest alone is checked: what it
    says of other files is `Artifact.verify`'s."""
    from cryptography.exceptions import InvalidSignature

    public = _key(key, "public")
    try:
        signature = (artifact / SIGNATURE).read_bytes()
    except OSError:
        raise ArtifactError(
            f"the artifact at {artifact} is not signed, and only what {key} signed is served. Sign it: burnish sign"
        ) from None
    try:
        public.verify(signature, (artifact / MANIFEST).read_bytes())
    except InvalidSignature:
        raise ArtifactError(
            f"{SIGNATURE} of the artifact at {artifact} is not of {key} over its {MANIFEST}: one of them was changed, or another key signed"
        ) from None


def _key(path: Path, half: str) -> Any:
    if absent := missing():
        raise ServeError(absent)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    try:
        text = path.read_bytes()
        key = load_pem_private_key(text, None) if half == "private" else load_pem_public_key(text)
    except OSError as error:
        raise ServeError(f"the key {path} cannot be read: {error.strerror}. Make one: {_MAKE}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey if half == "private" else Ed25519PublicKey):
        raise ServeError(f"{path} has no {half} ed25519 key in PEM. Make one: {_MAKE}")
    return key
