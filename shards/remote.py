"""Calls to an object store: tried again while the fault may pass, told in the user's words when it will not.

Guarantees: server errors, throttling, cut connections and silence are tried again with exponential back-off and jitter for
`$SER_STORE_PATIENCE` seconds (default 120), then refused; wrong or expired credentials, a missing bucket and a
misspelt address are refused at once. No message holds a credential. "There is no such file" and "it is there already" are
answers, not faults, and pass as FileNotFoundError and FileExistsError.
Gives up: a call that was answered but whose answer was lost is made again, so only what may be done twice goes through here.
"""

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import fsspec
from fsspec.config import conf

from shards.errors import UserError

PATIENCE = 120.0
FIRST, LONGEST = 0.1, 8.0  # seconds between tries
QUIET = 5.0  # seconds before it is said that a call is being tried again
log = logging.getLogger("ser.store")
# Its own: the global generator belongs to the training, whose draws must not depend on the network.
_dice = random.Random()
T = TypeVar("T")

# Drivers are optional, so their exceptions are known by name (of the class or of one that it derives from).
PASSING = {
    "ConnectionError", "HTTPClientError", "ConnectionClosedError", "IncompleteReadError", "ResponseStreamingError",
    "ResponseParserError", "ClientConnectionError", "ClientPayloadError", "IncompleteRead", "ServiceRequestError", "ServiceResponseError",
    "ChecksumError",
}  # fmt: skip
PASSING_CODES = {
    "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "BandwidthLimitExceeded",
    "ServiceUnavailable", "InternalError", "InternalFailure", "RequestTimeout", "RequestTimeoutException",
    "OperationAborted", "ConditionalRequestConflict", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch",
}  # fmt: skip
NONE = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound"}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
STALE = {"UnauthorizedSSOTokenError", "TokenRetrievalError", "CredentialRetrievalError", "RefreshError"}
WRONG = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "InvalidSecurity",
    "AuthenticationFailed",
}
NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
ADDRESS = {"InvalidBucketName"}
EXISTS = {"PreconditionFailed", "BlobAlreadyExists"}  # the answer to a conditional write
GIVEN = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or ~/.aws/credentials (aws configure)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
}
GIVEN |= {"s3a": GIVEN["s3"], "gcs": GIVEN["gs"], "abfs": GIVEN["az"], "abfss": GIVEN["az"]}


def patience() -> float:
    """`$SER_STORE_PATIENCE` in seconds, else 120."""
    named = os.environ.get("SER_STORE_PATIENCE", "")
    try:
        return float(named or PATIENCE)
    except ValueError:
        raise UserError(
            f"SER_STORE_PATIENCE={named!r} is not a number of seconds",
            where="environment",
            hint=f"export SER_STORE_PATIENCE={PATIENCE:g}",
        ) from None


def persist(call: Callable[[], T], where: str) -> T:
    """The result of `call`, which is made again while its fault may pass.

    Args:
        call: What may be done twice.
        where: Address, for messages.

    Raises:
        FileNotFoundError, FileExistsError: As the driver said.
        UserError: What the user can mend, or the store kept failing.
    """
    end, began, told, tries = time.monotonic() + patience(), time.monotonic(), False, 0
    while True:
        try:
            return call()
        except Exception as error:
            if not passing(error):
                refuse(error, where)
                raise
            wait = min(LONGEST, FIRST * 2**tries) * _dice.uniform(0.5, 1.0)
            if time.monotonic() + wait > end:
                raise _gave_up(error, where, time.monotonic() - began, tries + 1) from error
            if not told and time.monotonic() + wait - began > QUIET:
                told = True
                log.warning("%s: %s; tried again for %.0f s", where, said(error), end - time.monotonic())
        time.sleep(wait)
        tries += 1


def connect(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of an address and its path there; of tries and time `persist` alone keeps count.

    Raises:
        UserError: The protocol is unknown, its driver is not installed, or a password stands in the address.
    """
    user, at, _ = url.partition("://")[2].partition("/")[0].rpartition("@")
    if at and ":" in user:
        raise UserError(
            "credentials do not belong into an address: it stands in recipes, logs and reports",
            where=url.partition("://")[0] + "://***@...",
            hint="take them out, and give them by the environment or the store's usual files",
        )
    options: dict[str, Any] = {}
    if url.startswith(("s3://", "s3a://")):
        given = conf.get("s3", {}).get("config_kwargs") or {}
        options = {"config_kwargs": {"retries": {"total_max_attempts": 1}, **given}}
    try:
        made: Any = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"cannot open this address: {said(error)}",
            where=url,
            hint="give a local folder, or install the driver of this protocol (s3fs for s3://, gcsfs for gs://, adlfs for az://)",
        ) from error
    fs, path = made
    if hasattr(fs, "retries"):
        fs.retries = 1
    return fs, path


def passing(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    names, codes, statuses = _facts(error)
    if names & (NONE | STALE) or codes & (EXPIRED | WRONG | NO_BUCKET | ADDRESS):
        return False
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    if codes & PASSING_CODES or any(status in (408, 429) or status >= 500 for status in statuses):
        return True
    if isinstance(error, OSError) and error.errno in (errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)):
        return True
    return isinstance(error, TimeoutError | ConnectionError) or bool(names & PASSING)


def refuse(error: BaseException, where: str) -> None:
    """Raises a UserError where the user can mend it, FileExistsError where a conditional write found a file; else returns."""
    names, codes, statuses = _facts(error)
    if codes & EXISTS or names & {"ResourceExistsError"} or 412 in statuses:
        raise FileExistsError(where) from error
    given = GIVEN.get(where.split("://", 1)[0], "the environment, or the usual files of this store")
    again = "the same command goes on where it stopped"
    if codes & NO_BUCKET:
        raise UserError(
            f"there is no bucket {bucket(where)!r} here",
            where=place(where),
            hint="check its name and AWS_ENDPOINT_URL, or make it; buckets are never made by themselves",
        ) from error
    if names & NONE:
        raise UserError(
            "no credentials for this object store", where=place(where), hint=f"set {given}"
        ) from error
    if codes & EXPIRED or names & STALE:
        raise UserError(
            "the credentials for this object store have expired",
            where=place(where),
            hint=f"renew them (aws sso login, or {given}); {again}",
        ) from error
    if codes & WRONG or 401 in statuses or names & {"ClientAuthenticationError"}:
        raise UserError(
            f"the object store does not accept these credentials ({', '.join(sorted(codes & WRONG)) or '401'})",
            where=place(where),
            hint=f"check {given}",
        ) from error
    if "RequestTimeTooSkewed" in codes:
        raise UserError(
            "this machine's clock differs too much from the object store's",
            where=place(where),
            hint="set the clock (chronyc makestep)",
        ) from error
    if codes & ADDRESS or names & {"ParamValidationError"} or "endpoint" in str(error).lower():
        raise UserError(
            f"the object store does not accept this address: {said(error)}",
            where=place(where),
            hint="s3://bucket/folder, bucket names have 3 to 63 small letters, digits, dots and dashes; AWS_ENDPOINT_URL is "
            "empty or http(s)://HOST:PORT",
        ) from error
    if isinstance(error, PermissionError) or 403 in statuses:
        raise UserError(
            "these credentials may not do this (AccessDenied)",
            where=place(where),
            hint=f"ask for the rights to list, read, write and delete below it, or use others: {given}",
        ) from error
    if 400 in statuses and "400" in codes:  # of a question without a body, which could say more
        raise UserError(
            "the object store refused the question (400); expired credentials look like this",
            where=place(where),
            hint=f"renew or check {given}; {again}",
        ) from error


def _gave_up(error: Exception, where: str, seconds: float, tries: int) -> UserError:
    return UserError(
        f"the object store failed {tries} times in {seconds:.0f} s: {said(error)}",
        where=place(where),
        hint="check the network and AWS_ENDPOINT_URL; what is committed stays, and the same command goes on where it stopped",
    )


def said(error: BaseException) -> str:
    """An error in one line, without what could be secret in an address."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"(://)[^/@\s]+@", r"\1***@", text)
    text = re.sub(r"(?i)((?:signature|token|key|credential|secret)[\w-]*=)[^&\s\"']+", r"\1***", text)
    return text[:300]


def place(where: str) -> str:
    """The address, with the server that AWS_ENDPOINT_URL names, for messages."""
    server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return f"{where} at {said(Exception(server))}" if server and where.startswith("s3") else where


def bucket(where: str) -> str:
    """Name of the bucket in an address."""
    return where.split("://", 1)[-1].split("/", 1)[0]


def _facts(error: BaseException) -> tuple[set[str], set[str], set[int]]:
    """(class names, the store's error codes, HTTP statuses) along the chain of causes."""
    names: set[str] = set()
    codes: set[str] = set()
    statuses: set[int] = set()
    for one in _chain(error):
        names |= {kind.__name__ for kind in type(one).__mro__}
        response: Any = getattr(one, "response", None)
        if isinstance(response, dict):
            codes.add(str(response.get("Error", {}).get("Code", "")))
            statuses.add(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
        for name in ("status", "status_code", "code", "error_code"):
            value = getattr(one, name, None)
            if isinstance(value, int):
                statuses.add(value)
            elif value is not None:
                codes.add(str(getattr(value, "value", value)))
    return names, codes, statuses


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__
