"""Mechanism: bytes on the device. Import the modules directly (`from kernels import reference`)."""
