"""Differential privacy of clients: clip what each sends, add noise to the sum.

A server that is trusted with the updates releases networks that hardly depend on any
one client (McMahan et al., ICLR 2018).
"""

from __future__ import annotations

from fljax.updates.privacy import mechanism, settings

Privacy = settings.Privacy

CLIPS = mechanism.CLIPS
Adaptive = mechanism.Adaptive
Draw = mechanism.Draw
Kept = mechanism.Kept
Ledger = mechanism.Ledger
Mechanism = mechanism.Mechanism
bounded = mechanism.bounded
clipped = mechanism.clipped
released = mechanism.released
