"""Tests of the Triton kernels in Triton's interpreter, run by `test_interpreted.py` in a process of their own."""
