"""The study of old looks: its table, on few rounds."""

import re

from experiments import stale
from fljax.devices import fleet
from fljax.policies import windows


def test_the_table_has_a_row_for_each_policy(monkeypatch):
    monkeypatch.setattr(stale, "REFRESHES", (1, 4))
    monkeypatch.setattr(stale, "CHANGES", {"drift .5": {"drift": 0.5}})
    titles, _, *rows = stale.table([0], rounds=5)
    assert titles.endswith("| 1 round | 4 rounds |")
    assert [row.split(" | ")[1] for row in rows] == list(stale.POLICIES)
    cells = [re.findall(r"\| (\d+\.\d)% \((\d+\.\d)\)", row) for row in rows]
    assert [len(row) for row in cells] == [2, 2, 2]
    assert all(0 <= float(late) <= 100 for row in cells for late, _ in row)


def test_what_is_late_is_counted_of_all_updates():
    # Devices that no longer are what the only look saw of them.
    (fed,) = stale.federations(fleet.Changes(drift=2.0, refresh=100), [0])
    wild = stale.play(fed, windows.BY_NAME["random_maximal"], 20)
    (still,) = stale.federations(fleet.Changes(), [0])
    calm = stale.play(still, windows.BY_NAME["random_maximal"], 20)
    assert calm.late == 0 < wild.late < 1
    assert 0 < wild.work < calm.work
