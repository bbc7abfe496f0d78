"""Heads on sequences of frames: acoustic frames, hidden frames of a speech recogniser, tokens of a text."""
