#!/usr/bin/env bash
# The whole test suite, in two processes; `bash launch/test.sh -m quick` for the quick subset. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
"$python" -m ruff check .
exec "$python" -m pytest -n 2 --dist loadgroup "$@"
