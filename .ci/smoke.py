"""Tries an installed package: its files, its face, a run, its folder, its picture."""

import importlib.metadata
import pathlib

import fljax

home = pathlib.Path(fljax.__file__).parent
assert home.parent.name == "site-packages", home  # not the checkout
assert (home / "py.typed").is_file()
about = importlib.metadata.metadata("fljax")
assert about["Version"] == fljax.__version__
assert about["License-Expression"] == "Apache-2.0"
assert all(getattr(fljax, name) is not None for name in fljax.__all__)

settings = fljax.Config(num_clients=20, rounds=2, batch_size=16, eval_batch_size=360)
result = fljax.run(settings, "runs/smoke")
assert 0 < result.final["test_accuracy"] <= 1
assert fljax.restore("runs/smoke").records == result.records
priced = fljax.Config(algorithm="fedavg", network="logistic", device_class="x64")
assert fljax.build(priced).federation.model.table.num_blocks == 1
result.plot("curves.png")
assert pathlib.Path("curves.png").stat().st_size > 10_000
print(result)
