"""The UNet's two additions: multiview attention, and the camera encoder beside it."""
