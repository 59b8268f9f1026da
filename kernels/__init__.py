"""Triton kernels and their launchers, one operation per file; imported when a call first needs one."""
