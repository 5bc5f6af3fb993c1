"""Codecs: what is sent instead of an update, by name or put together.

>>> read("clip:1+top_k:.01")
Chain(parts=(Clip(norm=1.0), TopK(share=0.01)))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from fljax import notation
from fljax.updates.codecs import base, clip, levels, rotated, signs, sparse

Chain = base.Chain
Codec = base.Codec
Elementary = base.Elementary
Message = base.Message
Part = base.Part

# What makes each, of the arguments that a text gives.
BY_NAME: Mapping[str, Callable[..., Codec]] = {
    "clip": clip.Clip,
    "top_k": sparse.TopK,
    "random_k": sparse.RandomK,
    "qsgd": levels.Qsgd,
    "uniform": levels.Uniform,
    "ternary": levels.Ternary,
    "signsgd": signs.SignSgd,
    "drive": rotated.Drive,
    "eden": rotated.Eden,
}

# Between codecs, not in 1e+3.
_PLUS = re.compile(r"\s*\+\s*(?=[A-Za-z_])")


def read(text: str) -> Codec | None:
    """Makes what a text such as `clip:1+top_k:.01` names.

    Args:
      text: codecs of `BY_NAME` with their arguments, `+` between them; or none.

    Returns:
      The codec; of several a chain, applied from left to right; None of none.

    Raises:
      ValueError: one line without the flag: what was expected and what came.
    """
    if text == "none":
        return None
    parts = tuple(notation.make(name, BY_NAME) for name in _PLUS.split(text.strip()))
    return parts[0] if len(parts) == 1 else Chain(parts)
