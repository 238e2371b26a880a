"""One module a family: each function computes every output that the golden cases of one official class record."""
