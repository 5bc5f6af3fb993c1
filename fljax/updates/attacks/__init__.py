"""Attacks: what hostile clients do, by name.

>>> read("alie:.2")
Alie(share=0.2, tier='')
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fljax import notation
from fljax.updates.attacks import base, own, poisoning, together

Attack = base.Attack
Examples = base.Examples
Honest = base.Honest
know = base.know

# What makes each, of the arguments that a text gives.
BY_NAME: Mapping[str, Callable[..., Attack]] = {
    "label_flip": poisoning.LabelFlip,
    "backdoor": poisoning.Backdoor,
    "sign_flip": own.SignFlip,
    "gaussian": own.Gaussian,
    "alie": together.Alie,
    "ipm": together.Ipm,
    "min_max": together.MinMax,
}


def read(text: str) -> Attack | None:
    """Makes what a text such as `sign_flip:.2:weak` names.

    Args:
      text: an attack of `BY_NAME`, the share of the clients that are hostile, and, if
        that is a share of a tier, its name; or none.

    Returns:
      The attack; None of none.

    Raises:
      ValueError: one line without the flag: what was expected and what came.
    """
    return None if text == "none" else notation.make(text, BY_NAME)


def backdoor(attack: Attack | None) -> Attack | None:
    """Gives an attack that opens a backdoor, as compiled programs know it; else None.

    >>> backdoor(read("backdoor:.1:target=3"))
    Backdoor(share=1.0, tier='', target=3, poison=0.5, size=3, value=1.0)
    """
    if not isinstance(attack, Attack) or attack.target is None:
        return None
    return attack.of_clients
