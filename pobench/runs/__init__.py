"""Runs: jobs and stages planned, executed and measured."""
