"""Training in this process, without nnU-Net's final validation (which starts worker processes)."""
import os

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over several threads are not reproducible to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def own_results(tmp_path, monkeypatch):
    """A results folder for this test alone."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def make_trainer(tiny, name, plans=None, configuration="3d_fullres", fold=0, continue_training=False):
    from nnunetv2.run.run_training import get_trainer_from_args

    return get_trainer_from_args(str(tiny.id), configuration, fold, name, plans or tiny.plans, continue_training,
                                 torch.device("cpu"))


@pytest.fixture
def trainer(tiny):
    """``trainer(name, plans, configuration, fold)`` -> a trainer as ``nnUNetv2_train`` makes it."""
    return lambda *args, **kwargs: make_trainer(tiny, *args, **kwargs)


@pytest.fixture(scope="session")
def teachers(tiny):
    """One trained teacher per source of ``tiny``, under their conventional names, for both configurations."""
    from nnunet_partial.variants import write_source_variants

    os.environ["nnUNet_results"] = str(tiny.folders.results)
    written = write_source_variants(tiny.id, {}, tiny.plans)
    for plans in written:
        for configuration in ("3d_fullres", "2d"):
            make_trainer(tiny, "nnUNetTrainerIndividual", plans.stem, configuration).run_training()
    return tiny.results
