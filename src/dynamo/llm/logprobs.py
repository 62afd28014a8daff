"""Log probabilities: from token ids to texts, and into OpenAI's two shapes."""

from collections.abc import Sequence

from dynamo.llm.sequence import ScoredToken, TokenScore
from dynamo.llm.tokenizer import Tokenizer
from dynamo.protocols.generation import Logprob, TokenLogprobs
from dynamo.protocols.openai.responses import ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, TopLogprob
from dynamo.tokens import TokenArray

LOGPROB_MIN = -9999.0  # JSON has no infinity


def score(tokenizer: Tokenizer, entry: TokenLogprobs, top: int, offset: int) -> ScoredToken:
    """`entry` in words, with its `top` likeliest candidates."""
    chosen = _score(tokenizer, entry.chosen)
    return ScoredToken(chosen, [_score(tokenizer, candidate) for candidate in entry.top[:top]], offset)


def score_prompt(
    tokenizer: Tokenizer, token_ids: TokenArray, entries: Sequence[TokenLogprobs | None], top: int, text: str
) -> list[ScoredToken]:
    """The tokens of an echoed prompt, whose text is `text`; `entries` has one per token, None for the first."""
    decoder = tokenizer.decoder(special_tokens=True)
    offsets, length = [], 0
    for token_id in token_ids:
        offsets.append(length)
        length += len(decoder.push([token_id]))
    # The tokenizer may have put a BOS before the text: it is in the tokens, but not in the text.
    extra = max(length + len(decoder.flush()) - len(text), 0)
    scored = []
    for token_id, entry, offset in zip(token_ids, entries, offsets, strict=True):
        place = max(offset - extra, 0)
        if entry is None:
            raw = tokenizer.token_bytes(token_id)
            scored.append(ScoredToken(TokenScore(_text(raw), raw, None), [], place))
        else:
            scored.append(score(tokenizer, entry, top, place))
    return scored


def chat_logprobs(tokens: Sequence[ScoredToken]) -> ChatLogprobs:
    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                token=token.chosen.text,
                logprob=_finite(token.chosen.logprob),
                bytes=list(token.chosen.raw),
                top_logprobs=[
                    TopLogprob(token=other.text, logprob=_finite(other.logprob), bytes=list(other.raw))
                    for other in token.top
                ],
            )
            for token in tokens
        ]
    )


def completion_logprobs(tokens: Sequence[ScoredToken]) -> CompletionLogprobs:
    """The chosen token is among the top ones even where it is none of the likeliest."""
    result = CompletionLogprobs()
    for token in tokens:
        chosen = token.chosen
        result.tokens.append(chosen.text)
        result.text_offset.append(token.offset)
        if chosen.logprob is None:
            result.token_logprobs.append(None)
            result.top_logprobs.append(None)
            continue
        result.token_logprobs.append(_finite(chosen.logprob))
        candidates: dict[str, float] = {}
        for candidate in (*token.top, chosen):  # parts of characters may look alike: the likeliest one counts
            candidates.setdefault(candidate.text, _finite(candidate.logprob))
        result.top_logprobs.append(candidates)
    return result


def _score(tokenizer: Tokenizer, logprob: Logprob) -> TokenScore:
    raw = tokenizer.token_bytes(logprob.token_id)
    return TokenScore(_text(raw), raw, logprob.logprob)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _finite(logprob: float | None) -> float:
    return LOGPROB_MIN if logprob is None or not logprob > LOGPROB_MIN else logprob


def scored_chat(logprobs: ChatLogprobs) -> list[ScoredToken]:
    """The way back from chat's shape, which has no offsets."""
    return [
        ScoredToken(_from_chat(token), [_from_chat(other) for other in token.top_logprobs], 0)
        for token in logprobs.content
    ]


def scored_completion(logprobs: CompletionLogprobs) -> list[ScoredToken]:
    """The way back from the shape of completions; ValueError for lists of different length."""
    rows = zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset, strict=True)
    return [
        ScoredToken(
            TokenScore(token, token.encode(), logprob),
            [TokenScore(text, text.encode(), value) for text, value in (top or {}).items()],
            offset,
        )
        for token, logprob, top, offset in rows
    ]


def _from_chat(token: TopLogprob) -> TokenScore:
    return TokenScore(token.token, token.token.encode() if token.bytes is None else bytes(token.bytes), token.logprob)
