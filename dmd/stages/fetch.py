"""Stage fetch: a file from outside, downloaded once and checked."""

from __future__ import annotations

import time
from pathlib import Path

from dmd.cluster import job, job_status, reporting
from dmd.cluster.job_status import Throughput
from dmd.config.rules import VERSIONS
from dmd.data.download import Download, DownloadError
from dmd.provenance import pinned, record


def run(*, output: Path, url: str, sha256: str | None = None, size: int | None = None) -> None:
    """Downloads a file unless it is there; what a try that ended early has left lies beside it as `.name.part`.

    Args:
        output: where the file belongs. Beside it `.name.json` records its digest.
        url: where it comes from.
        sha256: all digits of its digest, the first ones, or None where nobody published it.
        size: bytes, None where nobody knows.

    A file that is there, or appears meanwhile, is left as it is: whoever reads it compares it with its digest. An error
    would make Snakemake remove it.

    Raises:
        ValueError: the file cannot be had, or is not the one that the digest names, be it in part; where the digest is
            not known whole, another file than was there before is refused, too.
    """
    with record.exclusive(output):
        if not output.exists():
            _fetch(output, url, sha256, size)
    reporting.log(f"{output}: {output.stat().st_size} bytes")


def _fetch(output: Path, url: str, sha256: str | None, size: int | None) -> None:
    partial = output.with_name(f".{output.name}.part")
    download = Download(url, partial, size, log=reporting.log, advance=_Status())
    try:
        digest = _wanted(download, output, sha256, _recorded(output, sha256))
    except ValueError:
        if not output.exists():
            raise
    if output.exists():
        reporting.log(f"somebody put {output} there meanwhile: what came is discarded")
    else:
        facts = {"url": url, "stage": "fetch", "version": VERSIONS["fetch"]}
        pinned.write_record(output, digest, partial.stat().st_size, **facts)
        partial.replace(output)
        reporting.log(f"sha256 {digest} recorded")
    download.discard()


class _Status:
    """A line every ten seconds and at the end: what came, rate, time left."""

    def __init__(self) -> None:
        self._from = (0.0, -1)  # time and bytes that the rate counts from
        self._last = 0.0

    def __call__(self, reached: int, total: int | None) -> None:
        now = time.monotonic()
        if not 0 <= self._from[1] < reached:
            self._from, self._last = (now, reached), now
        if now - self._last < reporting.STATUS_SECONDS and reached != total:
            return
        self._last = now
        rate = (reached - self._from[1]) / max(now - self._from[0], 1e-9)
        line = f"{reached / 1e6:.1f} MB, {rate / 1e6:.3g} MB/s"
        if total is not None:
            line = f"{reached / 1e6:.1f}/{total / 1e6:.1f} MB, {rate / 1e6:.3g} MB/s, "
            line += f"{(total - reached) / max(rate, 1):.0f} s left"
            job_status.report(Throughput(count=reached, total=total, unit="bytes", rate=rate))
        reporting.log(line)


def _recorded(output: Path, sha256: str | None) -> str | None:
    """Digest of the file that was there before, None where `sha256` is whole and decides alone."""
    known = record.read_checked(output) if len(sha256 or "") < pinned.FULL_LENGTH else None
    return known["sha256"] if known else None


def _wanted(download: Download, output: Path, sha256: str | None, recorded: str | None) -> str:
    """Downloads the file; its digest, which begins with `sha256` and is the recorded one if there is any."""
    resumed = download.partial.exists()
    digest = _tried(download, output, sha256)
    if resumed and not digest.startswith(recorded or sha256 or ""):
        reporting.log(f"what was left by an earlier try does not fit: sha256 {digest}; starting again")
        download.discard()
        digest = _tried(download, output, sha256)
    if sha256 and not digest.startswith(sha256):
        download.discard()
        raise ValueError(
            f"{download.url} has sha256 {digest}, but inputs pins {pinned.printed(sha256)}: what came was discarded; "
            "it was damaged on its way, or another file is served there now"
        )
    if recorded and digest != recorded:
        download.discard()
        raise ValueError(
            f"{download.url} has sha256 {digest}, but {recorded} was recorded when {output} first came: what came was "
            f"discarded; put that file back, or remove {record.sidecar(output)} if the change is meant"
        )
    if not download.ended and not sha256 and not recorded:
        reporting.log(
            f"WARNING: nothing says whether {output} came whole: {download.url} names no length, and inputs has "
            "neither its size nor its sha256; compare it with what its publisher says"
        )
    return digest


def _tried(download: Download, output: Path, sha256: str | None) -> str:
    reporting.log(f"{output} from {download.url}")
    try:
        return download.run()
    except DownloadError as error:
        digest = f"sha256 {pinned.printed(sha256)}" if sha256 else "nobody published its sha256"
        raise ValueError(
            f"{output} is missing, and {download.url} cannot be downloaded: {error}. Run again to go on from "
            f"what came, or get the file elsewhere ({digest}) and put it at {output.absolute()}"
        ) from error


if __name__ == "__main__":
    job.main(run)
