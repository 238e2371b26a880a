"""Image generators and samplers, built on `kernels`."""
