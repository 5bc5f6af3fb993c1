"""What devices can do next, from the log of what they did: where the last look is old.

The log of a device's speed, and of its bandwidth, is taken for a line over the rounds,
fitted by least squares with weights that halve every `HALF_LIFE` rounds; the last look
counts as an entry like any other. With w the sum of weights, variance and covariance
weighted,

    slope = cov(round, log) / (var(round) + TREND^2 / w)

so that a trend needs entries which are many and far apart against TREND rounds, and
dies away where nothing is heard any more. The budget is the line less CAUTION times

    doubt = noise sqrt(1 + 1 / max(w, 1))

with the root mean square of all clients' residuals as the noise, since who is late has
worked for nothing.

Legend: N all clients, K clients of a round; two kinds, speed and bandwidth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fljax import types
from fljax.policies import base

HALF_LIFE = 20.0  # rounds
TREND = 20.0  # rounds
CAUTION = 1.0
_SUMS = 6  # of weights, and weighted: t, t^2, y, t y, y^2


class Log(NamedTuple):
    """What is kept of the entries of each client.

    Attributes:
      last: [N] int32, the round of the last one, from which t counts.
      sums: [2, 6, N] float64, of weights, and weighted of t, t^2, y, t y and y^2.
    """

    last: np.ndarray
    sums: np.ndarray


class State(NamedTuple):
    """What a policy that looks ahead carries.

    Attributes:
      policy: its own state.
      log: of the devices.
    """

    policy: base.State
    log: Log


def empty(num_clients: int) -> Log:
    """Makes a log without entries."""
    return Log(np.zeros(num_clients, np.int32), np.zeros((2, _SUMS, num_clients)))


def _later(sums: np.ndarray, rounds: np.ndarray) -> np.ndarray:
    """Gives the sums [2, 6, K] so many rounds [K] later."""
    w, t, tt, y, ty, yy = np.moveaxis(sums, 1, 0)
    new_t, new_tt = t - rounds * w, tt - rounds * (2 * t - rounds * w)
    moved = np.stack([w, new_t, new_tt, y, ty - rounds * y, yy], axis=1)
    return moved * 0.5 ** (rounds / HALF_LIFE)


def add(log: Log, ids: np.ndarray, seen: base.Seen) -> Log:
    """Enters what was seen of clients.

    Args:
      log: before it.
      ids: [K] clients, each once.
      seen: of them; not finite or not above 0: not known.

    Returns:
      The log after it.
    """
    values = np.stack([seen.speed, seen.bandwidth])
    known = np.isfinite(values) & (values > 0)
    rounds = np.maximum(seen.rounds, log.last[ids])
    sums, last = log.sums.copy(), log.last.copy()
    new = _later(log.sums[:, :, ids], rounds - log.last[ids])
    new[:, 0] += known
    new[:, 3] += (logs := np.log(np.where(known, values, 1.0)))
    new[:, 5] += logs**2
    sums[:, :, ids], last[ids] = new, rounds
    return Log(last, sums)


def _fit(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gives weights, lines at t = 0 and mean squared residuals, each [2, K]."""
    w, t, tt, y, ty, yy = np.moveaxis(sums, 1, 0)
    w = np.maximum(w, 1e-9)
    mean, level = t / w, y / w
    variance, covariance = tt / w - mean**2, ty / w - mean * level
    slope = covariance / (variance + TREND**2 / w)
    apart = yy / w - level**2 - 2 * slope * covariance + slope**2 * variance
    return w, level - slope * mean, np.maximum(apart, 0)


def ahead(
    log: Log, when: base.When, ids: np.ndarray, believed: types.Budgets
) -> types.Budgets:
    """Forecasts what clients can do in a round.

    Args:
      log: of all clients.
      when: which round, and that of the last look.
      ids: [K] clients.
      believed: what the last look saw of them, each [K].

    Returns:
      The same for the round; memory stays as it is.
    """
    sums = _later(log.sums[:, :, ids], when.round - log.last[ids])
    look = np.zeros((2, _SUMS, len(ids)))
    look[:, 0] = 1
    look[:, 3] = (logs := np.log([believed.time, believed.upload]))
    look[:, 5] = logs**2
    age = np.full(len(ids), when.round - when.looked_at)
    w, line, _ = _fit(sums + _later(look, age))
    _, _, apart = _fit(log.sums)
    many = log.sums[:, 0]
    noise = np.sum(many * apart, axis=1) / np.maximum(np.sum(many, axis=1), 1e-9)
    doubt = np.sqrt(noise[:, None] * (1 + 1 / np.maximum(w, 1)))
    speed, bandwidth = np.exp(line - CAUTION * doubt)
    return types.Budgets(speed, bandwidth, believed.memory)


def looking_ahead(policy: base.Policy, num_clients: int) -> base.Policy:
    """Makes a policy plan with forecasts where the server's last look is old.

    Args:
      policy: any.
      num_clients: N.

    Returns:
      The same, with a log beside its state.
    """

    def observe(state, ids, assigned, budgets, observation):
        own = policy.observe(state.policy, ids, assigned, budgets, observation)
        return State(own, add(state.log, ids, observation.seen))

    return policy._replace(
        init=lambda: State(policy.init(), empty(num_clients)),
        assign=lambda state, *given: policy.assign(state.policy, *given),
        observe=observe,
        ahead=lambda state, *given: ahead(state.log, *given),
    )
