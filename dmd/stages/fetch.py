"""Stage fetch: downloads an input file once, and checks it."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

from dmd.config import printing
from dmd.config.rule_lookups import SECRET_URLS
from dmd.config.rule_table import VERSIONS
from dmd.config.section_base import FULL_LENGTH
from dmd.data.download import Download, DownloadError
from dmd.jobs import job, job_status, reporting
from dmd.jobs.job_status import Throughput
from dmd.provenance import pinned, record


def run(*, output: Path, url: str, sha256: str | None = None, size: int | None = None) -> None:
    """Downloads a file unless it exists; an interrupted download is kept beside it as `.name.part`.

    A file that exists, or appears during the download, is left as it is and not checked: after an error Snakemake would
    delete it. The stages that read it check its digest.

    Args:
        output: path of the file; `.name.json` beside it records its digest.
        url: of the file. Where it has a password or a query, Snakemake, which prints commands, gives it with `***`, and
            whole in the environment variable `rule_lookups.SECRET_URLS`.
        sha256: its digest, or the first digits; None if unknown.
        size: in bytes; None if unknown.

    Raises:
        ValueError: the download fails, or its digest differs from `sha256`, or, if `sha256` is not complete, from the
            digest recorded earlier.
        OSError: the disk is full; what was downloaded is removed.
    """
    url = json.loads(os.environ.get(SECRET_URLS, "{}")).get(str(output), url)
    with record.writing(output):
        if not output.exists():
            _fetch(output, url, sha256, size)
    reporting.log(f"{output}: {output.stat().st_size} bytes")


def _fetch(output: Path, url: str, sha256: str | None, size: int | None) -> None:
    partial = output.with_name(f".{output.name}.part")
    download = Download(url, partial, size, log=reporting.log, advance=_Status())
    try:
        digest = _download(download, output, sha256, _recorded(output, sha256))
    except ValueError:
        if not output.exists():
            raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        download.discard()
        what = f"no space left while downloading {output} from {printing.without_secrets(url)} ({error.strerror})"
        raise OSError(f"{what}: the bytes received so far were removed; free some space and run again") from error
    if output.exists():
        reporting.log(f"{output} appeared meanwhile: the download is discarded")
    else:
        facts = {"url": printing.without_secrets(url), "stage": "fetch", "version": VERSIONS["fetch"]}
        pinned.write_record(output, digest, partial.stat().st_size, **facts)
        partial.replace(output)
        reporting.log(f"sha256 {digest} recorded")
    download.discard()


class _Status:
    """Logs size, rate and time left every ten seconds and at the end."""

    def __init__(self) -> None:
        self._from = (0.0, -1)  # time and bytes at the start of this run, for the rate
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
    """Digest recorded at an earlier download; None if `sha256` is complete."""
    known = record.read_checked(output) if len(sha256 or "") < FULL_LENGTH else None
    return known["sha256"] if known else None


def _download(download: Download, output: Path, sha256: str | None, recorded: str | None) -> str:
    """Downloads the file and returns its digest; ValueError if `sha256` or the recorded digest differs."""
    resumed, shown = download.partial.exists(), printing.without_secrets(download.url)
    digest = _try(download, output, sha256)
    if resumed and not digest.startswith(recorded or sha256 or ""):
        reporting.log(f"the resumed download has sha256 {digest}, not the expected one: starting again")
        download.discard()
        digest = _try(download, output, sha256)
    if sha256 and not digest.startswith(sha256):
        download.discard()
        raise ValueError(
            f"{shown} has sha256 {digest}, but section inputs pins {printing.digest(sha256)}: the download "
            "was damaged, or the server has another file now; it was discarded"
        )
    if recorded and digest != recorded:
        download.discard()
        raise ValueError(
            f"{shown} has sha256 {digest}, but {recorded} was recorded for {output} earlier: the download was "
            f"discarded; restore that file, or remove {record.sidecar(output)} if the change is intended"
        )
    if not download.ended and not sha256 and not recorded:
        reporting.log(
            f"WARNING: {output} may be incomplete: {shown} sends no length, and section `inputs` has "
            "neither size nor sha256: compare the file with the publisher's digest"
        )
    return digest


def _try(download: Download, output: Path, sha256: str | None) -> str:
    shown = printing.without_secrets(download.url)
    reporting.log(f"{output} from {shown}")
    try:
        return download.run()
    except DownloadError as error:
        digest = f"sha256 {printing.digest(sha256)}" if sha256 else "sha256 unknown"
        raise ValueError(
            f"{output} is missing, and {shown} cannot be downloaded: {error}. Run again to resume, or get "
            f"the file elsewhere ({digest}) and save it as {output.absolute()}"
        ) from error


if __name__ == "__main__":
    job.main(run)
