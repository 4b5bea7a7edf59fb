"""Where a label lies: every structure is scored, the label's own header is heard, a close call is named."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.data.conversion import AS_STORED, alignment
from nnunet_partial.data.grids import reordering
from nnunet_partial.data.images import Geometry
from nnunet_partial.demo import phantoms
from nnunet_partial.errors import UserError

Y = (1,)


@pytest.fixture
def body():
    """A liver in soft tissue, its tumour off the middle; mirrored front to back, the tumour lands within the liver."""
    z, y, x = np.indices((16, 40, 30))
    ct = np.where((x + y + z) % 3, -100, 60).astype(np.int16)
    liver = ((z - 8) / 6) ** 2 + ((y - 17) / 11) ** 2 + ((x - 12) / 9) ** 2 < 1
    tumour = ((z - 8) / 2.5) ** 2 + ((y - 15) / 3) ** 2 + ((x - 12) / 3) ** 2 < 1
    ct[liver], ct[tumour] = 110, 40
    return ct, np.where(tumour, 2, np.where(liver, 1, 0)).astype(np.uint8)


def test_the_worst_structure_decides(body):
    ct, label = body
    samples = alignment.sample(label)
    right, mirrored = alignment.uniformities(ct, samples), alignment.uniformities(ct, samples, Y)
    assert right == [1, 1]
    assert mirrored[1] > 0.9, "the tumour lies within the liver all the same"
    assert np.mean(right) - np.mean(mirrored) < alignment.CLEARLY < min(right) - min(mirrored), "the mean would not see it"
    wrong = np.ascontiguousarray(label[:, ::-1])
    assert alignment.find_mirror(ct, wrong, AS_STORED).mirror == Y
    assert alignment.find_mirror(ct, label, AS_STORED) == alignment.Choice(())


def test_a_small_difference_decides_between_the_label_as_stored_and_its_header_and_is_named(body):
    ct, label = body
    label = np.where(label == 1, 1, 0).astype(np.uint8)
    nearly = np.roll(label, -3, axis=1)  # three voxels from its mirror image around the middle of the volume
    wrong = np.ascontiguousarray(nearly[:, ::-1])
    ct = np.where(nearly, 110, ct)
    assert alignment.find_mirror(ct, nearly, AS_STORED, claimed=Y).mirror == ()
    assert alignment.find_mirror(ct, wrong, AS_STORED, claimed=Y).mirror == Y
    flat = np.full_like(ct, 50)  # an image that does not tell: the label stays as stored, and that is said
    choice = alignment.find_mirror(flat, nearly, AS_STORED, claimed=Y)
    assert choice == alignment.Choice((), Y)
    assert alignment.find_mirror(flat, nearly, AS_STORED).doubt is None, "nothing speaks for another place"


def test_a_label_of_nothing_or_of_another_image(body):
    ct, label = body
    assert alignment.find_mirror(ct, np.zeros_like(label), AS_STORED) == alignment.Choice(())
    noise = np.random.default_rng(0).integers(-900, 900, ct.shape).astype(np.int16)
    with pytest.raises(UserError, match="does not lie on its organs"):
        alignment.find_mirror(noise, label, AS_STORED)


def saved_again(mask):
    """As a viewer does: voxels front to back the other way round, and a header that says so."""
    return sitk.Flip(mask, (False, True, False), False)


def test_a_mask_that_was_saved_again_by_a_viewer_is_where_its_header_says(src, tools, run):
    patient = phantoms.make_patient(3)
    mask = patient.label_image({phantoms.LIVER: 1, phantoms.LIVER_TUMOUR: 2})
    other = saved_again(mask)
    assert not np.allclose(other.GetDirection(), mask.GetDirection())
    sitk.WriteImage(patient.ct_image(), str(src / "volume-1.nii"))
    sitk.WriteImage(other, str(src / "segmentation-1.nii"))
    report = run("lits", src, "--organs", "liver,tumor")
    expected = {"lits_001": ([src / "volume-1.nii"], sitk.GetArrayFromImage(mask), ["liver", "tumor"])}
    tools.check(report, source="lits", classes=["liver", "tumor"], cases=expected)
    assert any("as its own header says and the image confirms" in note for note in report.converted["lits_001"].notes)


def test_a_close_call_is_named_in_the_report_and_in_the_record_that_check_reads(src, tools, run):
    image = tools.image(np.full((12, 20, 16), 40, np.int16))
    label = np.zeros((12, 20, 16), np.uint8)
    label[3:9, 2:8, 4:12] = 1
    mask = saved_again(tools.image(label))
    sitk.WriteImage(image, str(src / "volume-1.nii"))
    sitk.WriteImage(mask, str(src / "segmentation-1.nii"))
    report = run("lits", src)
    assert any("a close call: the label mirrored along y fits the image nearly as well" in line for line in report.lines())
    assert "a close call" in (report.folder / "conversion.json").read_text()


@pytest.mark.parametrize("order", ["LPS", "RAS", "SAR", "PIL", "ASL"])
def test_reordering_is_what_itk_does(order, tools):
    array = np.random.default_rng(0).integers(0, 99, (5, 6, 7)).astype(np.int16)
    image = tools.image(array, direction=(0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
    other = sitk.DICOMOrient(image, order)
    found = reordering(Geometry.of(other), Geometry.of(image))
    assert np.array_equal(found.apply(sitk.GetArrayFromImage(other)), array)
    other.SetOrigin([i + 3 for i in other.GetOrigin()])
    assert reordering(Geometry.of(other), Geometry.of(image)) is None
