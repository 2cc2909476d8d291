"""Runs on disk: written safely, merged, held against each other."""
