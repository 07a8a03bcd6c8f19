"""Engines: where planned work runs."""
