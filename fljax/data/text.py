"""Text as token ids: subwords of a trained vocabulary, or characters.

Id 0 is padding, which networks mask. Subwords are BPE by the library tokenizers
(`pip install -e '.[text]'`), trained on the training split; the authors used
sentencepiece, with 16,000 subwords too. Characters are LEAF's 80
(arXiv 1812.01097, `models/utils/language_utils.py`); with 0 for padding and for any
other character there are 81 symbols, as in the authors' code, where 80 was that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fljax.data import progress, sources
from fljax.runtime import memory

INSTALL = "pip install -e '.[text]'"
PADDING, UNKNOWN = "[PAD]", "[UNK]"  # ids 0 and 1 of a vocabulary
BATCH = 1000  # texts given to the library at a time
ALPHABET = (
    "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
)
SYMBOLS = len(ALPHABET) + 1  # 81


Texts = Sequence[str] | np.ndarray  # of str


def characters(texts: Texts, length: int = 0) -> np.ndarray:
    """Number the characters of texts: 1 + their place in ALPHABET, 0 for others.

    Args:
      texts: of any length.
      length: of a row; longer texts are cut, shorter ones padded; 0: the longest.

    Returns:
      [texts, length] uint16.

    >>> characters(["ab", "ö"]).tolist()
    [[54, 55], [0, 0]]
    """
    rows = np.array(texts, dtype=f"<U{length}" if length else None)
    points = rows.view(np.uint32).reshape(len(texts), -1)
    table = np.zeros(max(map(ord, ALPHABET)) + 2, np.uint16)  # the last is for others
    table[[ord(c) for c in ALPHABET]] = np.arange(1, SYMBOLS)
    return table[np.minimum(points, len(table) - 1)]


def train_vocabulary(
    name: str,
    texts: Texts,
    size: int,
    watch: progress.Watch = progress.ignore,
) -> bytes:
    """Train a vocabulary of subwords on texts.

    Args:
      name: opens every error.
      texts: the training split.
      size: subwords at most, padding and unknown among them.
      watch: is told of the progress.

    Returns:
      The tokenizer of the library tokenizers, as JSON.

    Raises:
      ValueError: the library is missing.
    """
    library = _library(name)
    tokenizer = library.Tokenizer(library.models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = library.normalizers.NFKC()
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace()
    tokenizer.decoder = library.decoders.Metaspace()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, special_tokens=[PADDING, UNKNOWN], show_progress=False
    )
    batches = _batches(f"training a vocabulary on {name}", texts, watch)
    tokenizer.train_from_iterator(batches, trainer)
    return tokenizer.to_str().encode()


def encode(
    name: str,
    texts: Texts,
    vocabulary: bytes,
    length: int,
    watch: progress.Watch = progress.ignore,
) -> tuple[np.ndarray, int]:
    """Turn texts into token ids.

    Args:
      name: opens every error.
      texts: to encode.
      vocabulary: of `train_vocabulary`.
      length: of a row; longer texts lose their end, shorter ones are padded with 0.
      watch: is told of the progress.

    Returns:
      [texts, length] uint16 (int32 beyond 65,536 ids), and the number of ids.

    Raises:
      ValueError: the library is missing, or the vocabulary is none.
    """
    library = _library(name)
    try:
        tokenizer = library.Tokenizer.from_str(vocabulary.decode())
    except Exception as error:  # the library raises Exception itself
        raise ValueError(
            f"{name}: expected a vocabulary as the library tokenizers writes it, got "
            f"{len(vocabulary)} bytes that it refuses ({' '.join(str(error).split())})"
        ) from error
    tokenizer.enable_truncation(length)
    ids = tokenizer.get_vocab_size()
    kind = np.dtype(np.uint16 if ids <= 2**16 else np.int32)
    what = f"{len(texts):,} texts of {length:,} tokens"
    size = len(texts) * length * kind.itemsize
    memory.require(f"{name}: --text.max_tokens", what, size, memory.of_host())
    out = np.zeros((len(texts), length), kind)
    row = 0
    for batch in _batches(f"tokenizing {name}", texts, watch):
        for encoded in tokenizer.encode_batch(batch):
            out[row, : len(encoded.ids)] = encoded.ids
            row += 1
    return out, ids


def following(
    name: str, arrays: Mapping[str, np.ndarray], last: bool
) -> dict[str, np.ndarray]:
    """Makes the tokens that come next the labels, at every position.

    Args:
      name: opens every error.
      arrays: x_train and x_test of tokens, their vocabulary, and others.
      last: y_train and y_test are the token behind the last one of each example; else
        the last one is a label alone, and x becomes shorter by one.

    Returns:
      The arrays with x and y of one shape [examples, length].

    Raises:
      ValueError: there are no tokens, or too few.

    >>> x = np.array([[4, 5, 6], [7, 8, 0]])
    >>> some = {"x_train": x, "x_test": x, "vocabulary": np.array(9)}
    >>> made = following("x", some, last=False)
    >>> made["x_train"].tolist(), made["y_train"].tolist()
    ([[4, 5], [7, 8]], [[5, 6], [8, 0]])
    """
    if "vocabulary" not in arrays:
        raise ValueError(
            f"{name}: expected texts, whose tokens --task=tokens predicts, got numbers"
        )
    made = dict(arrays) | {"num_classes": arrays["vocabulary"]}
    for part in ("train", "test"):
        x = np.asarray(arrays[f"x_{part}"])
        if last:  # windows are full: what is 0 is a character that has no number
            y = np.asarray(arrays[f"y_{part}"], x.dtype)
            x = np.concatenate([x, y[:, None]], axis=1)
        if x.shape[1] < 2:
            raise ValueError(
                f"{name}: expected texts of two tokens or more, got {x.shape[1]}"
            )
        made |= {f"x_{part}": x[:, :-1], f"y_{part}": x[:, 1:]}
    return made


def _batches(what: str, texts: Texts, watch: progress.Watch) -> Iterator[list[str]]:
    for start in range(0, len(texts), BATCH):
        yield list(texts[start : start + BATCH])
        watch(what, min(start + BATCH, len(texts)), len(texts))


def _library(name: str) -> Any:
    return sources.library(name, "tokenizers", "the library tokenizers", INSTALL)
