"""What a Parquet column unpacks to, as the headers of its pages say it.

What the file's metadata says of it may be a lie, and whoever unpacks a page goes by its header. A
header is a struct in Thrift's compact protocol (parquet.thrift, PageHeader), followed by the page.
"""

from collections.abc import Iterator
from typing import Any, Final

UNPACKED: Final = 2
PACKED: Final = 3
"""Numbers of the fields that hold a page's sizes."""
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 7, 8, 12
_WHOLE: Final = (4, 5, 6)  # of 16, 32 and 64 bits, all of them written alike
_DEEPEST: Final = 8
_LONGEST_VARINT: Final = 10


def unpacked_bytes(content: bytes | memoryview, chunk: Any) -> int:
    """Return what a column chunk's pages unpack to; raise ValueError where they are none.

    ``chunk`` is pyarrow's metadata of it, which says where the pages lie, as Arrow reads that.
    """
    start, end = place_of(chunk, len(content))
    return sum(_sizes(content[start:end]))


def place_of(chunk: Any, nbytes: int) -> tuple[int, int]:
    """Return where a column chunk begins and ends in a file of so many bytes, as Arrow reads it.

    Raise ValueError where that is beyond the end.
    """
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    end = start + chunk.total_compressed_size
    if not 0 <= start <= end <= nbytes:
        raise ValueError("a column lies beyond the file's end")
    return start, end


def _sizes(pages: bytes | memoryview) -> Iterator[int]:
    """Yield the unpacked size of each page."""
    header = _Header(pages)
    while header.at < len(pages):
        fields = header.struct()
        unpacked, packed = (fields.get(number, -1) for number in (UNPACKED, PACKED))
        if unpacked < 0 or packed < 0:
            raise ValueError("the header of a page has no sizes")
        yield unpacked
        header.at += packed


class _Header:
    """Reads structs from bytes, of which only whole numbers are kept."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = content
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, int]:
        """Return the whole numbers of a struct by the number of their field."""
        if depth > _DEEPEST:
            raise ValueError("the header of a page is nested too deep")
        numbers: dict[int, int] = {}
        number = 0
        while (head := self._byte()) != 0:
            step, kind = head >> 4, head & 15
            number = number + step if step else self._whole()
            if kind in _WHOLE:
                numbers[number] = self._whole()
            else:
                self._skip(kind, depth)
        return numbers

    def _skip(self, kind: int, depth: int) -> None:
        if kind in (_TRUE, _FALSE):
            return
        if kind == _BYTE:
            self.at += 1
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            length = self._varint()
            self.at += length
        elif kind == _STRUCT:
            self.struct(depth + 1)
        else:  # lists, sets and maps are in no header
            raise ValueError("the header of a page is none")

    def _whole(self) -> int:
        zigzag = self._varint()
        return (zigzag >> 1) ^ -(zigzag & 1)

    def _varint(self) -> int:
        value = 0
        for place in range(_LONGEST_VARINT):
            byte = self._byte()
            value |= (byte & 127) << (7 * place)
            if byte < 128:
                return value
        raise ValueError("a number in the header of a page is too long")

    def _byte(self) -> int:
        if self.at >= len(self._content):
            raise ValueError("the header of a page is cut")
        self.at += 1
        return self._content[self.at - 1]
