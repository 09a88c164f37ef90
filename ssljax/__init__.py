"""ssljax: pretrain vision and image-text foundation models with one train loop, on a laptop core or a TPU pod."""

__version__ = "0.1.0"
