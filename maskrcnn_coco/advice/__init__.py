"""The largest stable learning rates, measured; settings that follow."""
