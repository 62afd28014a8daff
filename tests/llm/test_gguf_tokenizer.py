"""The tokenizer of the real SmolLM2; the first run downloads it."""

import json
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer

from dynamo.llm.model_source import resolve_model

# Made once by transformers 5.19 with SmolLM2's own pre-tokenizer.
# fmt: off
GOLDEN_IDS = {
    "": [],
    "Hello, world!": [19556, 28, 905, 17],
    "What is the capital of France?": [1780, 314, 260, 3575, 282, 4649, 47],
    "It's 2024, and pi is 3.14159.": [
        1589, 506, 216, 34, 32, 34, 36, 28, 284, 16916, 314, 216, 35, 30, 33, 36, 33, 37, 41, 30,
    ],
    "a  12\n\n\t3": [81, 256, 33, 34, 14436, 35],
    "  leading and trailing  ": [216, 2899, 284, 35079, 256],
    "日本語のテキスト、中文 и русский": [
        23274, 115, 40993, 179, 120, 248, 26453, 11100, 224, 10391, 251, 10391, 134, 11100, 226, 29917, 28589,
        29184, 29972, 216, 9175, 14714, 9382, 39511, 7872, 24958,
    ],
    "naïve café — “quoted”…": [3546, 46494, 37366, 1841, 619, 385, 5036, 573, 2829],
    "👩\u200d👩\u200d👧 🇫🇷 🙂": [
        10813, 235, 119, 321, 231, 10813, 235, 119, 321, 231, 10813, 235, 117, 15107, 225, 121, 10813, 225, 132,
        47526,
    ],
    "½ cup, x², №٣ and \uff14\uff12": [
        16738, 7118, 28, 1792, 19133, 28, 4636, 222, 240, 164, 113, 284, 216, 8083, 238, 8083, 236,
    ],
    "<|im_start|>user\nHi<|im_end|>\n": [1, 4093, 198, 26843, 2, 198],
    "a<|im_end|>b <|endoftext|> <jupyter_code>": [81, 2, 82, 216, 0, 216, 13],
    "def f(x1):\r\n    return x1**10\r\n": [1604, 275, 24, 104, 33, 727, 3136, 1003, 1792, 33, 828, 33, 32, 2738],
    "\x00\x07\ufeff\u200b\xa0\u3000": [190, 195, 186, 136, 140, 321, 229, 15442, 12109, 218],
}
# fmt: on

_TOKENIZE_BY_TRANSFORMERS = """
import json, sys
from transformers import AutoTokenizer
folder, options = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder, **options)
texts = json.load(sys.stdin)
chat = [{"role": "user", "content": "Hi"}]
print(json.dumps({
    "ids": [tokenizer.encode(text) for text in texts],
    "special": [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token],
    "chat": tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False),
}))
"""


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return resolve_model("smollm2", weights=False)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


def various_texts() -> list[str]:
    pieces = [
        *GOLDEN_IDS,
        *" \t\n\r\u00a0\u3000",
        *"0123456789²½٣",
        "'s",
        "don't",
        "e\u0301",
        "ß",
        "你好",
        "🙂",
        "!?",
        "Zürich",
    ]
    source = random.Random(20)
    return pieces + ["".join(source.choices(pieces, k=source.randint(1, 12))) for _ in range(500)]


def needs_separate_digits(text: str) -> bool:
    """Whether white space and the numeral after it could be merged."""
    triples = zip("x" + text, text, text[1:], strict=False)
    return any(b.isspace() and c.isnumeric() and (a.isspace() or not c.isascii()) for a, b, c in triples)


class Theirs(msgspec.Struct):
    ids: list[list[int]]
    special: list[str]
    chat: str


def tokenize_by_transformers(folder: Path, texts: list[str], **options: str) -> Theirs:
    command = [sys.executable, "-c", _TOKENIZE_BY_TRANSFORMERS, str(folder), json.dumps(options)]
    done = subprocess.run(command, input=json.dumps(texts), check=True, timeout=100, capture_output=True, text=True)
    return msgspec.json.decode(done.stdout, type=Theirs)


@pytest.mark.parametrize("text", GOLDEN_IDS)
def test_golden_ids(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert ids == GOLDEN_IDS[text]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_are_skipped_on_request(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>a<|im_end|><jupyter_code>").ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"


@pytest.mark.vllm
def test_transformers_reads_the_directory_as_we_do(smollm2: Path, tokenizer: Tokenizer) -> None:
    texts = various_texts()
    theirs = tokenize_by_transformers(smollm2, texts)
    assert theirs.ids == [tokenizer.encode(text).ids for text in texts]
    assert theirs.special == ["<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>"]
    assert theirs.chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.vllm
def test_equal_to_the_conversion_by_transformers(smollm2: Path, tokenizer: Tokenizer) -> None:
    """But for what it gets wrong: it doesn't know that SmolLM2 separates digits from the white space before them."""
    texts = [text for text in various_texts() if not needs_separate_digits(text)]
    assert len(texts) > 200
    gguf = next(smollm2.parent.glob("*.gguf"))
    theirs = tokenize_by_transformers(gguf.parent, texts, gguf_file=gguf.name)
    assert theirs.ids == [tokenizer.encode(text).ids for text in texts]
