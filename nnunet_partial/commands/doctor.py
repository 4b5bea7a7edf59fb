"""``nnunet_partial doctor``."""

DESCRIPTION = """Show what nnU-Net finds of this package, the versions, folders and devices, and for every problem the
line that mends it. nnU-Net's own search for trainers is run, in a process of its own. Exit code 0: all is well, 1: a
problem."""
EXAMPLE = "nnunet_partial doctor"


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(arguments):
    import json

    from nnunet_partial import doctor

    if not arguments.json:
        print("importing torch and nnU-Net in a process of its own, as nnUNetv2_train does", flush=True)
    findings = doctor.examine()
    print(json.dumps(doctor.as_json(findings), indent=4) if arguments.json else doctor.as_text(findings))
    if any(i.remedy is not None for i in findings):
        raise SystemExit(1)
