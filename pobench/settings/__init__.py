"""Settings: YAML and --set become fully resolved jobs."""
