"""The optional signature of a bundle: Ed25519 (RFC 8032) over the bytes of its manifest.

The manifest has the SHA-256 of every other file, so that its signature covers the bundle. OpenSSL
makes the keys, `openssl genpkey -algorithm ed25519`, and can check `signature` without kdcompile.
"""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompile.bundle.manifest import NAME, SIGNATURE, Bundle, manifest_bytes, read_bundle
from kdcompile.bundle.trust import VARIABLE as VARIABLE
from kdcompile.bundle.trust import Trust
from kdcompile.core.errors import KDError
from kdcompile.core.files import sweep_files, write_json
from kdcompile.core.optional import need
from kdcompile.core.readers import read_bounded, read_json

ALGORITHM = "ed25519"
LARGEST = 1 << 16  # bytes of a key, and of a signature
MAKE_KEY = "openssl genpkey -algorithm ed25519 -out key.pem"
MAKE_PUBLIC = "openssl pkey -in key.pem -pubout -out key.pub"


@dataclass(frozen=True)
class Signature:
    """A signature that a bundle carries.

    fingerprint: SHA-256 of the public key's DER, hex; is_trusted: it was checked with a key that
    the caller trusts.
    """

    fingerprint: str
    is_trusted: bool

    def __str__(self) -> str:
        """A line for the terminal."""
        note = "" if self.is_trusted else ", not checked against a key you trust"
        return f"signed by {self.fingerprint}{note}"


def open_bundle(folder: Path, trust: Trust | None = None, content: bytes | None = None) -> Bundle:
    """The bundle in a folder: signed by the trusted key where there is one, whole, and as expected.

    Every command that takes a bundle comes by here, before anything of it is run or told.

    Args:
        folder: the bundle.
        trust: what is demanded of it; by default the signature of the user's trusted key, if any.
        content: of its manifest, where it was read.

    Raises:
        KDError: those of `check_signature`, `read_bundle` and `Trust`.
        ToolMissingError: a key is trusted, and `cryptography` is not installed.
    """
    trust = trust or Trust()
    content = manifest_bytes(folder) if content is None else content
    if (key := trust.trusted_key()) is not None:
        check_signature(folder, key, content)
    found = read_bundle(folder, content)
    trust.check(folder, found.manifest)
    return found


def check_before_signing(
    folder: Path,
    key_file: Path,
    trust: Trust | None = None,
    unverified: bool = False,
    content: bytes | None = None,
) -> bool:
    """Refuse to sign a rewritten bundle that nothing shows to be as its builder signed it.

    Its signature must be by the trusted key, else by the one that is to sign: a new signature over
    files that somebody changed would vouch for the change.

    Args:
        folder: the bundle, before it is rewritten.
        key_file: the private key that is to sign it.
        trust: as for `open_bundle`.
        unverified: the caller takes a bundle that no key vouches for; a trusted key forbids it.
        content: of its manifest, where it was read.

    Returns:
        Whether a signature was checked.

    Raises:
        KDError: `key-unreadable`; those of `check_signature`.
        ToolMissingError: `cryptography` is not installed.
    """
    keys, key = _private_key(key_file)
    public = (trust or Trust()).trusted_key()
    if public is not None:
        check_signature(folder, public, content)
    elif unverified:
        return False
    elif not (folder / SIGNATURE).is_file():
        raise KDError(
            "signature-missing",
            "the bundle is not signed, so nothing shows that its files are those of the build",
            where=str((folder / SIGNATURE).absolute()),
            fix="sign it as it comes from the build, with kdcompile build --sign KEY (finished "
            "steps are kept), then merge with --sign; merge without --sign; or sign what you "
            "checked yourself with --resign-unverified, and the manifest says so",
        )
    else:
        _check(folder, keys, key.public_key(), "the key that is to sign", content)
    return True


def sign_bundle(folder: Path, key_file: Path) -> str:
    """Write `manifest.sig` beside the manifest; an older one is replaced.

    Args:
        folder: the finished bundle.
        key_file: an Ed25519 private key, PEM without a password.

    Returns:
        The fingerprint of the public key.

    Raises:
        KDError: `key-unreadable`, or `bundle-missing` where there is no manifest.
        ToolMissingError: the library `cryptography` is not installed.
    """
    message = manifest_bytes(folder)
    keys, key = _private_key(key_file)
    fingerprint = _fingerprint(keys, key.public_key())
    record = {
        "algorithm": ALGORITHM,
        "public_key_sha256": fingerprint,
        "signature": base64.b64encode(key.sign(message)).decode(),
    }
    sweep_files(folder)  # no bundle may hold what a killed process left of an earlier signature
    write_json(folder / SIGNATURE, record)
    return fingerprint


def _private_key(key_file: Path) -> tuple[Any, Any]:
    """The library's module of keys, and the key that signs.

    Raises:
        KDError: `key-unreadable`.
        ToolMissingError: the library `cryptography` is not installed.
    """
    keys = need("cryptography.hazmat.primitives.serialization", "sign", "signing a bundle")
    content = _read(key_file, "private", MAKE_KEY)
    try:
        key = keys.load_pem_private_key(content, password=None)
    except TypeError as error:
        fix = f"openssl pkey -in {key_file} -out plain.pem, then sign with plain.pem"
        raise _unreadable(key_file, "it is encrypted", fix) from error
    except (ValueError, _unknown_kind()) as error:
        raise _unreadable(key_file, "it is no PEM private key", MAKE_KEY) from error
    if not _is_ed25519(key):
        raise _unreadable(key_file, "its key is not Ed25519", MAKE_KEY)
    return keys, key


def check_signature(
    folder: Path, public_key: Path | None, content: bytes | None = None
) -> Signature | None:
    """The bundle's signature, checked where there is a key to check it with.

    Args:
        folder: the bundle; its files are checked by `read_bundle`, not here.
        public_key: PEM file of the Ed25519 public key that the caller trusts; without it nothing
            is checked but the form.
        content: of its manifest, where it was read.

    Returns:
        None for a bundle without a signature, which only a caller without a trusted key gets.

    Raises:
        KDError: `signature-missing`, `signature-corrupt`, `signature-wrong`, `key-unreadable`.
        ToolMissingError: a key is given, and `cryptography` is not installed.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        if public_key is None:
            return None
        raise KDError(
            "signature-missing",
            "a trusted key is given, and the bundle is not signed",
            where=str(path.absolute()),
            fix="get the signed bundle from whoever built it (kdcompile build --sign KEY), or "
            f"leave out --trusted, unset {VARIABLE} and remove trust.toml",
        )
    if public_key is None:
        return Signature(_parsed(path)[0], is_trusted=False)
    keys = need("cryptography.hazmat.primitives.serialization", "sign", "checking a signature")
    pem = _read(public_key, "public", MAKE_PUBLIC)
    try:
        key = keys.load_pem_public_key(pem)
    except (ValueError, _unknown_kind()) as error:
        raise _unreadable(public_key, "it is no PEM public key", MAKE_PUBLIC) from error
    if not _is_ed25519(key):
        raise _unreadable(public_key, "its key is not Ed25519", MAKE_PUBLIC)
    return _check(folder, keys, key, "the trusted key", content)


def _check(
    folder: Path, keys: Any, key: Any, whose: str, content: bytes | None = None
) -> Signature:
    """The signature of a bundle that has one, checked with a public key.

    Raises:
        KDError: `signature-corrupt`, `signature-wrong`.
    """
    path = folder / SIGNATURE
    fingerprint, signature = _parsed(path)
    expected = _fingerprint(keys, key)
    if fingerprint != expected:
        raise _wrong(path, f"it is by {fingerprint}, {whose} is {expected}")
    message = manifest_bytes(folder) if content is None else content
    invalid = need("cryptography.exceptions", "sign", "checking a signature").InvalidSignature
    try:
        key.verify(signature, message)
    except invalid as error:
        raise _wrong(path, f"it is not of this {NAME}") from error
    return Signature(fingerprint, is_trusted=True)


def _parsed(path: Path) -> tuple[str, bytes]:
    """Fingerprint and signature of `manifest.sig`."""
    try:
        record = read_json(path, LARGEST)
        algorithm, fingerprint = record["algorithm"], str(record["public_key_sha256"])
        signature = base64.b64decode(record["signature"], validate=True)
        int(fingerprint, 16)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _corrupt(path, f"it cannot be read: {error!r}") from error
    if algorithm != ALGORITHM or len(fingerprint) != 2 * hashlib.sha256().digest_size:
        raise _corrupt(path, f"its algorithm {algorithm!r} or its fingerprint is unknown")
    return fingerprint, signature


def _read(path: Path, kind: str, make: str) -> bytes:
    try:
        return read_bounded(path, LARGEST)
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", error))
        raise _unreadable(path, reason, f"name a {kind} key: {make}") from error


def _unknown_kind() -> type[Exception]:
    """What `cryptography` raises for a key of an algorithm that it does not know."""
    found: type[Exception] = need(
        "cryptography.exceptions", "sign", "reading a key"
    ).UnsupportedAlgorithm
    return found


def _is_ed25519(key: Any) -> bool:
    return "Ed25519" in type(key).__name__


def _fingerprint(keys: Any, key: Any) -> str:
    der = key.public_bytes(keys.Encoding.DER, keys.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _unreadable(path: Path, reason: str, fix: str) -> KDError:
    message = f"{path.name} cannot be used as a key: {reason}"
    return KDError("key-unreadable", message, where=str(path.absolute()), fix=fix)


def _corrupt(path: Path, reason: str) -> KDError:
    message = f"{path.name} is no signature: {reason}"
    fix = "copy the bundle again, or sign it again with kdcompile build --sign KEY"
    return KDError("signature-corrupt", message, where=str(path.absolute()), fix=fix)


def _wrong(path: Path, reason: str) -> KDError:
    return KDError(
        "signature-wrong",
        f"the signature is not to be trusted: {reason}",
        where=str(path.absolute()),
        fix="do not use this bundle: get it again from whoever built it, and their key by another "
        "way, for --trusted",
    )
