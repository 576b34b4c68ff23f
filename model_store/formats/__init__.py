"""Prompts of other tools, read into TaskPrompts and written from them."""
