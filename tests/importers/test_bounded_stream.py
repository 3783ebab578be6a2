"""A long read can be stopped by a signal in its midst, and gives the bytes of the file."""

import io
import signal

import pytest

from dmd.importers.bounded_stream import PIECE, BoundedStream


class Stop(BaseException):
    """What the handler raises."""


class Interrupting(io.BytesIO):
    """Sends a signal to this process when its second piece is read."""

    def readinto(self, buffer) -> int:
        if self.tell():
            signal.raise_signal(signal.SIGUSR1)
        return super().readinto(buffer)


@pytest.mark.parametrize("read", [BoundedStream.read, BoundedStream.read_buffer])
def test_a_signal_ends_a_long_read_after_a_piece(read):
    def stop(*_):
        raise Stop

    stream = Interrupting(bytes(3 * PIECE))
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stop):
            read(BoundedStream(stream, 3 * PIECE), 3 * PIECE)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stream.tell() == PIECE


@pytest.mark.parametrize("num", [0, 5, PIECE, PIECE + 1, 2 * PIECE + 3])
def test_pieces_make_the_whole(num):
    content = bytes(range(256)) * (PIECE // 128) + b"end"
    bounded = BoundedStream(io.BytesIO(content), len(content))
    assert bounded.read(num) == content[:num]
    assert bounded.read_buffer(bounded.left) == content[num:]
    with pytest.raises(ValueError, match="1 bytes are needed, but 0 are left"):
        bounded.read(1)


def test_a_file_that_became_shorter_is_told():
    with pytest.raises(ValueError, match="became shorter"):
        BoundedStream(io.BytesIO(bytes(PIECE + 1)), PIECE + 2).read(PIECE + 2)
