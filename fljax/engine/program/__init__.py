"""What a compiled program is made for: clients of one window, of all, of widths."""

from fljax.engine.program import base

Batch = base.Batch
Blocks = base.Blocks
Own = base.Own
Program = base.Program
Stepped = base.Stepped
Window = base.Window
