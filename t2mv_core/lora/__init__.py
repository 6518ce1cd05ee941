"""LoRA: attached to a UNet (`adapters`), read from the layouts people publish (`layouts`)."""
