"""The Triton kernels and their launchers. The only place that imports triton; nothing here is imported without it."""
