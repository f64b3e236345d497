"""What is refused of an autoencoder's training arguments, one by itself or in a sweep."""


def check_run(decoder_bias: str, warmup_steps: int, decay_fraction: float, dead_window: int) -> None:
    """Raise ValueError for arguments out of their range, of those that all autoencoders of a run share."""
    if not 0 <= decay_fraction <= 1:
        raise ValueError(f"decay_fraction {decay_fraction} is no fraction: choose 0 to 1")
    if decoder_bias not in ("zero", "geometric_median"):
        raise ValueError(f"decoder_bias {decoder_bias!r} is unknown: choose zero or geometric_median")
    if dead_window < 1:
        raise ValueError(f"dead_window is {dead_window}: at least one input is needed")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps is {warmup_steps}: it cannot be below 0")


def check_member(
    learning_rate: float,
    resample_every: int | None,
    auxk_coefficient: float | None,
    auxk_latents: int | None,
    where: str = "",
) -> None:
    """Raise ValueError, which begins with `where`, for arguments out of their range, of those of one autoencoder."""
    for name, value in (("learning_rate", learning_rate), ("auxk_coefficient", auxk_coefficient)):
        if value is not None and value <= 0:
            raise ValueError(f"{where}{name} is {value}: it must be above 0")
    if resample_every is not None and resample_every < 1:
        raise ValueError(f"{where}resample_every is {resample_every}: at least 1 is needed, or null for no revival")
    if auxk_latents is not None and (auxk_latents < 1 or auxk_coefficient is None):
        raise ValueError(f"{where}auxk_latents is {auxk_latents}: choose at least 1, and set auxk_coefficient with it")
