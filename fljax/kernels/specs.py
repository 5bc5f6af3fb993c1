"""How frozen blocks are quantized: what differs between methods, and presets.

`REFERENCE` reproduces the paper's choices (Pfeiffer et al., CoCoFL, TMLR 2023):
per-tensor scales 2 * max|x| / 127, zero point 64 of quint8 (here -64 of int8).
`DEFAULT` is the best that was measured; docs/lab/fixed_point.md has the figures.
`FLOAT` keeps frozen blocks in float32, which tells what quantization costs and saves.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

from fljax import bounds

PRODUCTS = ("auto", "int8", "bfloat16", "float32")

_NAMES = {
    "zero_point": ("middle", "quarter"),
    "relu_zero_point": ("middle", "quarter", "lowest"),
    "rounding": ("nearest", "stochastic"),
    "input_range": ("carried", "dynamic"),
    "gradient_place": ("input", "product", "nowhere"),
    "products": PRODUCTS,
}


class Grid(NamedTuple):
    """The codes that a tensor may have.

    Attributes:
      zero: the code of 0.
      lowest: the lowest code.
      highest: the highest code.
      odd: codes are odd, so that none is wasted on a side: -3, -1, 1, 3 of 2 bits,
        which stand for -3/2, -1/2, 1/2, 3/2 steps of two units. 0 then has no code.
    """

    zero: int
    lowest: int
    highest: int
    odd: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """How frozen blocks are quantized.

    Attributes:
      bits: width of a code, 2 to 8.
      reduced_range: max|x| maps to half the positive codes (reduce-range), which
        leaves headroom for tensors that outgrow an observed range.
      zero_point: of signed tensors; "middle" 0, "quarter" -2^(bits-2) (64 in
        quint8), which turns the headroom of the reduced range to the positive side.
      relu_zero_point: of tensors that cannot be negative; "lowest" -2^(bits-1)
        gives them all codes.
      per_channel: weights have a scale for every output channel.
      rounding: of quantization and requantization; "stochastic" needs keys.
      input_range: after the window, the scale of a layer's input is "carried" from
        what its producer observed, or "dynamic" (max|x| of the batch).
      requantize_after: after the window, results pass through codes of the observed
        output range, else they go from int32 straight to float32.
      stepwise: what leads to codes (scales, norms folded into weights, quantization of
        floats) is rounded where PyTorch rounds it, which costs a few more instructions.
      codes: frozen blocks run in codes; if not, in float32 with their norms folded,
        which tells what quantization itself costs and saves.
      gradient_place: where trained layers observe the range of the gradient: at the
        layer's "input", at the "product" before its norm (the reference's slip: it is
        used as range of the input's), or "nowhere".
      reference_quirks: reproduce the reference's other slips (docs/design.md).
      narrow: codes of up to so many bits are made by the choices below; wider ones are
        made without them, and with `stepwise` or `reduced_range` all; 0: all are.
      clipping: ranges are not max|x| but what keeps the squared error least: of
        weights, of observed outputs, and of what nobody observed, gradients among it,
        where each example has its own.
      unbiased: with clipping, scales are raised so that codes are as long in the
        values' direction as the values are: each layer would shrink them else.
      half_steps: signed weights and outputs have odd codes, see `Grid`.
      group: so many inputs of an output channel share a whole multiple, 1 to 15, of
        the channel's scale (VS-Quant, Dai et al., MLSys 2021); 0: a channel has one.
      edges: width of the first and the last block that run in codes, if it is above
        `bits`; 0: theirs is no other.
      products: the type in which codes are multiplied, "auto" the one that
        `backends.code_products` names. It changes no bit of any sum.
    """

    bits: int = 8
    reduced_range: bool = False
    zero_point: Literal["middle", "quarter"] = "middle"
    relu_zero_point: Literal["middle", "quarter", "lowest"] = "lowest"
    per_channel: bool = True
    rounding: Literal["nearest", "stochastic"] = "nearest"
    input_range: Literal["carried", "dynamic"] = "carried"
    requantize_after: bool = False
    gradient_place: Literal["input", "product", "nowhere"] = "nowhere"
    stepwise: bool = False
    codes: bool = True
    reference_quirks: bool = False
    narrow: int = 3
    clipping: bool = True
    half_steps: bool = True
    group: int = 16
    unbiased: bool = True
    edges: int = 8
    products: Literal["auto", "int8", "bfloat16", "float32"] = "auto"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, names = getattr(self, field.name), _NAMES.get(field.name, ())
            if names and value not in names:
                raise ValueError(
                    f"{field.name}: expected {', '.join(names)}, got {value!r}"
                )
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits: expected 2 to 8, got {self.bits}")
        if not 0 <= self.narrow <= 4:  # what int8 holds of 15 times a code
            raise ValueError(f"narrow: expected 0 to 4, got {self.narrow}")
        if self.edges and not 2 <= self.edges <= 8:
            raise ValueError(f"edges: expected 0 or 2 to 8, got {self.edges}")
        if self.group < 0:
            raise ValueError(f"group: expected 0 or more, got {self.group}")
        quarter = "quarter" in (self.zero_point, self.relu_zero_point)
        if quarter and not self.reduced_range:
            raise ValueError("a 'quarter' zero point needs reduced_range=True")
        if self.requantize_after and self.gradient_place == "nowhere":
            raise ValueError(
                "requantize_after=True needs gradient_place='input' or 'product', "
                "got 'nowhere'"
            )

    @property
    def observes_after_relu(self) -> bool:
        """Whether forward ranges are taken after a fused ReLU, not before."""
        return self.relu_zero_point == "lowest"

    @property
    def lowest(self) -> int:
        """The lowest code."""
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1

    def zero_point_of(self, nonnegative: bool) -> int:
        """Gives the zero point of a signed or a nonnegative tensor."""
        name = self.relu_zero_point if nonnegative else self.zero_point
        return {"middle": 0, "quarter": self.lowest // 2, "lowest": self.lowest}[name]

    @property
    def is_narrow(self) -> bool:
        """Whether the choices of narrow codes act."""
        plain = self.stepwise or self.reduced_range
        return self.bits <= self.narrow and not plain

    @property
    def clips(self) -> bool:
        """Whether ranges are those of the least squared error."""
        return self.is_narrow and self.clipping

    @property
    def of_edge(self) -> Spec:
        """Gives what the first and the last block that run in codes are made by."""
        if not self.is_narrow or self.edges <= self.bits:
            return self
        return dataclasses.replace(self, bits=self.edges)

    def grid(self, nonnegative: bool) -> Grid:
        """Gives the codes of a signed or a nonnegative tensor."""
        zero = self.zero_point_of(nonnegative)
        if self.is_narrow and self.half_steps and not nonnegative and not zero:
            return Grid(0, 1 - 2**self.bits, 2**self.bits - 1, odd=True)
        return Grid(zero, self.lowest, self.highest)

    def levels(self, nonnegative: bool) -> float:
        """Gives how many codes above the zero point max|x| maps to."""
        zero, lowest, highest, _ = self.grid(nonnegative)
        span = float(highest - lowest if zero == lowest else highest)
        return span / 2 if self.reduced_range else span


DEFAULT = Spec()
FLOAT = Spec(codes=False)
REFERENCE = Spec(
    reduced_range=True,
    zero_point="quarter",
    relu_zero_point="quarter",
    per_channel=False,
    input_range="dynamic",
    requantize_after=True,
    stepwise=True,
    gradient_place="product",
    narrow=0,
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Frozen:
    """How a run freezes blocks: what of a `Spec` users choose."""

    fixed_point: str = bounds.field(
        "default",
        "Fixed point of frozen blocks: default (the best measured), reference (the "
        "paper's) or none (float32).",
        choices=("default", "reference", "none"),
    )
    bits: int = bounds.field(
        8, "Width of the codes of frozen blocks, 2 to 8.", least=2, most=8
    )
    weight_scales: str = bounds.field(
        "own",
        "Scales of frozen weights: one a channel, one a tensor, or fixed_point's own.",
        choices=("own", "channel", "tensor"),
    )
    rounding: str = bounds.field(
        "nearest",
        "Rounding to codes: nearest or stochastic.",
        choices=("nearest", "stochastic"),
    )
    reference_quirks: bool = bounds.field(
        False, "Reproduce the slips of the paper's code: see docs/design.md."
    )
    narrow: int = bounds.field(
        3,
        "Codes of up to so many bits are made by the flags below, with "
        "fixed_point=default; 0: as wider ones.",
        least=0,
        most=4,
    )
    clipping: bool = bounds.field(
        True, "Ranges of narrow codes: of least squared error instead of max|x|."
    )
    half_steps: bool = bounds.field(
        True, "Narrow codes of signed tensors: half steps, as many on either side."
    )
    group: int = bounds.field(
        16,
        "Inputs of an output channel with a multiple of its own of the channel's "
        "scale, in narrow weights; 0: none.",
        least=0,
    )
    unbiased: bool = bounds.field(
        True, "Scales of narrow codes are raised by what clipping and rounding shrink."
    )
    edges: int = bounds.field(
        8,
        "Width of the first and last block that run in narrow codes; 0: no other.",
        least=2,
        most=8,
        off=True,
    )
    products: str = bounds.field(
        "auto",
        "Type in which codes are multiplied: int8, bfloat16, float32, or what was "
        "measured to be fastest on this device. Sums are the same to the bit.",
        choices=PRODUCTS,
    )

    def __post_init__(self):
        bounds.check(self, "frozen.{}".format)

    @property
    def spec(self) -> Spec:
        """The choices in full."""
        base = {"default": DEFAULT, "reference": REFERENCE, "none": FLOAT}
        made = base[self.fixed_point]
        if made.gradient_place == "product" and not self.reference_quirks:
            made = dataclasses.replace(made, gradient_place="input")
        if self.weight_scales != "own":
            of_channels = self.weight_scales == "channel"
            made = dataclasses.replace(made, per_channel=of_channels)
        if self.fixed_point == "default":
            names = ("narrow", "clipping", "half_steps", "group", "unbiased", "edges")
            chosen: Any = {name: getattr(self, name) for name in names}
            made = dataclasses.replace(made, **chosen)
        rounding: Any = self.rounding  # one of its choices
        products: Any = self.products
        return dataclasses.replace(
            made,
            bits=self.bits,
            rounding=rounding,
            products=products,
            reference_quirks=self.reference_quirks,
        )
