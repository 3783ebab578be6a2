"""A binary stream with a size limit."""

from typing import IO

PIECE = 1 << 24  # bytes that are read at once: between pieces a signal can stop the stage


class BoundedStream:
    """A binary stream that never reads beyond its size, so that a false length in a file allocates no memory."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self.left = stream, size

    def read(self, num: int) -> bytes:
        """Exactly `num` bytes; ValueError if fewer are left."""
        if num > PIECE:
            return bytes(self.read_buffer(num))
        self._take(num)
        return self._stream.read(num)

    def read_buffer(self, num: int) -> bytearray:
        """The same as a buffer that can be written to."""
        self._take(num)
        buffer = bytearray(num)
        for start in range(0, num, PIECE):
            piece = memoryview(buffer)[start : start + PIECE]
            if self._stream.readinto(piece) != len(piece):  # type: ignore[attr-defined]
                raise ValueError("the file became shorter while it was read")
        return buffer

    def readline(self) -> bytes:
        """The bytes up to and including the next newline, or up to the end."""
        line = self._stream.readline(self.left)
        self.left -= len(line)
        return line

    def _take(self, num: int) -> None:
        if not 0 <= num <= self.left:
            raise ValueError(f"{num} bytes are needed, but {self.left} are left: the file is truncated or damaged")
        self.left -= num
