"""Decoding: prefill, the jitted step, device loops, requests, streaming."""
