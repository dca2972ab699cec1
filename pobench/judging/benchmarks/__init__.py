"""The published benchmarks. `<name>.py` generates and judges answers; `<name>_score.py` scores stored verdicts.

AlpacaEval, MT-Bench and the downstream tasks use their authors' own packages; Arena-Hard's formula is in its file.
"""
