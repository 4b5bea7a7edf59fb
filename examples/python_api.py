# %% [markdown]
# # From two datasets that label one organ each to a model of both, in Python
#
# Every cell calls `nnunet_partial.api`, which is what the commands call too; planning and training are nnU-Net's own
# commands. The patients are phantoms, made on the spot, and the training is a few steps long: a minute or two on a CPU.
# Run it as a script (`python examples/python_api.py FOLDER`), or cell by cell in an editor that knows `# %%`.

# %%
import os
import subprocess
import sys
from pathlib import Path

from nnunet_partial import api
from nnunet_partial.demo import phantoms

folder = Path(sys.argv[1] if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else "api_example").absolute()
for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    (folder / name).mkdir(parents=True, exist_ok=True)
    os.environ[name] = str(folder / name)
os.environ.update(nnUNet_n_proc_DA="1", nnUNet_def_n_proc="1")


def nnunet(command: str, *arguments: object) -> None:
    """One of nnU-Net's commands, of the environment that runs this."""
    subprocess.run([str(Path(sys.executable).parent / command), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


# %% Two downloads: LiTS with livers, KiTS with kidneys
phantoms.make_lits(folder / "lits", 5)
phantoms.make_kits(folder / "kits", 5)

# %% Convert each; the images stay where they are
for number, (source, organ) in enumerate({"lits": "liver", "kits": "kidney"}.items(), 101):
    report = api.convert(source, folder / source, number, organs=organ, processes=1)
    print(report.folder, len(report.converted), "cases")

# %% Merge them: each case keeps what it annotates
merged = api.merge(
    501,
    "Both",
    [api.SourceSpec("lits", 101, ["liver"]), api.SourceSpec("kits", 102, ["kidney"])],
    processes=1,
)
print(merged.annotations.classes, merged.annotations.sources, merged.warnings)

# %% Bad input is one line that says what to do
try:
    api.merge(502, "Wrong", [api.SourceSpec("lits", 101, ["spleen"])])
except api.UserError as error:
    print("refused:", error)

# %% Plan and preprocess once, by nnU-Net; then a variant that trains in seconds
nnunet("nnUNetv2_plan_and_preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1, "-npfp", 1)
tiny = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "features": [4, 8, 8], "batch_size": 2}
plans = api.variant(501, "tiny", {**tiny, "patch_size": [16, 16, 16]}, configuration="3d_fullres")
print(plans)

# %% Train, by nnU-Net
os.environ["nnUNet_n_proc_DA"] = "0"
trainer = "nnUNetTrainerPartial"
nnunet("nnUNetv2_train", 501, "3d_fullres", 0, "-tr", trainer, "-p", plans.stem, "-device", "cpu")
model = folder / "nnUNet_results" / merged.folder.name / f"{trainer}__{plans.stem}__3d_fullres"

# %% Evaluate the validation cases on what each of them annotates
validation, truth = model / "fold_0" / "validation", merged.folder / "labelsTr"
# the cases of the other folds have no prediction here
rows = api.evaluate(validation, truth, 501, folder / "evaluation", metrics=["dice"], allow_missing=True, processes=1)
for row in rows:
    print(row["case"], row["class"], round(row["dice"], 3))

# %% A model for anybody with stock nnU-Net
exported = api.export(model, folder / "exported", folder / "model.zip")
print(folder / "exported" / exported)
