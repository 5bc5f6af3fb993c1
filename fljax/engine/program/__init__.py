"""What a compiled program is made for: clients of one window, of all, of widths."""

from fljax.engine.program.base import Batch, Blocks, Own, Program, Stepped, Window

__all__ = ["Batch", "Blocks", "Own", "Program", "Stepped", "Window"]
