"""Tensor operations of image generators: tensors in, tensors out."""
