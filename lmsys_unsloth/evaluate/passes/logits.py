"""Logits of encoded rows, batch by batch."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from lmsys_unsloth.core import ranks
from lmsys_unsloth.evaluate.passes.partial_scores import ScoredBatches
from lmsys_unsloth.model import memory
from lmsys_unsloth.model.answer_head import answer_head, form_offsets
from lmsys_unsloth.model.batch import Batch, by_length, collate, share_out, target
from lmsys_unsloth.model.decoder import Decoder
from lmsys_unsloth.model.parity import FallbackDecoder
from lmsys_unsloth.prompting.encoded_rows import token_counts
from lmsys_unsloth.prompting.encoding import EncodedRow

log = logging.getLogger(__name__)


def answer_logits(
    decoder: Decoder,
    rows: Sequence[EncodedRow],
    tokens_per_batch: int,
    scored: ScoredBatches | None = None,
    numbers: Sequence[int] | None = None,
    after_batch: Callable[[int, int, bool], object] = lambda rows, tokens, computed: None,
) -> Tensor:
    """Compute the logits of the three or four answers in batches of similar length.

    A batch has at most ``tokens_per_batch`` tokens with padding. The logits, float32 ``[rows, answers]``, are
    in input order, and on the CPU. If the fast decoder fails, this batch and all later ones are computed by
    the reference decoder. Each rank computes a share of the rows, and gets the logits of all.

    Args:
        decoder: decoder whose model has a head.
        rows: encoded rows.
        tokens_per_batch: maximum tokens of a batch.
        scored: batches that were scored before, and where those that are computed now are written.
        numbers: number of each row in ``scored``; without, rows are counted.
        after_batch: called with the numbers of rows and of tokens of each batch of this rank, and whether it
            was computed now.
    """
    model = decoder.model
    in_use = decoder if isinstance(decoder, FallbackDecoder) else FallbackDecoder(decoder)
    was_training = model.training
    model.eval()
    group, freed = ranks.current(), memory.Releaser()
    lengths, named = token_counts(rows), range(len(rows)) if numbers is None else numbers
    own = own_share(lengths)
    result = torch.zeros(len(rows), len(answer_head(model).answer_ids))
    sorted_batches = by_length([lengths[row] for row in own], tokens_per_batch)
    batches = [[own[i] for i in batch] for batch in sorted_batches]
    missing = []
    for chosen in batches:
        before = torch.empty(len(chosen), result.shape[1])
        if scored is not None and scored.restore([named[row] for row in chosen], before):
            result[chosen] = before
            after_batch(len(chosen), sum(lengths[row] for row in chosen), False)
        else:
            missing.append(chosen)
    with torch.no_grad():
        for chosen, batch in _collated_ahead(model, rows, missing):
            logits = in_use.run(functools.partial(_batch_logits, in_use, batch)).cpu()
            result[chosen] = logits
            if scored is not None:
                scored.append([named[row] for row in chosen], logits)
            after_batch(len(chosen), sum(batch.lengths), True)
            freed.release()
    model.train(was_training)
    group.add(result)  # every row is zero on all ranks but one
    return result


def own_share(lengths: Sequence[int]) -> list[int]:
    """Positions of the rows that this rank scores, by their numbers of tokens."""
    group = ranks.current()
    return share_out(lengths, group.size)[group.rank]


def _collated_ahead(
    model: nn.Module, rows: Sequence[EncodedRow], batches: Sequence[list[int]]
) -> Iterator[tuple[list[int], Batch]]:
    """Yield every batch; a thread collates the next one, and copies it to the device, meanwhile."""
    device = next(model.parameters()).device

    def collated(chosen: list[int]) -> Batch:
        ids = [rows[row].input_ids for row in chosen]
        offsets = form_offsets(answer_head(model), [rows[row] for row in chosen])
        return collate(ids, [target(None, None)] * len(chosen), offsets=offsets).to(device)

    with ThreadPoolExecutor(max_workers=1) as thread:
        following = [thread.submit(collated, chosen) for chosen in batches[:1]]
        for chosen, after in itertools.zip_longest(batches, batches[1:]):
            batch = following.pop().result()
            if after is not None:
                following.append(thread.submit(collated, after))
            yield chosen, batch


def _batch_logits(decoder: Decoder, batch: Batch) -> Tensor:
    """Logits of a batch; the batch is split in half as often as memory demands."""
    try:
        return answer_head(decoder.model).logits(decoder, batch)
    except RuntimeError as error:
        if len(batch) == 1 or not memory.is_out_of_memory(error):
            raise
    parts = batch.split(batch.padded_tokens // 2)
    log.warning(
        "out of memory with %d tokens in a batch: scored in %d parts", batch.padded_tokens, len(parts)
    )
    return torch.cat([_batch_logits(decoder, part) for part in parts])
