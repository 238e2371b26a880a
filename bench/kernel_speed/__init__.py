"""How fast kernels and whole generators are on this machine, beside what they replace: `python -m bench kernels`."""
