"""CPU time of `import odediff`, and of loading every public name, beyond torch: the best of five fresh interpreters.

python bench/import_time.py
"""

from __future__ import annotations

import subprocess
import sys

from common import environment, write

CODE = """
import time, torch
began = time.process_time()
import odediff
bare = time.process_time() - began
for name in odediff.__all__:
    getattr(odediff, name)
print(bare, time.process_time() - began)
"""


def main() -> None:
    runs = [subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True) for _ in range(5)]
    bare, everything = (min(1e3 * float(run.stdout.split()[k]) for run in runs) for k in (0, 1))
    print(f"import odediff {bare:.1f} ms, every public name {everything:.1f} ms beyond torch; {environment()}")
    write("import_time", {"import_ms": bare, "every_public_name_ms": everything})


if __name__ == "__main__":
    main()
