"""Imported by the server that forks the workers, behind all else: from here on it sees at a pipe that the command has ended,
and no longer ends with the thread that started it."""

from __future__ import annotations

from pobench.orphans import outlive_starter

outlive_starter()
