"""Gathers blocks of a paged KV cache into one piece of memory, and scatters them back: one kernel for all layers."""

import torch
import triton
import triton.language as tl

_WORDS = 1024  # of a program
_WORD_BYTES = 8


@triton.jit  # type: ignore[untyped-decorator]
def _move(  # type: ignore[no-untyped-def]
    cache,
    blocks,
    images,
    layer_stride,
    block_stride,
    layer_words,
    image_stride,
    start,
    gather: tl.constexpr,
    words: tl.constexpr,
):
    image, layer, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    at = piece * words + tl.arange(0, words)
    inside = at < layer_words
    block = tl.load(blocks + image)
    paged = cache + layer.to(tl.int64) * layer_stride + block * block_stride + at
    whole = images + image.to(tl.int64) * image_stride + start + layer * layer_words + at
    if gather:
        tl.store(whole, tl.load(paged, inside), inside)
    else:
        tl.store(paged, tl.load(whole, inside), inside)


def fits(parts: list[torch.Tensor]) -> bool:
    """Whether these parts of a cache, [layers, blocks, bytes], are whole words, as the kernel moves them."""
    return all(part.shape[2] % _WORD_BYTES == 0 and part.data_ptr() % _WORD_BYTES == 0 for part in parts)


def move(parts: list[torch.Tensor], blocks: torch.Tensor, images: torch.Tensor, *, gather: bool) -> None:
    """Between the blocks (int64) of the cache and their images [blocks, bytes of a block], on the current stream."""
    start = 0
    words = images.view(torch.int64)
    for part in parts:
        cache = part.view(torch.int64)
        layers, _, layer_words = cache.shape
        grid = (len(blocks), layers, triton.cdiv(layer_words, _WORDS))
        _move[grid](
            cache,
            blocks,
            words,
            cache.stride(0),
            cache.stride(1),
            layer_words,
            words.stride(0),
            start,
            gather=gather,
            words=_WORDS,
        )
        start += layers * layer_words
