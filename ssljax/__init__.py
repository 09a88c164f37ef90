"""ssljax: pretrain vision and image-text foundation models with one train loop, on a laptop core or a TPU pod."""

__version__ = "0.1.0"


def load(workdir, step=None):
    """A frozen encoder from a checkpoint: `features = ssljax.load("runs/simclr")(images)`; see `ssljax.encoder.Encoder`."""
    from ssljax import encoder

    return encoder.restore(workdir, step)
