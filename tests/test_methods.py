"""What trainers say of themselves is read from their source, and is what their classes say."""

import pytest

from nnunet_partial.errors import UserError
from nnunet_partial.methods import find_trainer_source, package_trainers, trainers_with_block
from nnunet_partial.settings import BLOCKS

MINE = '''
from somewhere import PartialTrainer, other

class Base(other.PartialTrainer):
    short_name, title = "base", "The base"
    needs_teachers = needs_labels = True
    settings_name: str = "mine"

class Ablation(Base):
    """Neither its parent's short name nor its title."""
    needs_labels = False

class nnUNetTrainerStock:
    pass

class OwnNetwork(PartialTrainer):
    @staticmethod
    def build_network_architecture(*args):
        pass

class BuiltByNNUNet(nnUNetTrainerBN):
    pass

class Helper:
    needs_labels = True

def function():
    class Hidden(Base):
        pass
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("class nnUNetTrainerBroken(:\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    return tmp_path


def test_what_the_source_says_is_what_the_class_says():
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    import nnunet_partial.trainers as trainers

    sources = package_trainers()
    assert sorted(sources) == sorted(trainers.__all__) and len(sources) > 15
    for name, source in sources.items():
        cls = getattr(trainers, name)
        for key in ("needs_teachers", "needs_labels", "settings_name"):
            assert getattr(source, key) == getattr(cls, key), (name, key)
        for key in ("short_name", "title"):
            assert getattr(source, key) == vars(cls).get(key), (name, key)
        own_network = cls.build_network_architecture is not nnUNetTrainer.build_network_architecture
        assert source.own_network == own_network, name
        assert source.settings_name is None or BLOCKS.get(source.settings_name, cls.settings_class) is cls.settings_class


def test_trainers_of_ones_own_are_described(folder):
    base, ablation = find_trainer_source("Base"), find_trainer_source("Ablation")
    assert (base.short_name, base.title, base.needs_teachers, base.needs_labels) == ("base", "The base", True, True)
    assert (ablation.short_name, ablation.title, ablation.needs_teachers, ablation.needs_labels) == (None, None, True, False)
    assert ablation.settings_name == "mine" and ablation.bases == ("Base", "PartialTrainer")
    assert sorted(trainers_with_block("mine")) == ["Ablation", "Base"]
    assert find_trainer_source("nnUNetTrainerStock").file == folder / "below" / "mine.py"
    assert find_trainer_source("nnUNetTrainerDA5").file.parts[-3] == "variants"  # nnU-Net's own


@pytest.mark.parametrize("name", ("Helper", "Hidden", "nnUNetTrainerBroken", "Abblation"))
def test_what_nnunet_would_not_find_is_refused(folder, name):
    with pytest.raises(UserError, match=f"nnU-Net finds no trainer called {name}"):
        find_trainer_source(name)


def test_a_name_that_is_almost_right_is_suggested():
    with pytest.raises(UserError, match="Did you mean nnUNetTrainerMSKD "):
        find_trainer_source("nnUNetTrainerMSDK")


def test_an_attribute_that_cannot_be_read_is_named(folder):
    (folder / "below" / "mine.py").write_text(MINE.replace('"The base"', "name()"))
    with pytest.raises(UserError, match=r"mine.py:5: Base.title is read from the source"):
        find_trainer_source("Base")


def test_whose_network_stock_nnunet_has(folder):
    names = ("Base", "OwnNetwork", "BuiltByNNUNet", "nnUNetTrainerBN", "nnUNetTrainer")
    assert [find_trainer_source(i).own_network for i in names] == [False, True, False, False, False]
