"""Training a vocabulary: a SentencePiece unigram model, written as PLaMo rows.

The rows of a trained vocabulary:

* 0 to 4: `<|plamo:unk|>`, `<|plamo:bos|>`, `<|plamo:eos|>`, `<|plamo:pad|>`, `<|plamo:op|>`, as published;
* 5 and 6: reserved CONTROL rows, `<|plamo:reserved5|>` and `<|plamo:reserved6|>` (the published names are not known);
* 7 to 10: space, ideographic space, tab and newline, NORMAL; newline is 10 as in the published file;
* 11 to 266: the 256 BYTE rows;
* the rest: NORMAL tokens, most likely first.
"""

from __future__ import annotations

import heapq
import io
import random
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from plamo2_jax.errors import PlamoError
from plamo2_jax.progress import tqdm
from plamo2_jax.tokenizer.rows import BYTE, CONTROL, NORMAL, UNKNOWN
from plamo2_jax.tokenizer.tokenizer import BOS, EOS, OP, PAD, UNK, Tokenizer
from plamo2_jax.validation import require

CONTROL_ROWS = (BOS, EOS, PAD, OP, "<|plamo:reserved5|>", "<|plamo:reserved6|>")
WHITESPACE = (" ", "\u3000", "\t", "\n")
FIRST_TRAINED_ROW = 1 + len(CONTROL_ROWS) + len(WHITESPACE) + 256

SPACE = "\u2581"  # SentencePiece's symbol for a space
# U+2581 would become a space; U+2585 and NUL make SentencePiece drop the whole sentence.
UNTRAINABLE = re.compile("[\u2581\u2585\0]")
SENTENCE_CHARS = 1000
UNIT_CHARS = 20_000
SPARE_PIECES = 64


@dataclass(frozen=True)
class VocabularyOptions:
    """Settings of the training. The same texts and settings give the same file.

    Attributes:
        vocab_size: Total number of rows, including control, byte and white space rows.
        sample_bytes: UTF-8 bytes of text to train on. Longer input is sampled evenly by documents.
        seed: Random seed of the sampling.
        character_coverage: Share of the characters in the sample, weighted by frequency, that get their own row; the rest is spelled in
            bytes. A lower value leaves more rows for longer tokens, but rare characters then take three or four ids.
        max_token_chars: Length of the longest token in characters.
        cross_spaces: Whether tokens may contain several words and the spaces between them.
        split_digits: Whether every digit is a separate token.
        seed_pieces: Number of initial candidates, as a multiple of vocab_size. Training time grows with it.
    """

    vocab_size: int = 8192
    sample_bytes: int = 4_000_000
    seed: int = 0
    character_coverage: float = 0.9995
    max_token_chars: int = 16
    cross_spaces: bool = True
    split_digits: bool = False
    seed_pieces: int = 8

    def __post_init__(self):
        rows = f"{FIRST_TRAINED_ROW + 1} to 1000000"
        require(self, "vocab_size", FIRST_TRAINED_ROW < self.vocab_size <= 1_000_000, rows)
        require(self, "sample_bytes", self.sample_bytes >= 10_000, "at least 10000")
        require(self, "character_coverage", 0.9 <= self.character_coverage <= 1.0, "0.9 to 1")
        require(self, "max_token_chars", 1 <= self.max_token_chars <= 512, "1 to 512")
        require(self, "seed_pieces", 2 <= self.seed_pieces <= 100, "2 to 100")


def train_tokenizer(
    texts: Iterable[str], options: VocabularyOptions = VocabularyOptions(), *, progress: bool = True
) -> Tokenizer:
    """Train a vocabulary (unigram language model, Kudo, arXiv:1804.10959) on documents.

    White space is not normalized, added or removed, and newlines may be part of tokens. So the scores hold for the text that the encoder
    sees.

    Args:
        texts: Documents; read once, with about `options.sample_bytes` of them in memory.
        options: Settings of the training.
        progress: Show progress on stderr.

    Raises:
        PlamoError: There is too little text for this number of rows, or there are too few rows for the characters in the text.
    """
    sample = sample_texts(texts, options.sample_bytes, options.seed, progress=progress)
    if not sample:
        raise PlamoError("all inputs are empty: training a tokenizer needs text")
    pieces = _train_pieces(sample, options, progress)
    return Tokenizer.from_rows(_rows(pieces, options.vocab_size), "the trained vocabulary")


def sample_texts(texts: Iterable[str], sample_bytes: int, seed: int, *, progress: bool = False) -> list[str]:
    """Return an even sample of about `sample_bytes` UTF-8 bytes in document order, using no more memory than that.

    A document longer than 20000 characters is sampled in parts, so that one huge file also gives an even sample.
    """
    draw = random.Random(seed)
    kept: list[tuple[float, int, str, int]] = []  # heap with the largest draw on top, which is removed next
    total = 0
    bar = tqdm(desc="reading text", unit="B", unit_scale=True, disable=not progress)
    for index, part in enumerate(_parts(texts)):
        size = len(part.encode())
        heapq.heappush(kept, (-draw.random(), index, part, size))
        total += size
        bar.update(size)
        while total - kept[0][3] >= sample_bytes:
            total -= heapq.heappop(kept)[3]
    bar.close()
    return [part for _, _, part, _ in sorted(kept, key=lambda item: item[1])]


def _parts(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PlamoError(f"text {number} holds a lone surrogate at position {error.start}") from None
        for start in range(0, len(text), UNIT_CHARS):
            part = UNTRAINABLE.sub("", text[start : start + UNIT_CHARS])
            if part:
                yield part


def _train_pieces(sample: list[str], options: VocabularyOptions, progress: bool) -> list[tuple[str, float]]:
    """Run SentencePiece. Return (token with literal spaces, log probability), most likely first."""
    import sentencepiece

    model = io.BytesIO()
    arguments = {
        "sentence_iterator": iter(
            [part[i : i + SENTENCE_CHARS] for part in sample for i in range(0, len(part), SENTENCE_CHARS)]
        ),
        "model_writer": model,
        "model_type": "unigram",
        # <unk> and the byte pieces are included; the spare ones replace pieces that cannot be rows.
        "vocab_size": options.vocab_size - FIRST_TRAINED_ROW + len(WHITESPACE) + 257 + SPARE_PIECES,
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "seed_sentencepiece_size": options.seed_pieces * options.vocab_size,
        "character_coverage": options.character_coverage,
        "required_chars": "".join(WHITESPACE).replace(" ", SPACE),
        "max_sentencepiece_length": options.max_token_chars,
        "max_sentence_length": 8 * SENTENCE_CHARS,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_by_whitespace": not options.cross_spaces,
        "split_by_unicode_script": False,
        "split_by_number": True,
        "split_digits": options.split_digits,
        "bos_id": -1,
        "eos_id": -1,
        "pad_id": -1,
        "num_threads": 1,  # sums over threads would make scores depend on their number
        "minloglevel": 2,
    }
    megabytes = sum(len(part.encode()) for part in sample) / 1e6
    title = f"training a vocabulary of {options.vocab_size:,} tokens on {megabytes:.1f} MB"
    # SentencePiece trains in one call without progress reports, but other threads can run: show the elapsed time.
    with ThreadPoolExecutor(1) as pool, tqdm(desc=title, bar_format="{desc}: {elapsed}", disable=not progress) as bar:
        training = pool.submit(sentencepiece.SentencePieceTrainer.train, **arguments)
        while wait([training], timeout=0.5).not_done:
            bar.refresh()
        try:
            training.result()
        except RuntimeError as error:
            raise PlamoError(f"SentencePiece cannot train {options.vocab_size} rows: {error}") from None
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [
        (trained.id_to_piece(i).replace(SPACE, " "), trained.get_score(i))
        for i in range(trained.get_piece_size())
        if not (trained.is_unknown(i) or trained.is_byte(i))
    ]


def _rows(pieces: list[tuple[str, float]], vocab_size: int) -> list[list]:
    """Return exactly `vocab_size` PLaMo rows. The least likely tokens of several characters are dropped."""
    lowest = min(score for _, score in pieces)
    scores = {token: score for token, score in pieces if _allowed(token)}
    whitespace = [(token, scores.pop(token, lowest)) for token in WHITESPACE]
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    excess = len(ranked) - (vocab_size - FIRST_TRAINED_ROW)
    if excess < 0:
        raise PlamoError(
            f"vocab_size={vocab_size} is not allowed: the text supports at most {vocab_size + excess} rows. "
            "Lower vocab_size or give more text"
        )
    long = [token for token, _ in ranked if len(token) > 1]
    if excess > len(long):
        raise PlamoError(
            f"vocab_size={vocab_size} is not allowed: the characters of the text need "
            f"{len(ranked) - len(long)} rows in addition to the {FIRST_TRAINED_ROW} fixed rows. Raise "
            "vocab_size or lower character_coverage"
        )
    dropped = set(long[len(long) - excess :])
    rows = [[UNK, 0.0, UNKNOWN], *([token, 0.0, CONTROL] for token in CONTROL_ROWS)]
    rows += [[token, score, NORMAL] for token, score in whitespace]
    rows += [[f"<0x{value:02X}>", 0.0, BYTE] for value in range(256)]
    rows += [[token, score, NORMAL] for token, score in ranked if token not in dropped]
    # Integer costs keep four decimals. Rounding to four decimals here avoids ties that implementations round differently.
    return [[token, round(score, 4), kind, 0, 0, 0, 0] for token, score, kind in rows]


def _allowed(token: str) -> bool:
    # Public decoders treat any row that begins with <0x as a byte. Control strings are rows already.
    return not token.startswith("<0x") and token not in (UNK, *CONTROL_ROWS)
