"""Where the thought spans (`<bot>`, c x `<latent>`, `<eot>`) of a batch of token ids are."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ThoughtSpan:
    """One thought span per row: the column of its `<bot>`, and how many latents follow.

    `columns` is one number where every row has its span in the same place, else one number per row.
    """

    columns: int | list[int]
    num_latents: int

    @property
    def is_aligned(self) -> bool:
        return isinstance(self.columns, int)

    @property
    def bot(self) -> int:
        """The column of `<bot>`, where it is one for all rows.

        Raises:
            ValueError: where it is not.
        """
        if not isinstance(self.columns, int):
            raise ValueError(f"the thought spans start in different columns: {self.columns}")
        return self.columns


def starts_of_spans(input_ids: torch.Tensor, config) -> torch.Tensor:
    """True where a `<bot>` is followed by a `<latent>`; `(batch, length)` -> `(batch, length - 1)`, boolean."""
    return (input_ids[:, :-1] == config.bot_token_id) & (input_ids[:, 1:] == config.latent_token_id)


def find_thought_spans(input_ids: torch.Tensor, config, has_past: bool = False) -> list[ThoughtSpan]:
    """The thought spans of a batch, in order; empty where it has none. Reads the ids once on the host.

    Args:
        input_ids: `(batch, length)`.
        config: holds `bot_token_id`, `eot_token_id` and `latent_token_id`.
        has_past: the ids continue a cached sequence. An unfinished span is then a candidate that some decoding
            strategy proposes, not a prompt, and stays as it is.

    Raises:
        ValueError: if rows differ in how many spans or latents they have, or if a span is cut off.
    """
    if config.bot_token_id is None or config.latent_token_id is None or input_ids.shape[1] < 2:
        return []
    starts = starts_of_spans(input_ids, config).cpu()
    if not starts.any():
        return []
    rows = input_ids.tolist()
    # spans[row] = [(column, latents), ...]
    spans: list[list[tuple[int, int]]] = [[] for _ in rows]
    for row, column in starts.nonzero().tolist():
        end = column + 1
        while end < len(rows[row]) and rows[row][end] == config.latent_token_id:
            end += 1
        if end < len(rows[row]) and rows[row][end] == config.eot_token_id:
            spans[row].append((column, end - column - 1))
        elif not has_past:
            raise ValueError(
                f"the thought span at row {row}, column {column} is cut off: <bot> and the latents must be followed "
                "by <eot> in the same call"
            )
    counts = [len(found) for found in spans]
    if len(set(counts)) > 1:
        odd = next(row for row, count in enumerate(counts) if count != counts[0])
        raise ValueError(
            f"ragged thought spans: row 0 has {counts[0]}, row {odd} has {counts[odd]}; "
            "every row of a batch needs the same number of spans"
        )
    found = []
    for nth in zip(*spans, strict=True):
        columns = [column for column, _ in nth]
        lengths = [length for _, length in nth]
        if len(set(lengths)) > 1:
            odd = next(row for row, length in enumerate(lengths) if length != lengths[0])
            raise ValueError(
                f"ragged thought spans: row 0 has {lengths[0]} latents, row {odd} has {lengths[odd]}; "
                "every row of a batch needs the same number of latents"
            )
        found.append(ThoughtSpan(columns[0] if len(set(columns)) == 1 else columns, lengths[0]))
    if len(found) > 1 and not all(span.is_aligned for span in found):
        raise ValueError("several thought spans per row must stand in the same columns in every row")
    return found


@dataclass(frozen=True)
class Alignment:
    """How rows whose spans start in different columns are shifted right until the spans line up, and back.

    Args:
        span: the span in the aligned rows.
        source: `(batch, aligned length)`: the column that each aligned column comes from.
        exists: `(batch, aligned length)`: whether there is such a column.
        back: `(batch, length)`: the aligned column that each column went to.
    """

    span: ThoughtSpan
    source: torch.Tensor
    exists: torch.Tensor
    back: torch.Tensor

    @classmethod
    def of(cls, span: ThoughtSpan, length: int, device: torch.device) -> "Alignment":
        columns = [span.columns] if isinstance(span.columns, int) else span.columns
        bots = torch.tensor(columns, device=device)
        shift = (bots.max() - bots)[:, None]
        source = torch.arange(length + max(columns) - min(columns), device=device) - shift
        return cls(
            span=ThoughtSpan(max(columns), span.num_latents),
            source=source.clamp(0, length - 1),
            exists=(source >= 0) & (source < length),
            back=torch.arange(length, device=device) + shift,
        )
