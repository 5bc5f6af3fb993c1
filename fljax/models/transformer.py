"""Transformers (Vaswani et al., NeurIPS 2017), as CoCoFL's reference has them.

Six encoder layers of width 128 with two heads, norms after the sums, sinusoids for the
positions. 8 blocks: embedding, the six layers, a linear classifier. Embedding and
classifier stay in float32 when frozen. `transformer` classifies a text by the largest
value of each channel over its tokens; `char_transformer` predicts the next character.
With `positions` both predict the next token at each position, and none attends to a
later one (Radford et al., "Improving language understanding by generative
pre-training", 2018).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from fljax import types
from fljax.nn import attention, layers, lone_norms, network, signals, slicing

FEATURES = 128
LAYERS = 6
HEADS = 2
DROPOUT = 0.05


def sinusoids(positions: int, features: int) -> np.ndarray:
    """Computes the encoding of positions [positions, features] float32.

    Vaswani et al., section 3.5: sines in even channels, cosines in odd ones.
    """
    rate = 10_000.0 ** (-2 * (np.arange(features) // 2) / features)
    angles = np.arange(positions)[:, None] * rate
    odd = np.arange(features) % 2 == 1
    return np.where(odd, np.cos(angles), np.sin(angles)).astype(np.float32)


class Embedding(nn.Module):
    """A learned vector for every token, plus that of its position.

    Positions count from 1; padding has position 0. The first position is never taken
    for padding, so that an empty text has something to attend to.

    Attributes:
      vocabulary: number of token ids; 0 is padding.
      features: width of the vectors.
      appended: tokens of padding that are put behind the text.
      full: width of which a sliced one's positions are a part, by `Call.columns`, since
        those of a narrower network would have other frequencies; None: `features`.
    """

    vocabulary: int
    features: int = FEATURES
    appended: int = 0
    full: int | None = None

    @nn.compact
    def __call__(self, x: types.Array, call: layers.Call) -> signals.Padded:
        """Maps token ids [B, L] to [B, L + appended, features]; float or Ranged."""
        trained = call.role is types.Role.TRAINED
        if trained:
            table = self._table()
        else:
            table = self.variable("frozen", "table", self._table).value
        tokens = jnp.pad(x.astype(jnp.int32), ((0, 0), (0, self.appended)))
        length = tokens.shape[1]
        valid = (tokens != 0).at[:, 0].set(True)
        places = jnp.where(valid, jnp.arange(length) + 1, 0)
        y = table[tokens] + self._positions(length + 1, call)[places]
        y = y * call.scale if trained and call.scale != 1.0 else y
        values = length * self.features
        layers.count(
            self,
            kept=length,
            values=values,
            after_values=values,
            before_values=values,
        )
        return signals.Padded(y if trained else signals.Ranged(y, None), valid)

    def _table(self) -> types.Array:
        shape = (self.vocabulary, self.features)
        return self.param("embedding", nn.initializers.normal(1.0), shape)

    def _positions(self, number: int, call: layers.Call) -> types.Array:
        table = sinusoids(number, self.full or self.features)
        if call.columns is None:
            return jnp.asarray(table[:, : self.features])
        return jnp.take(jnp.asarray(table), call.columns, axis=1, mode="clip")

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps channels of its own, of all tokens."""
        kept = at.choose("embedding", self.features)
        small = self.clone(features=kept.size, full=self.full or self.features)
        return slicing.Slice(small, {"embedding": (None, kept)}, kept)


class EncoderLayer(nn.Module):
    """Self-attention and two dense layers, each with a sum and a norm after it.

    Attributes:
      inner: width between the dense layers.
      heads: of the attention.
      dropout: rate, of what either part adds.
      causal: no position attends to a later one.
      attended: channels that the heads share; None: as many as enter.
    """

    inner: int = FEATURES
    heads: int = HEADS
    dropout: float = DROPOUT
    causal: bool = False
    attended: int | None = None

    @nn.compact
    def __call__(self, x: signals.Padded, call: layers.Call) -> signals.Padded:
        """Maps [B, L, C] to the same shape; float, QArray or Ranged by role."""
        channels = x.value.shape[-1]

        def dense(name, signal, features=channels, relu=False):
            return layers.dense(features, relu=relu, name=name)(signal, call)

        def joined(index, residual, h):
            h = layers.Dropout(self.dropout, name=f"dropout{index}")(h, call)
            h = layers.Add(name=f"add{index}")(residual, h, call)
            h = lone_norms.LayerNorm(name=f"norm{index}")(h, call)
            # Several layers read it: see `programs.compiler_options`.
            return layers.on_values(lax.optimization_barrier, h)

        attended = self.attended or channels
        q, k, v = (dense(name, x.value, attended) for name in ("query", "key", "value"))
        attend = attention.Attention(self.heads, self.causal, name="attention")
        h = dense("output", attend(q, k, v, x.valid, call))
        middle = joined(1, x.value, h)
        h = dense("widen", middle, self.inner, relu=True)
        y = joined(2, middle, dense("narrow", h))
        # Scale and bias of both norms, which the reference leaves trainable.
        layers.count(self, after=4 * channels)
        return signals.Padded(y, x.valid)

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps all heads, of each as many channels, in which queries meet keys."""
        attended = self.attended or at.channels
        query = at.choose_of_heads("query", attended, self.heads)
        value = at.choose_of_heads("value", attended, self.heads)
        inner = at.choose("widen", self.inner)
        parts = {
            "query": (at.kept, query),
            "key": (at.kept, query),
            "value": (at.kept, value),
            "output": (value, at.kept),
            "norm1": (None, at.kept),
            "widen": (at.kept, inner),
            "narrow": (inner, at.kept),
            "norm2": (None, at.kept),
        }
        small = self.clone(inner=inner.size, attended=value.size)
        return slicing.Slice(small, parts, at.kept)


class Classifier(nn.Module):
    """A linear layer on one vector for each sequence, or on each of its vectors.

    It is in float32 in every role.

    Attributes:
      num_classes: width of the logits.
      last: the vector is that of the last position; else the largest value of each
        channel over the positions that are no padding.
      reference_quirks: of the largest values, the logits go through a softmax (and
        again in the loss); of the last position, class c gets what the last class has
        at position c, as a slip of two axes has it.
      positions: logits for each position, [B, L, num_classes]; without quirks.
    """

    num_classes: int
    last: bool = False
    reference_quirks: bool = False
    positions: bool = False

    @nn.compact
    def __call__(self, x: signals.Padded, call: layers.Call) -> types.Array:
        """Maps [B, L, C] to logits [B, num_classes], or one for each position."""
        h = signals.to_float(x.value)
        if self.positions:
            dense = layers.dense(self.num_classes, quantized=False, name="dense")
            return signals.to_float(dense(h, call))
        if not self.last:
            h = jnp.max(jnp.where(x.valid[..., None], h, -jnp.inf), axis=1)
        elif not self.reference_quirks:
            h = h[:, -1]
        dense = layers.dense(self.num_classes, quantized=False, name="dense")
        logits = signals.to_float(dense(h, call))
        if not self.reference_quirks:
            return logits
        return logits[:, :, -1] if self.last else jax.nn.softmax(logits)

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps all logits, of the channels that enter."""
        return slicing.Slice(self, {"dense": (at.kept, None)}, None)


def transformer(
    input_shape: tuple[int, ...] = (512,),
    num_classes: int = 2,
    tracked: bool = False,
    vocabulary: int = 16_000,
    reference_quirks: bool = False,
    positions: bool = False,
) -> network.Network:
    """Makes the network that classifies a text.

    Args:
      input_shape: [length] of token ids.
      num_classes: width of the logits.
      tracked: has no effect, no norm of it keeps statistics.
      vocabulary: number of token ids.
      reference_quirks: see `Classifier`.
      positions: it predicts the token that comes next, at every position.

    Returns:
      A network of 8 blocks.

    Raises:
      ValueError: input_shape is not that of token ids.
    """
    del tracked
    network.check_tokens("transformer", input_shape)
    if positions:
        return _causal("transformer", input_shape, num_classes, vocabulary)
    embedding = Embedding(vocabulary)
    head = Classifier(num_classes, reference_quirks=reference_quirks)
    return _make("transformer", embedding, head, input_shape, num_classes)


def char_transformer(
    input_shape: tuple[int, ...] = (80,),
    num_classes: int = 81,
    tracked: bool = False,
    vocabulary: int = 81,
    reference_quirks: bool = False,
    positions: bool = False,
) -> network.Network:
    """Makes the network that predicts the next character.

    A token of padding behind the text is where the prediction is read; with `positions`
    there is none. Arguments as of `transformer`.

    Raises:
      ValueError: as of `transformer`, or the reference's slip does not fit: it needs
        as many classes as positions.
    """
    del tracked
    network.check_tokens("char_transformer", input_shape)
    if positions:
        return _causal("char_transformer", input_shape, num_classes, vocabulary)
    if reference_quirks and num_classes != input_shape[0] + 1:
        raise ValueError(
            f"network 'char_transformer' with reference_quirks expects as many classes "
            f"as characters and one more, got {num_classes} classes of examples of "
            f"shape {list(input_shape)}"
        )
    embedding = Embedding(vocabulary, appended=1)
    head = Classifier(num_classes, last=True, reference_quirks=reference_quirks)
    return _make("char_transformer", embedding, head, input_shape, num_classes)


def _causal(name, input_shape, num_classes, vocabulary):
    head = Classifier(num_classes, positions=True)
    embedding = Embedding(vocabulary)
    return _make(name, embedding, head, input_shape, num_classes, causal=True)


def _make(name, embedding: Embedding, head, input_shape, num_classes, causal=False):
    encoder = (EncoderLayer(causal=causal) for _ in range(LAYERS))
    blocks, vocabulary = (embedding, *encoder, head), embedding.vocabulary
    return network.Network(
        name, blocks, input_shape, num_classes, vocabulary=vocabulary
    )
