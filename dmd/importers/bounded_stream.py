"""A binary stream with a size limit."""

from typing import BinaryIO


class BoundedStream:
    """A binary stream that never reads beyond its size, so that a false length in a file allocates no memory."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self.left = stream, size

    def read(self, num: int) -> bytes:
        """Exactly `num` bytes; ValueError if fewer are left."""
        if num > self.left:
            raise ValueError(f"{num} bytes are needed, but {self.left} are left: the file is truncated or damaged")
        self.left -= num
        return self._stream.read(num)

    def readline(self) -> bytes:
        """The bytes up to and including the next newline, or up to the end."""
        line = self._stream.readline(self.left)
        self.left -= len(line)
        return line
