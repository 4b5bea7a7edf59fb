"""``nnunet_partial run project.toml``."""

from nnunet_partial.commands import trusting
from nnunet_partial.orchestration.executor_options import add_executor_options, device_of, executor_of
from nnunet_partial.orchestration.run.steps import STAGES

DESCRIPTION = f"""From downloads to a model by one file: convert, merge, check, plan and preprocess, train teachers, label, train,
predict, evaluate, report, export. nnunet_partial init writes such a file; docs/project_file.md explains every key.

Everything that can be wrong is looked for first, in seconds, before anything is written. Every step is an ordinary command;
--dry-run prints them, and what they will take as far as this machine has measured such steps. Started again with the same
file, a run that was interrupted goes on where it was. Methods, seeds, the test set and exports may be added later.

--until {", ".join(STAGES)}, or the name of a step"""
EXAMPLE = """nnunet_partial run project.toml --dry-run
         nnunet_partial run project.toml
         nnunet_partial run project.toml --status
         nnunet_partial run project.toml --until plan
         nnunet_partial run project.toml --executor slurm --slurm partition=gpu --slurm gpus_per_node=1"""


def add_arguments(parser):
    parser.add_argument("project", metavar="project.toml", help="the project file")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--dry-run", action="store_true", help="check, print the plan and what it will take, do nothing")
    shown.add_argument("--status", action="store_true", help="print how far it is: states, epochs, time left")
    parser.add_argument("--until", metavar="STEP", help="stop after this stage or step")
    add_executor_options(parser)
    trusting.add_argument(parser)


def run(arguments):
    from nnunet_partial import api
    from nnunet_partial.orchestration.status import costs_of

    device = device_of(arguments)
    work = api.project(arguments.project, device, arguments.trust, until=arguments.until, check=not arguments.status)
    if arguments.status:
        print(work.status())
        return
    print("\n".join(work.plan.lines))
    if arguments.dry_run:
        print(f"\n{work.overview()}")
    print(f"\n{costs_of(work)}", flush=True)
    if arguments.dry_run:
        return
    work.executor = executor_of(arguments, work.folder)
    for page in work.run():
        print(f"\n{page.with_suffix('.md').read_text(encoding='utf-8')}\nreport: {page}")
    for exported in work.exported():
        print(f"model:  {exported}")
