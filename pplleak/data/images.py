"""Images with their labels, the rows of a table, or sentences: what a reader returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pplleak.data.columns import Columns
from pplleak.data.vocabulary import Vocabulary
from pplleak.errors import BadInput


@dataclass(frozen=True, eq=False)
class Images:
    """x (N, channels, rows, cols) in [0, 1], float32; y (N,); classes: their names.

    Of a table, x (N, width) is the encoding of its records, and `columns` says what it encodes; of text, x (N, length)
    are the token ids of its sentences, and `vocabulary` says what they stand for.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    columns: Columns | None = None
    vocabulary: Vocabulary | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def batch(self, index: int, size: int = 1) -> tuple[Tensor, Tensor]:
        """Images index … index + size − 1 and their labels; raises BadInput where there are not so many."""
        if not 0 <= index <= len(self) - size:
            what = "data hold images" if self.columns is None else "private part of the table holds rows"
            what = "private part of the text holds sentences" if self.vocabulary is not None else what
            raise BadInput(f"index {index} is out of range: the {what} 0 to {len(self) - 1}"
                           + (f", and the batch takes {size}" if size > 1 else ""))  # fmt: skip
        return self.x[index : index + size], self.y[index : index + size]
