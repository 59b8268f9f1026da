"""What kernels share: launches, tuning, maps in memory, sums over the batch, convolutions, resizing."""
