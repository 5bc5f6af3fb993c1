"""The smallest data of each task and networks for it, and settings that train them."""

import numpy as np

import fljax
from fljax.models import mobilenetv2, small_convnet, transformer
from tests import conftest

SIZES = (10, 3, 8, 5, 4, 10, 6, 2, 7)  # examples of the clients
OUTPUTS, WORDS, LENGTH = 3, 7, 5

# Three blocks: of five windows but the full one, two freeze blocks on a side alone.
CONVNET = fljax.Network(
    "third_convnet",
    (
        mobilenetv2.Outer(4, 3),
        small_convnet.ConvBlock(8, 2),
        mobilenetv2.Classifier(OUTPUTS),
    ),
    (8, 8, 1),
    OUTPUTS,
)
TEXTNET = fljax.Network(
    "third_transformer",
    (
        transformer.Embedding(WORDS, 4),
        transformer.EncoderLayer(4, 1, 0.0, causal=True),
        transformer.Classifier(WORDS, positions=True),
    ),
    (LENGTH,),
    WORDS,
    vocabulary=WORDS,
)


def data(task="classification"):
    """Draws images of 8 x 8, or texts, of clients of `SIZES`."""
    generator = np.random.default_rng(2)
    number = sum(SIZES)
    users = np.repeat(np.arange(len(SIZES)), SIZES)
    if task == "tokens":
        x = generator.integers(1, WORDS, (number, LENGTH)).astype(np.int32)
        y = np.roll(x, -1, axis=1)
        return fljax.Dataset(x, y, x, y, WORDS, users=users, vocabulary=WORDS)
    classes = np.arange(number) % OUTPUTS
    x = generator.normal(size=(number, 8, 8, 1)) + classes[:, None, None, None]
    rows = np.eye(OUTPUTS)[classes]
    x, y = (
        x.astype(np.float32),
        {
            "classification": classes.astype(np.int32),
            "regression": rows.astype(np.float32),
            "multilabel": rows.astype(np.int32),
        }[task],
    )
    return fljax.Dataset(x, y, x, y, OUTPUTS, users=users)


def build(net=None, **changes):
    """Builds an experiment on images; of `logistic` unless a network is given."""
    usual = {
        "algorithm": "fedavg",
        "network": "logistic",
        "partition": "natural",
        "clients_per_round": 4,
        "local_epochs": 1,
        "batch_size": 4,
        "lr": 0.05,
        "seed": 1,
    }
    return fljax.build(fljax.Config(**(usual | changes)), data(), net)


def rounds(ready, number):
    """Runs rounds by hand; yields (state before, assignment, state after, report)."""
    made = fljax.experiment.algorithm(ready)
    state = made.init()
    for index in range(number):
        assignment = made.assign(state, index)
        new, report = made.round(state, assignment)
        yield state, assignment, new, report
        state = new


def rows(state, clients=len(SIZES)):
    """Gives the rows of all clients, [N, S]."""
    return state.clients.gather(np.arange(clients))


def assert_alike(one, two, clients=len(SIZES)):
    """Asserts that the server's state and the clients' rows agree to last bits."""
    conftest.assert_close(one.server, two.server)
    assert (one.clients is None) == (two.clients is None)
    if one.clients is not None:
        assert one.clients.visited == two.clients.visited
        conftest.assert_close(rows(one, clients), rows(two, clients))
