"""Measurement: speed, quality, peers."""
