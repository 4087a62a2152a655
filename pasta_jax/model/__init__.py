"""The transformer: configurations, parameters, weights from files, tokenizers."""
