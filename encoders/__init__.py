"""Encoder-only language models in JAX and Flax."""


def load(run, step: str = "best", batch: int = 32):
    """A run, trained or imported, that answers questions about new texts: `encoders.inference.predictor.Predictor`.

    import encoders
    predictor = encoders.load("runs/bert-base")
    next(predictor.fill_masks(["The capital of France is [MASK]."]))
    """
    from encoders.inference import predictor

    return predictor.load_predictor(run, step, batch)
