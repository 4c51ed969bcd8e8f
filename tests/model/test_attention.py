"""The implementations of attention over packed rows agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tolerance
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lmsys_unsloth.model import attention, cpu_attention
from lmsys_unsloth.model.attention import (
    choose_attention,
    flex,
    grouped,
    has_flash_attention,
    row_by_row,
    varlen,
)
from lmsys_unsloth.model.packing import MIN_POSITIONS, PackedRows

LENGTHS = (5, 17, 1, 30)
CASES = [(None, None), (None, 6), (20.0, None), (20.0, 6), (20.0, 300)]
HEADS, GROUPS, DIMENSIONS = 4, 2, 16
SCALE = 0.7


def packed(lengths: tuple[int, ...] = LENGTHS, device: str = "cpu") -> PackedRows:
    """Rows all of whose positions have a query."""
    return PackedRows(lengths, lengths, torch.device(device))


def random_qkv(tokens: int = sum(LENGTHS)) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(tokens, heads, DIMENSIONS) for heads in (HEADS, GROUPS, GROUPS)]


def assert_close(found: Tensor, expected: Tensor, *, longest: int = max(LENGTHS), passes: int = 1) -> None:
    """Compare up to the rounding of three sums: logits, the softmax's denominator and the weighted values."""
    scale = float(expected.abs().max())
    atol = tolerance(terms=max(longest, DIMENSIONS), products=3, passes=passes, scale=scale)
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def by_definition(
    q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None, window: int | None
) -> Tensor:
    """Over all packed positions at once, each pair of them looked at by itself."""
    rows = [row for row, length in enumerate(LENGTHS) for _ in range(length)]
    out = torch.zeros_like(q)
    for i in range(len(rows)):
        seen = [j for j in range(i + 1) if rows[j] == rows[i] and (window is None or i - j < window)]
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            logits = k[seen, group] @ q[i, head] * scale
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            out[i, head] = logits.softmax(0) @ v[seen, group]
    return out


@pytest.mark.numeric
@pytest.mark.parametrize(("cap", "window"), CASES)
def test_row_by_row_is_attention_by_its_definition(cap: float | None, window: int | None) -> None:
    with torch.no_grad():
        q, k, v = random_qkv()
        expected = by_definition(q, k, v, SCALE, cap, window)
        assert_close(row_by_row(q, k, v, packed(), SCALE, cap, window), expected)


@pytest.mark.numeric
@pytest.mark.parametrize(("cap", "window"), CASES)
def test_flex_equals_row_by_row(cap: float | None, window: int | None) -> None:
    with torch.no_grad():
        inputs = random_qkv()
        one, other = (attend(*inputs, packed(), SCALE, cap, window) for attend in (row_by_row, flex))
    assert_close(one, other)


@pytest.mark.numeric
@pytest.mark.parametrize("lengths", [(1,), (64, 65), (7, 200, 8, 250, 9, 129), (300, 2)], ids=str)
def test_groups_of_rows_in_bfloat16_have_the_results_and_gradients_of_float32(
    lengths: tuple[int, ...],
) -> None:
    rows = packed(lengths)
    rounded = [
        x.bfloat16() for x in (*random_qkv(sum(lengths)), torch.randn(sum(lengths), HEADS, DIMENSIONS))
    ]

    def results(attend: attention.Attention, dtype: torch.dtype) -> list[Tensor]:
        *inputs, up = (x.to(dtype) for x in rounded)
        out = attend(*(x.requires_grad_() for x in inputs), rows, SCALE, None, None)
        return [out.detach(), *torch.autograd.grad(out, inputs, up)]

    assert choose_attention(rows, torch.bfloat16, None) is grouped
    expected = results(row_by_row, torch.float32)
    for one, reference in zip(results(grouped, torch.float32), expected, strict=True):
        assert_close(one, reference, longest=max(lengths), passes=2)
    # Sums are accumulated in float32; what remains is the rounding of logits, weights and results.
    rounding = tolerance(torch.bfloat16, terms=1, products=1)
    for one, reference in zip(results(grouped, torch.bfloat16), expected, strict=True):
        assert (one.float() - reference).norm() <= rounding * reference.norm() + 1e-6


def test_rows_are_grouped_while_padding_costs_less_than_another_group() -> None:
    lengths = (90, 1000, 80, 950, 300)
    layout = cpu_attention.lay_out(lengths, HEADS, GROUPS)
    assert [group[1:] for group in layout.groups] == [(1, 1000), (1, 950), (1, 300), (2, 90)]
    assert len(layout.padding) == GROUPS * 10
    packed_order = torch.arange(sum(lengths) * GROUPS)
    assert torch.equal(layout.source[layout.target], packed_order)
    crowd = cpu_attention.lay_out((64,) * 1000, HEADS, GROUPS)
    assert {HEADS * rows * 64 * 64 for _, rows, _ in crowd.groups[:-1]} == {cpu_attention.MAX_LOGITS}


@pytest.mark.numeric
@pytest.mark.parametrize(("cap", "window"), CASES)
@pytest.mark.parametrize("count", [1, 3])
def test_queries_at_the_last_positions_only_give_the_same_results_there(
    cap: float | None, window: int | None, count: int
) -> None:
    rows = packed((5, 17, 3, 30))
    q, k, v = random_qkv(rows.n_tokens)
    chosen, restricted = rows.select_last(count)
    ends = [5, 22, 25, 55]
    assert chosen.tolist() == [end - back for end in ends for back in range(count, 0, -1)]
    everywhere = row_by_row(q, k, v, rows, SCALE, cap, window)
    at_the_end = row_by_row(q[chosen], k, v, restricted, SCALE, cap, window)
    assert_close(at_the_end, everywhere[chosen])


@pytest.mark.numeric
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("cap", "window"), CASES)
def test_flex_has_the_gradients_of_row_by_row(
    cap: float | None, window: int | None, checkpointed: bool, flex_as_on_cuda: list[Any]
) -> None:
    for lengths in (LENGTHS, (300, 1, 200)):
        rows = packed(lengths)
        inputs, up = random_qkv(rows.n_tokens), torch.randn(rows.n_tokens, HEADS, DIMENSIONS)

        def run(attend: Any, inputs: Any = inputs, rows: Any = rows, up: Tensor = up) -> list[Tensor]:
            leaves = [x.clone().requires_grad_() for x in inputs]
            settings = (*leaves, rows, SCALE, cap, window)
            out = checkpoint(attend, *settings, use_reentrant=False) if checkpointed else attend(*settings)
            return [out.detach(), *torch.autograd.grad(out, leaves, up)]

        for one, other in zip(run(flex), run(row_by_row), strict=True):
            assert_close(one, other, longest=max(lengths), passes=2)


def test_flex_is_traced_once_for_batches_of_every_length(flex_as_on_cuda: list[Any]) -> None:
    for lengths in (LENGTHS, (200, 77), (128, 128), (1,), (300, 600)):
        flex(*random_qkv(sum(lengths)), packed(lengths), SCALE, 20.0, None)
    assert len(flex_as_on_cuda) == 1
    assert not [x for x in flex_as_on_cuda[0] if isinstance(x, Tensor) and x.dtype == torch.float64], (
        "a cap or scale that is a variable: FlexAttention's kernels can't be built around it"
    )


def test_layers_with_the_same_window_share_a_mask() -> None:
    rows = packed()
    assert rows.block_mask(6) is rows.block_mask(6) is not rows.block_mask(None)
    q, k, v = random_qkv()
    with torch.no_grad():
        flex(q, k, v, rows, SCALE, 20.0, 300)
    assert set(rows._masks) == {6, None}, "a window wider than every row needs no mask of its own"


def test_positions_row_ids_and_offsets() -> None:
    rows = packed((2, 3))
    assert rows.positions.tolist() == [0, 1, 0, 1, 2] and rows.row_ids.tolist() == [0, 0, 1, 1, 1]
    assert rows.offsets.tolist() == [0, 2, 5] and rows.offsets.dtype == torch.int32


def test_choice_by_device_and_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, half = packed(device="cuda:0"), torch.bfloat16
    capability = {0: (9, 0), 1: (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[device.index])
    monkeypatch.setattr(attention, "has_flash_attention", has_flash_attention.__wrapped__)
    assert (
        choose_attention(packed(), half, None) is grouped
        and choose_attention(packed(), half, 50.0) is row_by_row
    )
    assert choose_attention(packed(), torch.float32, None) is row_by_row
    assert choose_attention(cuda, half, None) is varlen and choose_attention(cuda, half, 50.0) is flex
    assert choose_attention(cuda, torch.float32, None) is row_by_row, "flash attention has no float32"
    slots = PackedRows(LENGTHS, (1,) * len(LENGTHS), torch.device("cuda", 0))
    assert choose_attention(slots, half, None) is choose_attention(slots, half, 50.0) is row_by_row
    older = packed(device="cuda:1")
    assert choose_attention(older, torch.float16, None) is row_by_row, "no flash attention before Ampere"
    with pytest.raises(ValueError, match="varlen attention can't cap; use flex"):
        varlen(*random_qkv(), packed(), SCALE, 50.0, None)


@pytest.mark.numeric
@pytest.mark.parametrize("version", ["2.10", "2.11", "2.13"])
@pytest.mark.parametrize("window", [None, 6])
def test_varlen_calls_each_version_of_torch_correctly(
    version: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself needs CUDA; a function that computes the same takes its place."""

    def attend(q, k, v, bounds, scale, causal, size):
        assert bounds.tolist() == [0, *torch.tensor(LENGTHS).cumsum(0).tolist()] and causal
        assert (q.shape[1], k.shape[1], v.shape[1]) == (HEADS, GROUPS, GROUPS), "keys stay grouped"
        return row_by_row(q, k, v, packed(), scale or q.shape[-1] ** -0.5, None, size)

    def oldest(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        return attend(query, key, value, cu_seq_q, None, is_causal, None)

    def middle(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        size = None if window_size[0] < 0 else window_size[0] + 1
        return attend(query, key, value, cu_seq_q, scale, window_size[1] == 0, size)

    def newest(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
        scale=None, window_size=(-1, -1), enable_gqa=False,
    ):  # fmt: skip
        assert enable_gqa
        size = None if window_size[0] < 0 else window_size[0] + 1
        return attend(query, key, value, cu_seq_q, scale, window_size[1] == 0, size)

    import torch.nn.attention.varlen as module

    chosen = {"2.10": oldest, "2.11": middle, "2.13": newest}[version]
    monkeypatch.setattr(module, "varlen_attn", chosen)
    with torch.no_grad():
        q, k, v = random_qkv()
        expected = row_by_row(q, k, v, packed(), SCALE, None, window)
        found = varlen(q, k, v, packed(), SCALE, None, window)
    assert_close(found, expected)


@pytest.mark.parametrize("window", [None, 1, 6, 128, 200, 400])
@pytest.mark.parametrize("lengths", [(5, 17), (300, 1, 77, 600), (128, 128, 256), (640,), (1,) * 300])
def test_block_masks_equal_those_that_pytorch_makes_of_every_pair(
    lengths: tuple[int, ...], window: int | None
) -> None:
    from torch.nn.attention.flex_attention import create_block_mask, create_mask

    made = packed(lengths).block_mask(window)
    size = max(sum(lengths), MIN_POSITIONS)
    reference = create_block_mask(made.mask_mod, None, None, size, size, device="cpu")
    assert made.shape == reference.shape and made.seq_lengths == reference.seq_lengths
    assert torch.equal(made.to_dense(), reference.to_dense())
    for kind in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(made, kind), getattr(reference, kind)), kind
    rows = [row for row, length in enumerate((*lengths, size - sum(lengths))) for _ in range(length)]
    visible = create_mask(made.mask_mod, None, None, size, size, device="cpu")[0, 0]
    i, j = torch.randint(size, (2, 500))
    for query, key, found in zip(i.tolist(), j.tolist(), visible[i, j].tolist(), strict=True):
        near = window is None or query - key < window
        assert found == (rows[query] == rows[key] and key <= query and near)
