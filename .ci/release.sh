#!/usr/bin/env bash
# Checks a release: builds sdist and wheel, checks their contents and metadata, installs each in an
# empty environment, and lists the dependencies, their licences and their known vulnerabilities.
# PYTHONS="python3.10 python3.13" chooses the Pythons; everything is written to build/release.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD out=$PWD/build/release
rm -rf "$out" dist build/lib build/bdist.* && mkdir -p "$out/empty"
step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

find_python() {
  "$1" -c 'import venv, ensurepip' 2> /dev/null && command -v "$1" && return
  local found=("${PYENV_ROOT:-$HOME/.pyenv}"/versions/"${1#python}"*/bin/python)
  [ -x "${found[0]}" ] && echo "${found[0]}"
}

install() { # environment, packages
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"
}

step "tools: the dependency group release"
.venv/bin/python -m venv "$out/tools"
install "$out/tools" --upgrade "pip>=25.1" 2> "$out/pip.log"
install "$out/tools" --group release 2>> "$out/pip.log"
tools=$out/tools/bin

step "sdist, and the wheel from it"
"$tools/python" -m build > "$out/build.log" 2>&1 || { tail -20 "$out/build.log"; exit 1; }
wheel=$(echo "$root"/dist/*.whl) sdist=$(echo "$root"/dist/*.tar.gz)
ls -l dist
"$tools/twine" check --strict dist/*
"$tools/check-wheel-contents" "$wheel"
"$tools/python" .ci/release_contents.py "$wheel" "$sdist"

step "the committed models, for texts to compare with"
.venv/bin/python .ci/committed_models.py "$out/committed"
audio=$out/committed/audio/test/00000.wav model=$out/committed/models/digits.fp32.onnx
.venv/bin/ds2deploy transcribe tests/models/digits.ckpt "$audio" > "$out/expected.txt"

for name in ${PYTHONS:-python3.10 python3.13}; do
  python=$(find_python "$name") || { echo "release-check: $name not found; install it, or choose others: PYTHONS=python3.12 make release-check" >&2; exit 2; }
  for package in "$wheel" "$sdist"; do
    step "$name: $(basename "$package") in an empty environment"
    place=$out/$name-${package##*.}
    "$python" -m venv "$place"
    install "$place" "$package[cpu]" 2>> "$out/pip.log" || { tail -5 "$out/pip.log"; exit 1; }
    cd "$out/empty" # nothing of the checkout may be imported
    "$place/bin/ds2deploy" --help > "$place/help.txt"
    "$place/bin/ds2deploy" --version
    "$place/bin/ds2deploy" transcribe "$model" "$audio" | tee "$place/text.txt"
    diff "$place/text.txt" "$out/expected.txt"
    "$place/bin/python" "$root/.ci/committed_texts.py" "$out/committed" > "$place/texts.txt" || { cat "$place/texts.txt"; exit 1; }
    tail -1 "$place/texts.txt"
    cd "$root"
  done
done

step "dependencies of a device (cpu) and of a server (cpu, serve)"
for extras in cpu cpu,serve; do
  place=$out/dependencies-${extras/,/-}
  .venv/bin/python -m venv "$place"
  install "$place" "$wheel[$extras]" 2>> "$out/pip.log"
  "$tools/pip-licenses" --python "$place/bin/python" --from=mixed --with-urls --format=markdown \
    --output-file "$place.licences.md" > /dev/null
  "$tools/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible \
    --output-format JSON --output-file "$place.cdx.json" "$place/bin/python"
  "$tools/python" .ci/release_dependencies.py "$place.licences.md" "$place.cdx.json"
done

step "known vulnerabilities"
"$tools/python" .ci/release_audit.py "$out/dependencies-cpu-serve.cdx.json"

step "done: dist, and lists in build/release"
