import pytest

from callbacks import ProbeExport
from lightning_modules import ConvSAE
from tests.sae_training import PlantedData, small_trainer


def test_a_module_that_fits_no_probes_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"ConvSAE fits none: take it out of trainer\.callbacks"):
        small_trainer(1, callbacks=[ProbeExport()]).fit(
            ConvSAE("planted", expansion=2, compile=False), datamodule=PlantedData()
        )
