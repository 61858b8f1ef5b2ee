"""Token-mixing operations and the loss: a naive form (the specification), a fast form, a one-token step.

Letters in names: B batch, T tokens, D channels, H heads, G key/value heads, K key size, V value size or vocabulary,
P Mamba head size, N Mamba state size, C chunk, S cached and new tokens together.
"""
