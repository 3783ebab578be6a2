"""A binary stream with a size limit."""

from typing import BinaryIO


class BoundedStream:
    """A binary stream that refuses to read beyond its size, so that no memory is allocated for false lengths."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self.left = stream, size

    def read(self, num: int) -> bytes:
        """Exactly `num` bytes; ValueError if fewer are left."""
        if num > self.left:
            raise ValueError(f"{num} bytes are needed, but {self.left} are left: the file is truncated or damaged")
        self.left -= num
        return self._stream.read(num)

    def readline(self) -> bytes:
        """Up to a newline or the end."""
        line = self._stream.readline(self.left)
        self.left -= len(line)
        return line
