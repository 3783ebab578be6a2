"""A binary stream with a size limit."""

from typing import IO


class BoundedStream:
    """A binary stream that never reads beyond its size, so that a false length in a file allocates no memory."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self.left = stream, size

    def read(self, num: int) -> bytes:
        """Exactly `num` bytes; ValueError if fewer are left."""
        self._take(num)
        return self._stream.read(num)

    def read_buffer(self, num: int) -> bytearray:
        """The same as a buffer that can be written to."""
        self._take(num)
        buffer = bytearray(num)
        if self._stream.readinto(buffer) != num:  # type: ignore[attr-defined]
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
