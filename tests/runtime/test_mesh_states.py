"""Several devices and hosts give one device's network and rows, whatever is sent."""

import pytest

import fljax
from tests import small
from tests.runtime import test_mesh

_METHODS = {
    "scaffold": {"algorithm": "scaffold"},
    "top_k": {"codec": "top_k:.1"},
    "median": {"aggregate": "median"},
    "krum": {"aggregate": "krum:1:3"},
    "clipping": {"aggregate": "centered_clipping:.1"},
    "fltrust": {"aggregate": "fltrust:20"},
    "feddyn": {"algorithm": "feddyn:.1", "codec": "drive"},
    "fednova": {"algorithm": "fednova"},
    "oort": {"selection": "oort"},
    "alie": {"attack": "alie:.4", "codec": "qsgd:4"},
    "backdoor": {"attack": "backdoor:.4", "aggregate": "median"},
    "ditto": {"algorithm": "ditto", "codec": "top_k:.1"},
    "local": {"algorithm": "local"},
    "heterofl": {"algorithm": "heterofl:levels=fit", "network": "cnn"},
    "depthfl": {"algorithm": "depthfl", "network": "cnn"},
    "both": {"algorithm": "scaffold", "codec": "top_k:.1"},
}

_SAME = """
import jax
from tests import small
from tests.runtime import test_mesh_states as states

def ran(devices, width):
    settings = dict(devices=devices, client_width=width, clients_per_round=7)
    ready = small.build(**settings, **states._METHODS["NAME"])
    *_, (_, assignment, state, _) = small.rounds(ready, 3)
    assert len(jax.tree.leaves(state.server)[0].devices()) == int(devices)
    return assignment.ids.tolist(), state

(ids, one), *others = (ran(*layout) for layout in (("1", 1), ("8", 1), ("3", 2)))
for theirs, other in others:
    assert theirs == ids
    small.assert_alike(one, other)
print("same")
"""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name != "both" else [])
        for name in _METHODS
    ],
)
def test_several_devices_give_what_one_gives(name):
    program = _SAME.replace("NAME", name)
    assert test_mesh.on_devices(8, program).startswith("same")


@pytest.mark.long
@pytest.mark.parametrize("name", _METHODS)
def test_two_processes_give_what_one_gives(tmp_path, name):
    flags = [f"--{flag}={value}" for flag, value in _METHODS[name].items()]
    both = test_mesh.start_two(tmp_path / "two", 3, *flags)
    outputs = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    single = test_mesh.start(f"--workdir={tmp_path / 'one'}", "--rounds=3", *flags)
    _, error = single.communicate(timeout=200)
    assert single.returncode == 0, error
    one, two = (fljax.restore(tmp_path / folder) for folder in ("one", "two"))
    small.assert_alike(one.state, two.state, clients=12)
    test_mesh.assert_alike(one.records, two.records)
