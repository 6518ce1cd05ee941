"""T2MV core: few-step text-to-multiview sampling, its policy, rewards and LoRA.

Shape letters used in every docstring of this package:
    B  prompts in a batch          V  views of one prompt       T  denoising steps
    C  latent channels             H, W  latent height, width   n  pictures, n = B·V (views contiguous)

Pictures are float tensors [n, 3, H, W] in [0, 1]. Importing this package imports nothing heavy.
"""

__version__ = "0.2.0"
