"""Losses as pure functions of tensors: no weights, no state, no data set."""
