"""The published benchmarks, scored by their authors' own code: two files each, answers and verdicts, and the score."""
