# Sourced by the other scripts: makes or reuses .venv from requirements.txt, and sets $python.
# A Python of 3.11 or newer is looked for under its usual names; PYTHON=... names another.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local name
  for name in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3.13 python3 python; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: no Python of 3.11 or newer with venv was found; install one, or name it: PYTHON=/path/to/python $0" >&2
  return 2
}

stamp=.venv/requirements.cksum
wanted=$(cksum requirements.txt)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  base=$(find_python)
  echo "installing requirements.txt into .venv with $("$base" --version) (about a minute, once)"
  "$base" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  echo "$wanted" > "$stamp"
fi
python=.venv/bin/python
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TF_CPP_MIN_LOG_LEVEL=3

# own_environment DIR PACKAGE...: an environment beside .venv that has these packages as well; $python is then its own. Fails if it was there.
own_environment() {
  local folder=$1 base=$python
  shift
  python=$folder/bin/python
  [ ! -x "$python" ] || return 1
  echo "installing $* into $folder (some minutes, once)" >&2
  # `set -e` is off inside a condition, which this is called in.
  if ! { "$base" -m venv "$folder" && "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt "$@"; }; then
    rm -rf "$folder"
    echo "error: $* could not be installed" >&2
    exit 1
  fi
}
