"""Losses of tensors, some with small networks of their own; none knows a data set or a backbone."""
