"""The one step of the build that pyproject.toml cannot say.

Stock nnU-Net commands find the trainers because ``import torch`` calls the ``torch.backends`` entry point. torch turns *any* failure of an entry point into a failed ``import torch``,
so the module behind it must stay importable even when the rest of this package is not: a checkout that was
installed with ``pip install -e`` and then moved or deleted must not take torch down with it. The module is
therefore copied into site-packages in an editable install too, where setuptools would only link it.
"""

import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

AUTOLOAD = "nnunet_partial_autoload"


class build_py_with_autoload(build_py):
    def run(self):
        super().run()
        if self.editable_mode:
            shutil.copy(AUTOLOAD + ".py", self.get_finalized_command("install").install_lib)


setup(cmdclass={"build_py": build_py_with_autoload})
