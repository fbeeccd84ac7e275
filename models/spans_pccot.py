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


@dataclass(frozen=True)
class FoundSpan:
    """A thought span in a list of ids; one that is cut off lacks its `<eot>`."""

    bot: int
    num_latents: int
    is_whole: bool

    @property
    def end(self) -> int:
        """The column after the last latent."""
        return self.bot + 1 + self.num_latents


def spans_of_row(ids: list[int], config) -> list[FoundSpan]:
    """Where the thought spans of a list are, in order: each `<bot>` that a latent follows."""
    found, bot = [], -1
    for _ in range(ids.count(config.bot_token_id)):
        bot = ids.index(config.bot_token_id, bot + 1)
        end = bot + 1
        while end < len(ids) and ids[end] == config.latent_token_id:
            end += 1
        if end > bot + 1:
            found.append(FoundSpan(bot, end - bot - 1, ids[end : end + 1] == [config.eot_token_id]))
    return found


def latents_of_spans(input_ids: torch.Tensor, config, starts: torch.Tensor | None = None) -> torch.Tensor:
    """Where the thought spans of a tensor are: True for latents that follow a `<bot>`; `(batch, length)`, boolean.

    A latent anywhere else is a token that a prompt holds or a model wrote. Reads nothing on the host.

    Args:
        input_ids: `(batch, length)`.
        starts: of a packed row `(1, tokens)`: where each request begins, and the end of the last one, `(requests + 1,)`.
    """
    is_latent = input_ids == config.latent_token_id
    columns = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    before = torch.where(is_latent, -1, columns).cummax(dim=1).values  # the last column that holds no latent
    opener = before.clamp(min=0)
    found = is_latent & (before >= 0) & (input_ids.gather(1, opener) == config.bot_token_id)
    if starts is None:
        return found
    request = torch.searchsorted(starts, columns.to(starts.dtype), right=True)
    return found & (request == request.gather(1, opener))


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
    spans = [spans_of_row(row, config) for row in input_ids.tolist()]
    for row, cut in ((row, span) for row, found in enumerate(spans) for span in found if not span.is_whole):
        if not has_past:
            raise ValueError(
                f"the thought span at row {row}, column {cut.bot} is cut off: <bot> and the latents must be followed "
                "by <eot> in the same call"
            )
    spans = [[span for span in found if span.is_whole] for found in spans]
    counts = [len(found) for found in spans]
    if len(set(counts)) > 1:
        odd = next(row for row, count in enumerate(counts) if count != counts[0])
        raise ValueError(
            f"ragged thought spans: row 0 has {counts[0]}, row {odd} has {counts[odd]}; "
            "every row of a batch needs the same number of spans"
        )
    found = []
    for nth in zip(*spans, strict=True):
        columns, lengths = [span.bot for span in nth], [span.num_latents for span in nth]
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
