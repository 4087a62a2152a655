"""PASTA-LANG: documents, token sequences, the visibility rule, grammar tables, the reference interpreter."""
