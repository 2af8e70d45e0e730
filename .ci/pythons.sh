#!/usr/bin/env bash
# The wheel with its `cpu` extra in every supported Python that is here: the runtime's tests, and the
# texts of the committed models. In Python 3.10 also with the oldest declared dependencies.
# PYTHONS="python3.12 python3.10-oldest" chooses; the table goes to build/pythons/table.md, with a line
# for each Python that is not here. Exit code 1 where something failed, 2 where no Python was found.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD/build/pythons
rm -rf "$here" && mkdir -p "$here/tree"
cp -r tests docs LICENSE README.md pyproject.toml "$here/tree"
.venv/bin/python .ci/committed_models.py "$here/committed"

find_python() {
  command -v "$1" > /dev/null && "$1" -c 'import venv, ensurepip' 2> /dev/null && command -v "$1" && return
  local found=("${PYENV_ROOT:-$HOME/.pyenv}"/versions/"${1#python}"*/bin/python)
  [ -x "${found[0]}" ] && echo "${found[0]}"
}

oldest() { # what pyproject.toml declares, at its lower bounds
  .venv/bin/python - << 'PYTHON'
import re
from pathlib import Path
try:
    import tomllib
except ImportError:
    import tomli as tomllib
project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for line in project["dependencies"] + project["optional-dependencies"]["cpu"]:
    print(re.sub(r">=([^,;]+).*", r"==\1", line))
PYTHON
}

failed=0
tried=0
check() { # name, interpreter, file of constraints
  local place=$here/$1 log=$here/$1.log
  "$2" -m venv "$place" > "$log" 2>&1 &&
    "$place/bin/python" -m pip install --quiet --disable-pip-version-check ${3:+-c "$3"} "$(echo "$PWD"/dist/*.whl)[cpu]" >> "$log" 2>&1 &&
    "$place/bin/python" -m pip install --quiet --disable-pip-version-check pytest hypothesis >> "$log" 2>&1 || {
    tail -5 "$log"; echo "| $1 | not installed: see build/pythons/$1.log | | |" | tee -a "$here/table.md"; failed=1; return; }
  local versions tests texts
  versions=$("$place/bin/python" -c 'import importlib.metadata as m, platform
print(platform.python_version(), *(f"{n} {m.version(n)}" for n in ("numpy", "onnxruntime", "soundfile", "soxr", "msgspec", "typer", "rich")), sep=", ")')
  (cd "$here/tree" && PYTHONPATH="$OLDPWD/.ci" OMP_NUM_THREADS=1 "$place/bin/pytest" -q -p only_the_wheel -p no:cacheprovider \
    -m "not slow and not thorough" --deselect tests/runtimes/test_imports.py tests/runtimes) >> "$log" 2>&1 || { failed=1; grep -E '^(FAILED|ERROR)' "$log" || true; }
  tests=$(grep -E '[0-9]+ (passed|failed|errors?)' "$log" | tail -1 | sed -E 's/ in [0-9.]+s.*//; s/[=]//g' || true)
  (cd "$here" && "$place/bin/python" "$OLDPWD/.ci/committed_texts.py" "$here/committed") > "$here/$1.texts" 2>&1 || { failed=1; tail -20 "$here/$1.texts"; }
  texts=$(tail -1 "$here/$1.texts")
  echo "| $1 | $versions | ${tests:-none ran: see build/pythons/$1.log} | $texts |" | tee -a "$here/table.md"
}

printf '| | versions | runtime tests | texts |\n|---|---|---|---|\n' > "$here/table.md"
oldest > "$here/oldest.txt"
for name in ${PYTHONS:-python3.10 python3.10-oldest python3.11 python3.12 python3.13 python3.14}; do
  case $name in *-oldest) constraints=$here/oldest.txt ;; *) constraints="" ;; esac
  if interpreter=$(find_python "${name%-oldest}"); then
    tried=$((tried + 1))
    check "$name" "$interpreter" "$constraints"
  else
    echo "| $name | not run: not found on this machine | | |" >> "$here/table.md"
  fi
done
cat "$here/table.md"
if [ "$tried" -eq 0 ]; then
  echo "test-pythons: no supported Python found; install one with its venv module, on PATH or with pyenv" >&2
  exit 2
fi
exit "$failed"
