"""Before ComfyUI looks for a card: its options `--lowvram` and `--novram` exclude `--cpu`."""

from comfy.cli_args import args

args.cpu = True
