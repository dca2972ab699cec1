"""Settings: a YAML file and `--set` options become fully resolved jobs.

read.py → resolve.py (checked by schema.py and faults.py) → job.py; keys.py says what every key means
"""
