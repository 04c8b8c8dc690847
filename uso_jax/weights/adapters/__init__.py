# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters of every public layout: read from files, fitted to a base model, merged or kept beside its weights.

sources   FILE, DIR or WORKDIR -> tensors by key
keys      key -> module of the base and the tensor's role in it
names     module -> parameters of the transformer, and the place of a low-rank adapter beside it
changes   tensors of a module -> what is added to its weight and bias
fitting   everything an adapter changes in one base; what it is for, if it does not fit
arrays    parameters on disk with changes added as they are read
adapted   a weights directory with several adapters and strengths
low_rank_sum  what is kept beside quantised weights
projector     a style projector's file
"""
