"""Runs: configuration, plan, checks, execution, provenance."""
