"""Annotation: plain answers become documents in PASTA-LANG, by rules or by a language model behind HTTP."""
