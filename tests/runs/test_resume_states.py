"""Kill and resume where servers and clients keep something from round to round."""

import random
import signal

import pytest

from tests.runs import test_resume

cache = test_resume.cache
start = test_resume.start

_ROUNDS = 14
_COMMAND = (
    *("--network=logistic", "--num_clients=8", "--clients_per_round=3"),
    *(f"--rounds={_ROUNDS}", "--eval_every=5", "--checkpoint_every=2"),
    "--tensorboard=false",
)
_SCAFFOLD, _ADAM = ("--algorithm=scaffold",), ("--algorithm=fedadam:0.01",)
_DITTO = ("--algorithm=ditto", "--evaluation=clients:1")
_AVERAGE, _TOP_K = ("--algorithm=fedavg",), ("--codec=top_k:0.1",)
_MIN_MAX, _BACKDOOR = ("--attack=min_max:.3",), ("--attack=backdoor:.3",)


def kept(folder):
    """Reads the files of all checkpoints, those of clients' rows included."""
    return {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}


@pytest.mark.parametrize(
    ("method", "kills"),
    [
        ((*_SCAFFOLD, *_TOP_K), 1),
        *(
            pytest.param(method, 4, marks=pytest.mark.long)
            for method in (
                *(_SCAFFOLD, (*_AVERAGE, *_TOP_K), _ADAM),
                *((*_SCAFFOLD, *_TOP_K), (*_ADAM, *_TOP_K), _DITTO),
                *((*_AVERAGE, *_TOP_K, *_MIN_MAX), (*_SCAFFOLD, *_BACKDOOR)),
            )
        ),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, tuple) else str(x),
)
def test_killed_at_random_a_run_ends_like_one_that_was_not(
    start, tmp_path, method, kills
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = (*_COMMAND, *method)
    assert test_resume.finish(start(whole, *command))[0] == 0
    chance = random.Random(repr(method))
    done = 0
    for _ in range(kills):
        # At most a checkpoint's rounds are lost, so that every kill comes further.
        lines = done + chance.randint(2, 3)
        child = start(killed, *command, change=test_resume._SLOW)
        test_resume.wait_for_lines(child, killed, lines)
        with pytest.raises(test_resume.subprocess.TimeoutExpired):
            child.wait(chance.uniform(0, 0.3))
        child.send_signal(signal.SIGKILL)
        assert child.wait(test_resume._DEADLINE) == -signal.SIGKILL
        done = test_resume.count(killed)
        assert lines <= done < _ROUNDS
    code, _, err = test_resume.finish(start(killed, *command))
    assert code == 0
    assert any(f"resuming {killed} at round" in line for line in err)
    test_resume.assert_same_end(killed, whole, _ROUNDS)
    assert kept(killed) == kept(whole)
    rows = [name for name in kept(killed) if name.endswith(".rows")]
    assert bool(rows) == (method != _ADAM)
