"""Rewards: one file per scorer; `registry` finds and loads them by name."""
