"""Frozen encoders behind one seam, the attention call."""
