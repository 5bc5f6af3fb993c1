"""What a user asks of differential privacy: the section `Config.privacy`."""

from __future__ import annotations

import dataclasses

from fljax import bounds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """Differential privacy of clients; by itself there is none."""

    clip: float = bounds.field(
        0.0,
        "L2 norm that all a client sends is shortened to, as one vector; 0: no privacy "
        "at all.",
        off=True,
        least=1e-9,
        most=1e9,
    )
    epsilon: float = bounds.field(
        0.0,
        "Budget: the run stops before it has spent more, and where no noise is given "
        "that is found for it; 0: no limit.",
        off=True,
        least=1e-3,
        most=1e4,
    )
    delta: float = bounds.field(
        1e-6,
        "Probability with which epsilon may fail to hold; less than 1 over the number "
        "of clients.",
        above=True,
        most=0.1,
    )
    noise: float = bounds.field(
        0.0,
        "Noise multiplier: the standard deviation of the noise of a sum over the clip "
        "norm; 0: found for --privacy.epsilon.",
        off=True,
        least=1e-3,
        most=1e6,
    )
    rounds: int = bounds.field(
        0, "Rounds that the noise is found for; 0: --rounds.", least=0
    )
    participations: int = bounds.field(
        0,
        "Most rounds that a client takes part in, after which it is not drawn again; "
        "0: as many as the draw gives it.",
        least=0,
    )
    bands: int = bounds.field(
        1,
        "Bands of noise that is correlated over rounds (DP-FTRL), for cohorts that "
        "hide nobody; a client waits as many rounds between two parts. 1: independent "
        "noise.",
        least=1,
        most=10_000,
    )
    quantile: float = bounds.field(
        0.0,
        "Adaptive clipping: the share of clients whose updates are to keep their "
        "length; 0: the clip norm stays.",
        most=1,
        below=True,
    )
    clip_rate: float = bounds.field(
        0.2, "How fast an adaptive clip norm moves, of its logarithm.", most=10
    )
    count_noise: float = bounds.field(
        0.0,
        "Standard deviation of the noise of the number of clients that adaptive "
        "clipping counts; 0: a twentieth of --clients_per_round.",
        off=True,
        least=1e-3,
        most=1e9,
    )

    def __post_init__(self):
        bounds.check(self, "privacy.{}".format)
        if not self.clip:
            self._alone()
        elif not self.noise and not self.epsilon:
            raise ValueError(
                "privacy.clip: expected privacy.noise or privacy.epsilon beside it, "
                "got neither"
            )
        if self.bands > 1 and self.quantile:
            raise ValueError(
                "privacy.quantile: expected 0 beside privacy.bands, since noise that "
                "is taken back later is of one clip norm"
            )
        for name in ("clip_rate", "count_noise"):
            if self._given(name) and not self.quantile:
                raise ValueError(
                    f"privacy.{name}: expected privacy.quantile above 0 beside it, "
                    f"which asks for adaptive clipping"
                )

    def _given(self, name: str) -> bool:
        """Tells whether a field is another than usual."""
        return getattr(self, name) != type(self).__dataclass_fields__[name].default

    def _alone(self) -> None:
        """Refuses what says how, where nothing is private.

        Raises:
          ValueError: something does.
        """
        for field in dataclasses.fields(self):
            if self._given(field.name):
                raise ValueError(
                    f"privacy.{field.name}: expected privacy.clip above 0 beside it, "
                    f"without which nothing is private"
                )
