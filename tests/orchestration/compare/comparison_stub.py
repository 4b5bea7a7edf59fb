"""Stands in for the commands of a comparison, by whichever name it is called: quick, deterministic, killable anywhere.

What a step writes is a hash of everything that it read, so that one wrong or half-written input changes all that follows.
A training keeps a checkpoint after each epoch and goes on from it; a prediction writes its settings first and its files one
by one, not atomically, as nnU-Net does. Every start is noted in STUB_LOG.
"""

import gzip
import hashlib
import json
import os
import shutil
import sys
import time

EPOCHS, PAUSE_S = 3, 0.01


def main():
    name, argv = os.path.basename(sys.argv[0]), sys.argv[1:]
    if name == "nnunet_partial":
        name, argv = argv[0], argv[1:]
    with open(os.environ["STUB_LOG"], "a") as log:
        log.write(" ".join([name, *argv]) + "\n")
    if os.environ.get("STUB_FAILS") in argv:
        sys.exit("the stub was told to fail")
    {
        "nnUNetv2_train": train,
        "nnUNetv2_predict_from_modelfolder": predict,
        "pseudo-label": label,
        "variant": variant,
        "fuse": fuse,
        "evaluate": evaluate,
        "efficiency": efficiency,
        "report": report,
        "convert": convert,
        "merge": merge,
        "check": check,
        "nnUNetv2_plan_and_preprocess": plan,
        "export": export,
    }[name](argv)


def option(argv, name, default=None):
    return argv[argv.index(name) + 1] if name in argv else default


def several(argv, name):
    """The values behind an option, up to the next option."""
    start = argv.index(name) + 1
    end = next((i for i in range(start, len(argv)) if argv[i].startswith("-")), len(argv))
    return argv[start:end]


def digest(*parts):
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def read(path, encoding="utf-8"):
    with open(path, encoding=encoding) as handle:
        return handle.read()


def contents(folder):
    return [f"{i}={read(os.path.join(folder, i), 'latin-1')}" for i in sorted(os.listdir(folder)) if i.endswith(".nii.gz")]


def write(text, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = os.path.join(os.path.dirname(path), f".tmp-{os.getpid()}-{os.path.basename(path)}")
    with open(temporary, "w") as handle:
        handle.write(text)
    os.replace(temporary, path)


def preprocessed(dataset):
    return os.path.join(os.environ["nnUNet_preprocessed"], dataset)


def sources(dataset):
    cases = json.loads(read(os.path.join(preprocessed(dataset), "dataset.json")))["nnunet_partial"]["cases"]
    return sorted({i["source"] for i in cases.values()})


def variant(argv):
    folder, base = preprocessed(argv[0]), option(argv, "--base")
    content = json.loads(read(os.path.join(folder, base + ".json")))
    settings = dict(i.split("=", 1) for n, i in enumerate(argv) if argv[n - 1] == "--set")
    names = {option(argv, "--name"): {}} if "--name" in argv else {i: {"source": i} for i in sources(argv[0])}
    for name, more in names.items():
        plans = {
            **content,
            "plans_name": f"{base}_{name}",
            "nnunet_partial": {**content.get("nnunet_partial", {}), **settings, **more},
        }
        file = os.path.join(folder, f"{base}_{name}.json")
        if os.path.exists(file) and json.loads(read(file)) != plans:
            sys.exit(f"{file} exists with other settings")
        write(json.dumps(plans), file)


def train(argv):
    dataset, configuration, fold = argv[:3]
    trainer, plans = option(argv, "-tr"), option(argv, "-p")
    content = read(os.path.join(preprocessed(dataset), plans + ".json"))
    model = os.path.join(os.environ["nnUNet_results"], dataset, f"{trainer}__{plans}__{configuration}")
    folder = os.path.join(model, f"fold_{fold}")
    settings = json.loads(content)["nnunet_partial"]
    labels = settings.get("labels", "")
    given = read(os.path.join(labels.replace("{fold}", fold), "provenance.json")) if labels else ""
    latest, final = (os.path.join(folder, f"checkpoint_{i}.pth") for i in ("latest", "final"))
    if not os.path.exists(final):
        where = os.path.dirname(os.environ["nnUNet_results"])
        start = [0, digest(trainer, content.replace(where, ""), given, fold)]
        state = json.loads(read(latest)) if os.path.exists(latest) else start
        for epoch in range(state[0], EPOCHS):
            time.sleep(PAUSE_S)
            write(content, os.path.join(model, "plans.json"))
            state = [epoch + 1, digest(epoch, state[1])]
            write(json.dumps(state), latest)
        os.replace(latest, final)
    if settings.get("final_validation") == "false":
        return
    write(digest(read(final)), os.path.join(folder, "validation", "case.nii.gz"))
    write("{}", os.path.join(folder, "validation", "summary.json"))


def label(argv):
    out, plans = option(argv, "--out"), option(argv, "--plans")
    root = os.path.join(os.environ["nnUNet_results"], argv[0])
    folders = [f"nnUNetTrainerIndividual__{plans}_{i}__{option(argv, '--configuration')}" for i in sources(argv[0])]
    teachers = [read(os.path.join(root, i, f"fold_{option(argv, '--fold')}", "checkpoint_final.pth")) for i in folders]
    time.sleep(PAUSE_S)
    provenance = os.path.join(out, "provenance.json")
    if not (os.path.exists(provenance) and read(provenance) == digest(*teachers)):  # finished labels keep their date
        write(digest(*teachers), provenance)


def predict(argv):
    out, model, images = option(argv, "-o"), option(argv, "-m"), option(argv, "-i")
    os.makedirs(out, exist_ok=True)
    write("{}", os.path.join(out, "predict_from_raw_data_args.json"))
    weights = [read(os.path.join(model, f"fold_{i}", "checkpoint_final.pth")) for i in several(argv, "-f")]
    if "STUB_KNOWS" in os.environ:  # the truth beside the images
        truth = os.path.join(os.path.dirname(images), "labelsTs")
        for name in os.listdir(truth):
            shutil.copyfile(os.path.join(truth, name), os.path.join(out, name))
        return
    for image in sorted(os.listdir(images)):
        content = gzip.compress(digest(*weights, image).encode().ljust(352), mtime=0)  # as long as the header of an image
        with open(os.path.join(out, image.replace("_0000", "")), "wb") as handle:
            handle.write(content[:20])
            handle.flush()
            time.sleep(PAUSE_S)
            handle.write(content[20 : 30 if "STUB_CUTS" in os.environ else None])


def fuse(argv):
    out = option(argv, "--out")
    write(digest(*(j for i in several(argv, "--pred") for j in contents(i))), os.path.join(out, "case.nii.gz"))
    write("{}", os.path.join(out, "dataset.json"))


def evaluate(argv):
    rows, labels = [], json.loads(read(os.path.join(preprocessed(option(argv, "--dataset")), "dataset.json")))["labels"]
    for text in (j for i in several(argv, "--pred") for j in contents(i)):
        for name in list(labels)[1:]:
            dice = int(digest(name, text)[:4], 16) / 16**4
            rows.append({"case": text.split(".nii.gz=")[0], "source": "", "class": name, "dice": dice})
    write(json.dumps({"rows": rows}), os.path.join(option(argv, "--out"), "metrics.json"))


def efficiency(argv):
    models = [i for n, i in enumerate(argv) if argv[n - 1] == "--model"]
    weights = [read(os.path.join(i.split("=", 1)[1], f"fold_{option(argv, '--fold')}", "checkpoint_final.pth")) for i in models]
    write(digest(*weights, option(argv, "--cases")), option(argv, "--out"))


def convert(argv):
    time.sleep(PAUSE_S)
    folder = f"Dataset{option(argv, '--dataset-id')}_{option(argv, '--name')}"
    names = sorted(i for _, _, files in os.walk(argv[1]) for i in files)
    write(digest(*names, option(argv, "--organs")), os.path.join(os.environ["nnUNet_raw"], folder, "dataset.json"))


def merge(argv):
    root = os.environ["nnUNet_raw"]
    folder = os.path.join(root, f"Dataset{option(argv, '--dataset-id')}_{option(argv, '--name')}")
    if os.path.exists(folder):
        sys.exit(f"{folder} is taken")
    sources = [i for n, i in enumerate(argv) if argv[n - 1] == "--source"]
    raw = [read(os.path.join(root, i, "dataset.json")) for i in sorted(os.listdir(root)) if i.startswith("Dataset1")]
    time.sleep(PAUSE_S)
    organs = {"kits": "kidney", "lits": "liver"}
    organs = {i.split("=")[0]: i.split(":")[1] if ":" in i else organs[i.split("=")[0]] for i in sources}
    cases = {f"{s}_{i}": {"source": s, "annotated": [o]} for s, o in organs.items() for i in range(5)}
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{i: n for n, i in enumerate(organs.values(), 1)}},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "nnunet_partial": {"version": 1, "cases": cases},
        "made_from": digest(*raw, *sources),
    }
    for case in cases:
        write(case, os.path.join(folder, "imagesTr", f"{case}_0000.nii.gz"))
    write(json.dumps(content), os.path.join(folder, "dataset.json"))


def check(argv):
    time.sleep(PAUSE_S)
    write("{}", os.path.join(option(argv, "--out"), "check.json"))


def plan(argv):
    number, root = option(argv, "-d"), os.environ["nnUNet_raw"]
    if os.environ.get("nnUNet_n_proc_DA") == "0":
        sys.exit("nnU-Net's planner sets that many threads")
    dataset = next(i for i in os.listdir(root) if i.startswith(f"Dataset{number}_"))
    folder = preprocessed(dataset)
    content = read(os.path.join(root, dataset, "dataset.json"))
    write(content, os.path.join(folder, "dataset.json"))
    configurations = {}
    for name in several(argv, "-c"):
        axes = 2 if name == "2d" else 3
        network = {"arch_kwargs": {"strides": [[1] * axes, [2] * axes], "features_per_stage": [8, 16]}}
        configurations[name] = {"batch_size": 2, "patch_size": [8] * axes, "architecture": network}
    plans = {"plans_name": "nnUNetPlans", "made_from": digest(content), "configurations": configurations}
    write(json.dumps(plans), os.path.join(folder, "nnUNetPlans.json"))
    time.sleep(PAUSE_S)
    names = sorted(json.loads(content)["nnunet_partial"]["cases"])
    parts = [{"train": [i for i in names if i[-1] != str(f)], "val": [i for i in names if i[-1] == str(f)]} for f in range(5)]
    write(json.dumps(parts), os.path.join(folder, "splits_final.json"))
    for name in (f"nnUNetPlans_{c}/{i}.pkl" for c in configurations for i in names):
        write("", os.path.join(folder, name))


def export(argv):
    weights = [read(os.path.join(argv[0], f"fold_{i}", "checkpoint_final.pth")) for i in several(argv, "--folds")]
    write(digest(*weights), option(argv, "--zip"))


def report(argv):
    given = [i.split("=", 1) for n, i in enumerate(argv) if argv[n - 1] == "--evaluation"]
    text = "\n".join(f"{name} {read(os.path.join(folder, 'metrics.json'))}" for name, folder in given)
    if "--efficiency" in argv:
        text += f"\nefficiency {read(option(argv, '--efficiency'))}"
    write(text, option(argv, "--out"))
    write(text, option(argv, "--out").replace(".html", ".md"))


main()
