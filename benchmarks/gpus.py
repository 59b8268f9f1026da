"""What plans for a GPU depend on, of GPUs that need not be here."""

from fastattn.core.cuda import Device

# By compute capability: an A100, an RTX 4090, an H100, a B200, an RTX 5090
GPUS = {
    80: Device(80, 108, 166912, 40 << 20),
    89: Device(89, 128, 101376, 72 << 20),
    90: Device(90, 132, 232448, 50 << 20),
    100: Device(100, 148, 232448, 126 << 20),
    120: Device(120, 170, 101376, 96 << 20),
}
